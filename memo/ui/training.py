"""A visitor's own memory weights: trained on their documents, tried, kept for this session or thrown away.

In: a session with documents; lessons or questions that the visitor brings. Out: the curve as it comes; the weights, in
the session's folder; once they are kept, `session.rag.models` with them in place. All of it is done in a thread of its
own, on a twin of the model, so that nobody waits for it; one training at a time in this process (`memo.ui.line`). The
weights go as soon as a document that they learnt is deleted, and with the session. On disk, in the session's folder:

    weights-<16 hex digits>/memory.safetensors, shelf/   what was trained, and memories made with it
    weights-shipped/                                     the memories with the shipped weights, while others are kept
"""

from __future__ import annotations

import copy
import os
import secrets
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from memo.errors import Cancelled, MemoError, TooLittleText, TooManyWeights
from memo.log import note
from memo.models import Models, Reweighted
from memo.sessions import Session
from memo.ui import coursework
from memo.ui.board import AskStop
from memo.ui.comparing import Compared, compare, memory_of
from memo.ui.exchange import Shelf, exchange
from memo.ui.line import LINE
from memo.ui.questions import Question

if TYPE_CHECKING:
    from memo.memory import MemoryModel
    from memo.train.lessons import Lesson
    from memo.train.own import Course

STAGES = ("pretrain", "sft")
STEPS = (10, 400)  # at least and at most
RATES = (1e-4, 3e-4, 1e-3)
KEPT = 4  # visitors who may keep weights of their own at the same time: each takes as much memory as the shipped ones
NICE = 10  # of the thread that trains: whoever asks goes first
FOLDER = "weights-"
FILE = "memory.safetensors"
KEEPERS: WeakSet[Training] = WeakSet()
KEEPING = threading.Lock()


