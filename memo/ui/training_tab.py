"""The handlers of the tab Training: what happens on a click, and what is drawn while the weights are trained.

In: the components of `memo.ui.training_layout.TrainingPage`, and the Ask page, whose visitors these are. Out: wired
events. As there, work is begun here and done in a thread of its own (`memo.ui.training`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from memo.errors import LessonsError, MemoError
from memo.ui import cards, training_html
from memo.ui.ask import QUICK, WATCHING, AskPage
from memo.ui.comparing import MOST
from memo.ui.draw import Updates
from memo.ui.handing import NAME, PATH
from memo.ui.questions import Question, read_questions
from memo.ui.texts import say, tell
from memo.ui.training import STAGES
from memo.ui.visits import Visit

if TYPE_CHECKING:
    from memo.train.lessons import Lesson

BYTES = 1_000_000  # of a file of lessons
PACE = 0.4  # seconds between two looks at a training
CURVE = 2.0  # between two drawings of the curve
FETCH = """(address) => {
  if (!address) return;
  const link = document.createElement('a');
  link.href = new URL(address, document.baseURI).href;
  link.download = %r;
  link.click();
}"""


class TrainingTab:
    """Handlers over the tab. Holds nothing of any visitor."""

    def __init__(self, ask: AskPage) -> None:
        self.ask, self.page = ask, ask.page.training

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, token = self.page, self.ask.page.token
        quick, watching = QUICK, WATCHING | {"concurrency_limit": None}
        drawn, shipped = self.everything(), [p.lessons, p.brought, p.shipped, p.shipped_note]

        def on(handler: Callable) -> Callable:
            return self.ask.told(handler, p.status)

        look = self.ask.opened(self.look_at_training, p.status)
        p.tab.select(look, [token, p.kind], [*drawn, *shipped], **quick).then(
            on(self.watch_weights), token, drawn, **watching
        )
        p.kind.input(on(self.choose_kind), [token, p.kind], [p.status, *shipped], **quick)
        p.lessons.upload(on(self.take_lessons), [token, p.lessons], [p.lessons, p.brought, p.status], **quick)
        p.file.upload(on(self.take_checks), [token, p.file], [p.file, p.typed, *drawn], **quick)
        planned, asked = [token, p.kind, p.steps, p.rate], [token, p.typed]
        for button, begin, values in (
            (p.start, self.train_weights, planned), (p.keep, self.keep_weights, token),
            (p.drop, self.drop_weights, token), (p.compare, self.compare_weights, asked),
        ):  # fmt: skip
            button.click(on(begin), values, drawn, **quick).then(on(self.watch_weights), token, drawn, **watching)
        p.stop.click(on(self.stop_weights), token, p.status, **quick)
        p.download.click(on(self.hand_weights), token, [p.address, p.status], **quick).then(
            None, p.address, None, js=FETCH % NAME, **quick
        )

    def everything(self) -> list:
        """What a training changes."""
        p = self.page
        return [p.status, p.curve, p.outcome, p.start, p.stop, p.keep, p.drop, p.download, p.compare, p.table]

    # --- what happens ---

    def look_at_training(self, token: str, request: gr.Request, kind: str) -> Updates:
        """The tab is opened: documents may have come or gone meanwhile."""
        visit = self.ask.visit(token, request)
        return self.draw(visit) | self.draw_kind(visit, kind)

    def choose_kind(self, token: str, request: gr.Request, kind: str) -> Updates:
        return self.draw_kind(self.ask.visit(token, request), kind)

    def take_lessons(self, token: str, request: gr.Request, file: str | None) -> Updates:
        """Reads lessons, or questions with answers, and deletes the file. What cannot be read leaves those before."""
        visit, p = self.ask.visit(token, request), self.page
        if not file:
            return {}
        path, training = Path(file), visit.training
        try:
            if training.running:
                return {p.lessons: None, p.status: cards.notice("error", say(visit.language, "weights.busy"))}
            training.lessons, training.pairs = self._lessons(visit, path)
        except MemoError as error:
            return {p.lessons: None, p.status: cards.notice("error", tell(visit.language, error))}
        finally:
            path.unlink(missing_ok=True)
        training.refused, training.error = "", None
        return {p.lessons: None, p.brought: training_html.brought(visit), p.status: training_html.status(visit)}

    @staticmethod
    def _lessons(visit: Visit, path: Path) -> tuple[list[Lesson], list[Question]]:
        from memo.train import own

        with path.open("rb") as file:
            content = file.read(BYTES + 1)
        if not content.lstrip().startswith(b"{"):
            pairs = [one for one in read_questions(path) if one.answers]
            if not pairs:
                raise LessonsError("No question in the file has an answer.", "Write answers beside them.")
            return [], pairs
        if len(content) > BYTES:
            raise LessonsError(f"The file is larger than {BYTES // 1000} kB.", "Split it.")
        reader = visit.session.rag.models.memory_model()
        text = content.decode("utf-8", errors="replace")
        return own.read_lessons(text, lambda one: len(reader.encode(one)[0])), []

    def take_checks(self, token: str, request: gr.Request, file: str | None) -> Updates:
        """Reads questions to compare by, and deletes the file."""
        visit, p = self.ask.visit(token, request), self.page
        if not file:
            return {}
        path = Path(file)
        try:
            if visit.training.running:
                return {p.file: None, p.status: cards.notice("error", say(visit.language, "weights.busy"))}
            questions = read_questions(path)[:MOST]
        except MemoError as error:
            return {p.file: None, p.status: cards.notice("error", tell(visit.language, error))}
        finally:
            path.unlink(missing_ok=True)
        visit.training.questions, visit.training.compared = questions, []
        return {p.file: None, p.typed: ""} | self.draw(visit)

    def train_weights(self, token: str, request: gr.Request, kind: str, steps: int, rate: float) -> Updates:
        visit = self.ask.visit(token, request)
        visit.training.begin(kind, int(steps), float(rate))
        return self.draw(visit)

    def keep_weights(self, token: str, request: gr.Request) -> Updates:
        visit = self.ask.visit(token, request)
        visit.training.keep()
        return self.draw(visit)

    def drop_weights(self, token: str, request: gr.Request) -> Updates:
        visit = self.ask.visit(token, request)
        visit.training.drop()
        return self.draw(visit)

    def compare_weights(self, token: str, request: gr.Request, typed: str) -> Updates:
        """Questions that are typed come before those of a file. One a line; answers after a bar."""
        visit = self.ask.visit(token, request)
        lines = [line.split("|") for line in (typed or "").splitlines() if line.split("|")[0].strip()]
        if lines and not visit.training.running:
            visit.training.questions = [
                Question(asked.strip()[:500], tuple(one.strip()[:200] for one in answers if one.strip()))
                for asked, *answers in lines[:MOST]
            ]
        visit.training.compare()
        return self.draw(visit)

    def stop_weights(self, token: str, request: gr.Request) -> Updates:
        self.ask.visit(token, request).training.stop()
        return {}

    def hand_weights(self, token: str, request: gr.Request) -> Updates:
        key = self.ask.visit(token, request).training.key
        return {self.page.address: PATH.lstrip("/") + key if key else ""}

    async def watch_weights(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        if not token:
            yield {self.page.status: gr.skip()}
            return
        visit, shown, drawn, at = self.ask.visit(token, request), None, -1, 0.0
        while True:
            running, version, status = visit.training.running, visit.training.version, training_html.status(visit)
            buttons = (running, visit.training.weights)
            if (status, buttons) != shown:
                if shown is None or buttons != shown[1]:
                    yield self.draw(visit, curve=False)
                else:
                    yield {self.page.status: status}
                shown = (status, buttons)
            if version != drawn and (not running or time.monotonic() > at + CURVE):
                drawn, at = version, time.monotonic()
                yield self.draw_figures(visit)
            if not running or visit.session.closed:
                break
            await asyncio.sleep(PACE)

    # --- drawing ---

    def draw(self, visit: Visit, curve: bool = True) -> Updates:
        """A training. curve: with its figures."""
        p, training = self.page, visit.training
        idle, made = not training.running, training.weights is not None
        updates: Updates = {
            p.status: training_html.status(visit), p.start: gr.Button(interactive=idle),
            p.stop: gr.Button(interactive=not idle), p.drop: gr.Button(interactive=idle and made),
            p.keep: gr.Button(interactive=idle and made and training.kept != training.weights),
            p.download: gr.Button(interactive=made), p.compare: gr.Button(interactive=idle and made),
        }  # fmt: skip
        return updates | (self.draw_figures(visit) if curve else {})

    def draw_figures(self, visit: Visit) -> Updates:
        """The curve, what came of it, before and after: these take the page longer than a line of text."""
        p, outcome, table = self.page, training_html.outcome(visit), training_html.table(visit)
        return {p.curve: self._curve(visit), p.outcome: outcome, p.table: table}

    @staticmethod
    def _curve(visit: Visit) -> gr.Plot:
        training = visit.training
        if not training.lines and not training.held:
            return gr.Plot(visible=False)
        from memo import plots_training
        from memo.train.ship import curve

        log = curve(list(training.lines)) if training.lines else []
        figure = plots_training.losses(training.kind, log, list(training.held), training.steps, *words(visit))
        return gr.Plot(value=figure, visible=True)

    def draw_kind(self, visit: Visit, kind: str) -> Updates:
        """What belongs to a stage: where lessons come from, the shipped run."""
        p, kind = self.page, kind if kind in STAGES else STAGES[0]
        run, sft = training_html.shipped(visit.session.settings).get(kind), kind == "sft"
        plot = gr.Plot(visible=False)
        if run is not None:
            from memo import plots_training

            figure = plots_training.losses(kind, run["log"], [], run["plan"]["steps"], *words(visit))
            plot = gr.Plot(value=figure, visible=True)
        return {
            p.lessons: gr.File(visible=sft), p.brought: gr.HTML(training_html.brought(visit), visible=sft),
            p.shipped: plot, p.shipped_note: training_html.shipped_note(visit, kind),
        }  # fmt: skip


def words(visit: Visit) -> tuple[dict[str, str], tuple[str, str]]:
    """What the curves and the axes are named."""
    names = ("loss", "next", "repeat", "span", "answer", "draft", "question", "key", "held")
    found = {name: say(visit.language, f"weights.curve.{name}") for name in names}
    return found, (say(visit.language, "weights.curve.steps"), say(visit.language, "weights.curve.value"))
