"""The handlers of one's own questions, in the tab Results: a file comes in, answers are measured row by row.

In: the components of `memo.ui.results_layout.ResultsPage`, and the Ask page, whose visitors these are. Out: wired
events. The work is done in a thread of its own (`memo.ui.questions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr

from memo.answers import STRATEGIES
from memo.errors import MemoError
from memo.ui import cards
from memo.ui.ask import DOWNLOAD, EVERY, QUICK, WATCHING, AskPage
from memo.ui.draw import Updates
from memo.ui.marks import esc
from memo.ui.questions import MEASURES, as_csv, means, read_questions
from memo.ui.texts import say, tell
from memo.ui.visits import Visit


class EvaluationTab:
    """Handlers over the tab. Holds nothing of any visitor."""

    def __init__(self, ask: AskPage) -> None:
        self.ask, self.page = ask, ask.page.results

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, token = self.page, self.ask.page.token
        quick, watching = QUICK, WATCHING | {"concurrency_limit": None}
        drawn = self.everything()

        def on(handler: Callable) -> Callable:
            return self.ask.told(handler, p.status)

        p.file.upload(on(self.take_questions), [token, p.file], [p.file, *drawn], **quick)
        p.start.click(on(self.start_testing), [token, p.by], drawn, **quick).then(
            on(self.watch_testing), token, drawn, **watching
        )
        p.stop.click(on(self.stop_testing), token, p.status, **quick)
        p.csv.click(on(self.testing_csv), token, [p.export, p.status], **quick).then(
            None, p.export, None, js=DOWNLOAD % ("memo-questions.csv", "text/csv"), **quick
        )
        p.tab.select(self.ask.opened(self.look_at_testing, p.status), token, drawn, **quick)

    def everything(self) -> list:
        return [self.page.status, self.page.rows, self.page.start, self.page.stop, self.page.csv]

    def take_questions(self, token: str, request: gr.Request, file: str | None) -> Updates:
        """Reads the file and deletes it. Questions that cannot be read leave those before as they are."""
        visit, p = self.ask.visit(token, request), self.page
        if not file:
            return {}
        path = Path(file)
        try:
            if visit.testing.running:
                return {p.file: None, p.status: cards.notice("error", say(visit.language, "testing.busy"))}
            questions = read_questions(path)
        except MemoError as error:
            return {p.file: None, p.status: cards.notice("error", tell(visit.language, error))}
        finally:
            path.unlink(missing_ok=True)
        visit.testing.clear()
        visit.testing.questions = questions
        return {p.file: None} | self.draw_testing(visit)

    def start_testing(self, token: str, request: gr.Request, by: list[str]) -> Updates:
        visit = self.ask.visit(token, request)
        chosen = [name for name in STRATEGIES if name in by]
        visit.testing.refused = self._problem(visit, chosen)
        if not visit.testing.refused:
            visit.testing.begin(chosen, visit.alpha)
        return self.draw_testing(visit)

    @staticmethod
    def _problem(visit: Visit, chosen: list[str]) -> str:
        """Why it cannot be begun now, as the key of a text; empty if it can."""
        if visit.testing.running:
            return "testing.busy"
        if not visit.testing.questions:
            return "testing.none"
        if not chosen:
            return "ask.no_strategy"
        return "" if visit.ready or chosen == ["closed_book"] else "ask.no_document"

    async def watch_testing(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, shown = self.ask.visit(token, request), None
        while True:
            testing = visit.testing
            now = (testing.running, testing.waiting, testing.done, len(testing.results), round(testing.left or 0))
            if now != shown:
                shown = now
                yield self.draw_testing(visit)
            if not now[0] or visit.session.closed:
                break
            await asyncio.sleep(EVERY)

    def stop_testing(self, token: str, request: gr.Request) -> Updates:
        self.ask.visit(token, request).testing.stop()
        return {}

    def testing_csv(self, token: str, request: gr.Request) -> Updates:
        return {self.page.export: as_csv(self.ask.visit(token, request).testing.results)}

    def look_at_testing(self, token: str, request: gr.Request) -> Updates:
        return self.draw_testing(self.ask.visit(token, request))

    def draw_testing(self, visit: Visit) -> Updates:
        p, testing = self.page, visit.testing
        return {
            p.status: status(visit), p.rows: table(visit), p.start: gr.Button(interactive=not testing.running),
            p.stop: gr.Button(interactive=testing.running),
            p.csv: gr.Button(interactive=bool(testing.results) and not testing.running),
        }  # fmt: skip


def status(visit: Visit) -> str:
    """How far it is."""
    testing, language = visit.testing, visit.language
    if testing.refused:
        return cards.notice("error", say(language, testing.refused))
    if testing.error is not None:
        settings = visit.session.settings
        told = tell(language, testing.error, documents=settings.max_documents, tokens=settings.max_tokens)
        return cards.notice("error", told)
    if not testing.questions:
        return ""
    count, done = len(testing.questions), testing.done
    if not testing.running:
        key = "testing.done" if testing.results or done else "testing.ready"
        return cards.notice("ready", say(language, key, done=done, count=count))
    if testing.waiting:
        return cards.notice("busy", say(language, "testing.waiting"))
    if testing.left is None:
        return cards.notice("busy", say(language, "testing.running", done=done, count=count))
    return cards.notice("busy", say(language, "testing.left", done=done, count=count, seconds=round(testing.left)))


def table(visit: Visit) -> str:
    """The rows so far; at the end the means."""
    testing, language = visit.testing, visit.language
    if not testing.results:
        return ""
    titles = ("question", "strategy", *MEASURES, "answer")
    head = "".join(f'<th scope="col">{esc(say(language, f"testing.{title}"))}</th>' for title in titles)
    rows = [
        (r.question, r.strategy, [getattr(r, m) for m in MEASURES], tell(language, r.error) if r.error else r.answer)
        for r in testing.results
    ]
    if not testing.running:
        mean = say(language, "testing.mean")
        rows += [(mean, name, list(found.values()), "") for name, found in means(testing.results).items()]
    body = "".join(
        f"<tr><td>{esc(asked)}</td><td>{esc(say(language, f'strategy.{name}'))}</td>"
        + "".join(f"<td>{'' if value is None else f'{value:.2f}'}</td>" for value in values)
        + f"<td>{esc(answer)}</td></tr>"
        for asked, name, values, answer in rows
    )
    label = esc(say(language, "testing.title"))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