class Training:
    """One visitor's training, and what came of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.doing = ""  # "train", "keep", "drop", "compare"; empty: nothing
        self.stage = ""  # of it: waiting, writing, measuring, training, memorizing, asking
        self.place = 0  # in the line; 0: it is our turn
        self.done = self.of = 0
        self.error: Exception | None = None
        self.refused = ""  # the key of a text that says why nothing was begun
        self.version = 0
        self.lessons: list[Lesson] = []  # that the visitor brought,
        self.pairs: list[Question] = []  # or questions with answers, to make lessons of
        self.questions: list[Question] = []  # to compare by
        self.compared: list[Compared] = []
        self.weights: Path | None = None  # that were trained last
        self.kept: Path | None = None  # that the session works with; None: the shipped ones
        self.key = ""  # by which the weights are downloaded
        self._base: Models | None = session.rag.models if session.rag is not None else None  # with the shipped weights
        self._learnt, self._wanted = set[str](), set[str]()  # documents the weights learnt; those in the making learn
        self._studied: set[str] = set()  # rows whose shipped memory was studied
        self._stop, self._gone = AskStop(session), False  # gone: what is under way is of no use any more
        self.running = False
        self._lock = threading.RLock()
        self._began = 0.0  # of this stage
        self._forget_run()

    def _forget_run(self) -> None:
        self.kind, self.steps, self.held_out = "", 0, 0
        self.lines: list[dict[str, Any]] = []  # of the training's log
        self.held: list[tuple[int, float]] = []  # (step, loss of what is held out): before, and after
        self.thrown: Counter[str] = Counter()  # what was written as a lesson and is none
        self.taught = 0  # lessons

    # --- what the page asks for ---

    @property
    def seconds_left(self) -> float | None:
        """Of this stage, by what is done of it."""
        if not self.done or not self.of:
            return None
        return (time.monotonic() - self._began) / self.done * (self.of - self.done)

    @property
    def _root(self) -> Path:
        return self.session.rag.library.root

    @property
    def _shipped(self) -> Shelf:
        return Shelf(self._root / f"{FOLDER}shipped")

    def begin(self, kind: str, steps: int, rate: float) -> None:
        """Trains, in the background. kind: one of `STAGES`."""
        if kind in STAGES and rate in RATES and STEPS[0] <= steps <= STEPS[1]:
            self._start("train", lambda: self._train(kind, steps, rate))
        else:
            self.refuse("weights.bounds")

    def keep(self) -> None:
        """Has this session work with the trained weights, in the background: its documents are memorized anew."""
        self._start("keep", self._keep) if self.weights else self.refuse("weights.none")

    def drop(self) -> None:
        """Throws the trained weights away, in the background: all is as it was."""
        self._start("drop", self._drop) if self.weights else self.refuse("weights.none")

    def compare(self) -> None:
        """Asks the questions with the shipped and with the trained weights, in the background."""
        if self.weights and self.questions:
            self._start("compare", self._compare)
        else:
            self.refuse("weights.no_questions" if self.weights else "weights.none")

    def stop(self) -> None:
        """Ends what is under way. A training is ended with what it has learnt so far."""
        self._stop.all()

    def forget(self, document: str = "") -> None:
        """A document is deleted (by default: all): so are memories of it, and weights that learnt it."""
        with self._lock:
            self.compared = []
            if not document:
                self.lessons, self.pairs, self.questions = [], [], []
            for folder in self._root.glob(f"{FOLDER}*"):
                for shelf in (Shelf(folder), Shelf(folder / "shelf")):
                    shelf.remove(document or "*")
            if (self.weights or self.running) and (not document or document in self._learnt | self._wanted):
                self._gone = True  # what is under way ends, and does this then
                if not self.running:
                    self._start("drop", self._drop)

    def refuse(self, key: str) -> None:
        """Says why nothing is begun."""
        self.refused = key
        self.version += 1

    # --- the thread ---

    def _start(self, doing: str, work: Callable[[], None]) -> None:
        with self._lock:
            if self.running:
                self.refuse("weights.busy")
                return
            self._stop, self.error, self.refused = AskStop(self.session), None, ""
            self.running, self.doing = True, doing
            self._at("waiting", 0, 0)
        threading.Thread(target=self._run, args=(work,), daemon=True, name="memo-weights").start()

    def _run(self, work: Callable[[], None]) -> None:
        if self.doing == "train" and sys.platform == "linux":  # there it is of this thread, and of what computes for it
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        self._try(work)
        while True:
            with self._lock:
                if not self._gone or self.session.closed or self.doing == "drop":
                    self.running, self._gone, self.doing, self.stage = False, False, "", ""
                    self.version += 1
                    return
                self.doing, self._stop = "drop", AskStop(self.session)
            self._try(self._drop)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except MemoError as error:
            self.error = None if self._gone else error.with_traceback(None)  # its frames hold weights and gradients
        except Exception as error:
            self.error = None if self._gone else error
        finally:
            self._wanted = set()

    @contextmanager
    def _folder(self) -> Iterator[None]:
        """While files are made in the session's folder, which is not deleted meanwhile."""
        while not self.session.training.acquire(timeout=0.2):
            self._go_on()
        try:
            self._go_on()
            yield
        finally:
            self.session.training.release()

    def _wait(self, place: int) -> None:
        self._go_on()
        if place != self.place:
            self.place = place
            self.version += 1

    def _at(self, stage: str, done: int, of: int) -> None:
        if stage != self.stage:
            self._began = time.monotonic()
        self.stage, self.done, self.of, self.place = stage, done, of, 0
        self.version += 1

    def _go_on(self, *_: object) -> None:
        self.session.used = time.monotonic()
        if (self._gone and self.doing != "drop") or self._stop.wanted():
            raise Cancelled("Stopped.")

    def _memorizing(self, done: int, of: int) -> None:
        self._go_on()
        self._at("memorizing", done, of)

    def _asking(self, done: int, of: int) -> None:
        self._go_on()
        if (done, of) != (self.done, self.of) or self.stage != "asking":
            self._at("asking", done, of)

    def _writing(self, done: int, of: int) -> None:
        self._at("writing", done, of)

    # --- training ---

    def _train(self, kind: str, steps: int, rate: float) -> None:
        out = self._root / f"{FOLDER}{secrets.token_hex(8)}"
        with LINE.turn(self._wait), self._folder():
            self._forget_run()
            self.kind, self.steps = kind, steps
            try:
                reader = self._reader(kind)
                self._learn(reader, self._course(reader, rate, out), out)
            finally:
                for path in (out / "run", out / "tokens"):
                    shutil.rmtree(path, ignore_errors=True)
                if self.weights is None or self.weights.parent != out:
                    shutil.rmtree(out, ignore_errors=True)

    def _reader(self, kind: str) -> MemoryModel:
        """A twin of the model, with a copy of the weights that the session works with."""
        from memo.adapter import Adapter
        from memo.memory import MemoryModel
        from memo.mixing import twin
        from memo.train import setup
        from memo.train.recipe import Tuning

        model = self.session.rag.models.memory_model()
        with model.turn:
            weights = copy.deepcopy(model.weights)
        llm = twin(model)
        if weights.adapter is None and kind == "sft":
            weights.adapter = Adapter(llm, Tuning.rank)
        for layer in llm.get_decoder().layers:  # so that stopping waits for one of them, not for a whole step
            layer.register_forward_pre_hook(self._go_on)
        return MemoryModel(llm, model.tokenizer, setup.trainable(weights, adapter=True))

    def _course(self, reader: MemoryModel, rate: float, out: Path) -> Course:
        from memo.train import own

        session, settings, known = self.session, self.session.settings, self.lessons
        if self.kind == "pretrain" or not known:
            self._wanted = set(session.rag.library.documents)
        if self.kind == "pretrain":
            return coursework.reading(session, reader, out / "tokens", self.steps, rate)
        if not known and self.pairs:
            known = coursework.of_questions(session, reader, self.pairs)
        elif not known:
            known, self.thrown = coursework.written(session, reader, self._writing, self._go_on)
        self.taught = sum(len(lesson.questions) for lesson in known)
        return own.tuning(reader, known, self.steps, rate, settings.window, settings.ratio)

    def _learn(self, reader: MemoryModel, course: Course, out: Path) -> None:
        from memo.train import own, setup

        accelerator = setup.accelerator(reader.device.type, reader.model.dtype)
        self.held_out = len(course.held)
        self._at("measuring", 0, 0)
        self.held.append((0, own.held_loss(course, accelerator)))
        self._at("training", 0, self.steps)
        try:
            own.run(reader, course, out / "run", accelerator, self._told)
        except Cancelled:
            if self._gone or self.session.closed or not self.lines:
                raise
        self._stop = AskStop(self.session)  # what was learnt so far is kept
        own.rounded(reader)
        with self._lock:
            self._go_on()
            self._adopt(reader, out)
        line = self.lines[-1]
        note("weights trained", tokens=line["tokens"], seconds=line["seconds"])
        self._at("measuring", 0, 0)
        self.held.append((line["step"], own.held_loss(course, accelerator)))

    def _adopt(self, reader: MemoryModel, out: Path) -> None:
        """What was trained takes the place of what was trained before; a session that works with that goes on so."""
        from safetensors.torch import save_file

        out.mkdir(exist_ok=True)
        save_file({n: t.bfloat16().contiguous() for n, t in reader.weights.state_dict().items()}, out / FILE)
        before, self.weights = self.weights, out / FILE
        self._learnt = self._wanted | (self._learnt if self.kept else set())
        self.compared, self.key = [], secrets.token_hex(16)
        if before is not None and before != self.kept:
            shutil.rmtree(before.parent, ignore_errors=True)

    def _told(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._at("training", line["step"], self.steps)
        self._go_on()

    # --- keeping, throwing away, comparing ---

    def _own(self) -> Models:
        """The models with the weights that were trained last."""
        from memo.attention import MemoryWeights

        assert self._base is not None and self.weights is not None
        if self.kept == self.weights:
            return self.session.rag.models
        model = self._base.memory_model()
        with model.turn:
            return Reweighted(self._base, MemoryWeights.load(self.weights, model.model))

    def _keep(self) -> None:
        assert self.weights is not None
        if self.kept == self.weights:
            return
        with KEEPING:
            if self not in KEEPERS and sum(not one.session.closed for one in list(KEEPERS)) >= KEPT:
                raise TooManyWeights("Others keep weights of their own here already.", "Download yours, or try later.")
            KEEPERS.add(self)
        try:
            with self._folder():
                # nobody goes back to weights that were kept before: their memories are not kept
                old = Shelf(self._root / f"{FOLDER}before") if self.kept else self._shipped
                exchange(self.session, self._own(), Shelf(self.weights.parent / "shelf"), old, self._memorizing)
                if not self.kept:
                    self._studied = self._rows(set())
                self.kept = self.weights
                self._clear({self._shipped.folder, self.weights.parent})
        finally:
            if not self.kept:
                KEEPERS.discard(self)
        self.session.view.looking.clear()

    def _drop(self) -> None:
        assert self._base is not None
        with self._folder():
            if self.kept:
                old, rows = Shelf(self._root / f"{FOLDER}before"), list(self.session.view.rows.values())
                as_they_were = {row.key for row in rows if row.entry and self._shipped.path(row.entry).exists()}
                exchange(self.session, self._base, self._shipped, old, self._memorizing)
                self._rows(self._studied & as_they_were)
                self.session.view.looking.clear()
            self.kept, self.weights, self.key, self.compared = None, None, "", []
            self._learnt, self._studied = set(), set()
            self._forget_run()
            self._clear(set())
            KEEPERS.discard(self)

    def _clear(self, used: set[Path]) -> None:
        for folder in set(self._root.glob(f"{FOLDER}*")) - used:
            shutil.rmtree(folder, ignore_errors=True)

    def _rows(self, studied: set[str]) -> set[str]:
        """Says which documents' memories are studied ones. Returns which were."""
        rows = list(self.session.view.rows.values())
        before = {row.key for row in rows if row.studied}
        for row in rows:
            row.studied = row.key in studied
        return before

    def _compare(self) -> None:
        assert self._base is not None and self.weights is not None
        with LINE.turn(self._wait), self._folder():
            self.compared, session = [], self.session
            if not session.rag.library.documents:
                raise TooLittleText("There is no document to ask about.", "Put one in under Ask first.")
            sides = ((self._base, self._shipped), (self._own(), Shelf(self.weights.parent / "shelf")))
            memories = [memory_of(session, models, shelf, self._memorizing) for models, shelf in sides]
            self.compared = compare(session, memories, self.questions, self._asking)
