"""What a visitor looks at inside the memory: a document and its slots, clues and where they look, losses, a part.

In: a document, a question. Out: what `memo.inside` finds, as it comes. The models run in a thread of its own, which
holds their turn for one step at a time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from memo.sessions import Session
from memo.ui.board import AskStop

if TYPE_CHECKING:
    from torch import Tensor

    from memo.documents import Page
    from memo.events import Clue
    from memo.inside import Losses, Part, Recalled, Slot
    from memo.memory import Composed, DocumentMemory

PART_TOKENS = 160  # that are recalled of a part at most
PARTS = ("status", "text", "clues", "map", "losses", "page")  # what is drawn apart


class Looking:
    """One visitor's look inside. A part of it that has changed has another number in `versions`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.versions: Counter[str] = Counter()
        self._stop, self._lock = AskStop(session), threading.Lock()
        self.error: Exception | None = None
        self.refused = ""  # the key of a text that says why nothing was begun
        self.running = ""  # what is under way: "recall", "measure", "remember"
        self.document = ""  # that is looked at
        self.clear()

    def clear(self) -> None:
        """Forgets what was found, not which document is looked at."""
        self._stop.all()
        self._stop = AskStop(self.session)  # what is still under way is not ours any more
        self.running, self.error, self.refused = "", None, ""
        self.memory: DocumentMemory | None = None
        self.text = ""
        self.slots: list[Slot] = []
        self.parts: list[Part] = []
        self.part, self.slot = 0, -1  # the part that is read, by its place in `parts`; the slot that is looked at
        self.question = ""
        self.recalled: list[Recalled] = []
        self.composed: Composed | None = None  # the memory that was recalled from
        self.clue, self.token = 0, -1  # of `recalled`, and of its tokens; -1: all of them
        self.coming: tuple[Clue, ...] = ()  # clues while they are recalled
        self.losses: list[Losses] = []
        self.asked = -1  # the part that was recalled, by its place in `parts`
        self.given, self.said, self.real = "", "", ""  # its first words, what was recalled of the rest, and the rest
        self.touch(*PARTS)

    def touch(self, *parts: str) -> None:
        self.versions.update(parts)

    def open(self, document: str, pages: tuple[Page, ...]) -> None:
        """Looks at a document, unless that is done already. What was found of another memory is forgotten.

        Raises:
            MemoError: it is gone, or its memory cannot be used.
        """
        from memo import inside

        with self._lock:
            library, model = self.session.rag.library, self.session.rag.models.memory_model()
            memory = library.memory(model)[library.entry(document).id]
            if memory is self.memory:
                return
            self.clear()
            self.document, self.text = document, library.text(document)
            self.slots = inside.slots_of(memory, model.encode(self.text)[1])
            self.parts = inside.parts_of(self.text, pages)
            self.memory = memory

    def forget(self, document: str = "") -> None:
        """A document goes, or all: so does what was found in a memory that it was part of."""
        with_it = self.composed is not None and document in self.composed.documents
        if not document or document == self.document or with_it:
            self.clear()
            self.document = ""

    # --- what is looked at ---

    def choose_part(self, part: int) -> None:
        if 0 <= part < len(self.parts):
            self.part = part
            self.touch("text", "page")

    def choose_slot(self, slot: int, again: bool = False) -> None:
        """Looks at a slot, and opens the text where it stands. again: at none, if it is the one looked at."""
        if not 0 <= slot < len(self.slots):
            return
        self.slot = -1 if again and slot == self.slot else slot
        start = self.slots[slot].start
        self.part = max((i for i, part in enumerate(self.parts) if part.start <= start), default=0)
        self.touch("text", "map", "page")

    def choose_cell(self, column: int, layer: int) -> None:
        """Looks at the slot to which that layer looks most, of those in a column of the heat map."""
        from memo import plots_inside

        mass = self.mass()
        if mass is not None and 0 <= layer < len(mass) and 0 <= column < len(plots_inside.columns(mass.shape[1])):
            self.choose_slot(plots_inside.peak(mass, column, layer))

    def choose_clue(self, clue: int, token: int) -> None:
        if 0 <= clue < len(self.recalled) and -1 <= token < len(self.recalled[clue].tokens):
            self.clue, self.token = clue, token
            self.touch("clues", "map", "text")

    def mass(self) -> Tensor | None:
        """(layers, m) attention on the document's slots while the chosen token or clue was generated."""
        if self.composed is None or self.document not in self.composed.documents or not self.recalled:
            return None
        from memo.inside import of_document

        mass = self.recalled[self.clue].mass(self.token)
        return None if mass is None else of_document(mass, self.composed, self.document)

    @property
    def read(self) -> float:
        """The share of the text whose losses are measured."""
        if not self.losses or self.memory is None:
            return 0.0
        return (self.losses[-1].first + len(self.losses[-1].memory)) / self.memory.tokens

    # --- work ---

    def recall(self, question: str) -> None:
        """Recalls clues for a question, from all documents, as Ask does."""
        self.recalled, self.composed, self.question, self.clue, self.token = [], None, question, 0, -1
        self.coming = ()
        self._begin("recall", self._recall, "clues", "map", "text")

    def measure(self) -> None:
        """Reads the text again and measures its losses."""
        self.losses = []
        self._begin("measure", self._measure, "losses")

    def remember(self) -> None:
        """Recalls the part that is open."""
        self.given, self.said, self.real, self.asked = "", "", "", self.part
        self._begin("remember", self._remember, "page")

    def stop(self) -> None:
        """Ends what is under way; what came so far stays."""
        self._stop.all()

    def _begin(self, kind: str, work: Callable[[AskStop], None], *parts: str) -> None:
        self._stop.all()
        self.error, self.refused, self.running, self._stop = None, "", kind, AskStop(self.session)
        self.touch("status", *parts)
        threading.Thread(target=self._work, args=(work, self._stop), daemon=True, name="memo-inside").start()

    def _work(self, work: Callable[[AskStop], None], stop: AskStop) -> None:
        try:
            work(stop)
        except Exception as error:
            if stop is self._stop:
                self.error = error
        if stop is self._stop:  # else something else was begun, or all was forgotten
            self.running = ""
            self.touch(*PARTS)

    def _recall(self, stop: AskStop) -> None:
        from memo import clues, inside

        rag = self.session.rag
        composed = rag.library.memory(rag.models.memory_model()).compose((self.document,))
        question = self.question

        def show(streams: dict) -> None:
            coming = clues.collect(streams, question, None)
            if stop is self._stop and coming != self.coming:
                self.coming = coming
                self.touch("clues")

        streams = self._write(stop, clues.prompts(question, composed, rag.settings.clue_tokens), show)
        found = inside.recalled(streams, question, composed)
        if stop is self._stop:
            self.recalled, self.composed = found, composed

    def _write(self, stop: AskStop, prompts: dict, each: Callable[[dict], None]) -> dict:
        """Streams of the memory model, by the names of their prompts, to their end or to the wish to stop."""
        from memo.generate import LocalGenerator

        run = LocalGenerator(self.session.rag.models.memory_model(), "memory").open()
        streams = {name: run.add(prompt) for name, prompt in prompts.items()}
        while run.step():
            self.session.used = time.monotonic()
            each(streams)
            if stop.wanted():
                for stream in streams.values():
                    stream.stop()
        for stream in streams.values():
            if stream.error:
                raise stream.error
        return streams

    def _measure(self, stop: AskStop) -> None:
        from memo import inside

        assert self.memory is not None
        losses = self.losses
        for found in inside.losses(self.session.rag.models.memory_model(), self.memory, self.text):
            self.session.used = time.monotonic()
            if stop.wanted():
                return
            losses.append(found)  # the list it began with: there is another one after `clear`
            self.touch("losses", "status")

    def _remember(self, stop: AskStop) -> None:
        from memo import inside
        from memo.memory import Memory

        assert self.memory is not None
        alone = Memory(self.session.rag.models.memory_model())
        alone.add(self.memory)
        part, text = self.parts[self.asked], self.text
        prompt, at = inside.part_prompt(text, part, alone.compose(), PART_TOKENS)
        self.given, self.real = text[part.start : at], text[at : part.end]

        def show(streams: dict) -> None:
            said = streams["part"].text[len(prompt.prefix) :].rstrip('"')
            if stop is self._stop and said != self.said:
                self.said = said
                self.touch("page")

        show(self._write(stop, {"part": prompt}, show))
