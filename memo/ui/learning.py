"""A visitor's own Memory Decoder: trained on their documents, kept in their folder, deleted with it.

In: a session and the documents in its library. Out: `session.rag.mixing`, once it is trained, and how far it is. It is
trained in a thread of its own, on a twin of the model, so that nobody waits for it; one at a time in this process, for
it takes every core. It is forgotten as soon as one of the documents it learnt from is deleted.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import Cancelled, DatastoreError, ModelError
from memo.library import Library
from memo.models import decoder_start
from memo.sessions import Session
from memo.train.recipe import Distilling
from memo.ui.board import AskStop
from memo.ui.line import LINE

if TYPE_CHECKING:
    from memo.train.decode import Progress
    from memo.train.texts import TokenFile

MOST = 60_000  # tokens that are learnt of a visitor's documents: a quarter of an hour on a slow CPU, 140 MB on disk
LEAST = 400  # tokens below which there is nothing to learn
PASSES = 3  # times the corpus is read; a short one more often
STEPS = (60, 300)  # at least and at most: fewer teach nothing, more take too long
FOLDER = "decoder-"  # what its folder, in the session's own, begins with
LITTLE = ("There is too little text to learn from.", "Put documents in under Ask, some pages at least, then train.")


class TooLittle(DatastoreError):
    """The documents have too few tokens to learn from and to measure on."""


def plan_for(blocks: int) -> Distilling:
    """A short training for a corpus of so many blocks."""
    batch = 1 if blocks < 64 else 4
    steps = max(STEPS[0], min(STEPS[1], round(PASSES * blocks / batch)))
    return Distilling(steps=steps, batch=batch, micro=1, save_every=steps)


@dataclass(frozen=True)
class Texts:
    """Documents of a library as a source of texts (see `train.texts.Source`)."""

    library: Library
    documents: tuple[str, ...]
    tokens: int = MOST

    @property
    def state(self) -> list[Any]:
        return [*self.documents, self.tokens]

    def texts(self) -> Iterator[str]:
        for document in self.documents:
            yield self.library.text(document)


class Learning:
    """One visitor's decoder in the making, and the one that was made."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stage = ""  # "waiting", then those of `train.decode.Progress`; empty: it was never trained
        self.done = self.of = 0
        self.loss: float | None = None
        self.error: Exception | None = None
        self.about: dict[str, Any] = {}  # what is known of the decoder that was made
        self.documents: tuple[str, ...] = ()  # that it learnt
        self._wanted: tuple[str, ...] = ()  # that the one in the making learns
        self._stop = AskStop(session)
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._began = self._told_at = 0.0  # of this stage

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def seconds_left(self) -> float | None:
        """Of this stage."""
        if not self.done or not self.of:
            return None
        each = (self._told_at - self._began) / self.done
        return max(0.0, each * (self.of - self.done) - (time.monotonic() - self._told_at))

    def begin(self) -> None:
        """Begins to train on the documents that are there now, unless it is under way."""
        with self._lock:
            if self.running:
                return
            self._stop, self.error = AskStop(self.session), None
            self._wanted = tuple(self.session.rag.library.documents)
            if not self._wanted:
                self.error = TooLittle(*LITTLE)
                return
            self._at("waiting", 0, 0)
            self._thread = threading.Thread(target=self._run, daemon=True, name="memo-decoder")
            self._thread.start()

    def stop(self) -> None:
        """Ends the training; the decoder that was there before stays."""
        self._stop.all()

    def forget(self, document: str = "") -> bool:
        """Deletes the decoder if it learnt this document, and ends the training if it does (by default: in any case).
        Returns whether there was a decoder to delete."""
        with self._lock:
            if not document or document in self._wanted:
                self._stop.all()
            there = self.session.rag.mixing is not None and (not document or document in self.documents)
            if there:
                self._drop()
                self.stage = self.stage if self.running else ""
            return there

    def _drop(self) -> None:
        mixing, self.session.rag.mixing = self.session.rag.mixing, None
        self.about, self.documents = {}, ()
        if mixing is not None and mixing.folder is not None:
            shutil.rmtree(mixing.folder, ignore_errors=True)

    # --- the thread ---

    def _run(self) -> None:
        out = self.session.rag.library.root / f"{FOLDER}{secrets.token_hex(6)}"
        try:
            with LINE.turn(lambda _: self._go_on()), self.session.training:
                try:
                    self._go_on()
                    self._learn(out)
                except BaseException:
                    shutil.rmtree(out, ignore_errors=True)
                    raise
        except Exception as error:
            self.error = error
            self.stage = "done" if self.session.rag.mixing else ""

    def _learn(self, out: Path) -> None:
        from memo import decoder
        from memo.datastore import BATCH, blocks, layers_of
        from memo.generate import LocalGenerator
        from memo.mixing import Mixing, twin
        from memo.train import decode, setup

        rag = self.session.rag
        generator = rag.models.generator()
        if not isinstance(generator, LocalGenerator):
            raise ModelError("A Memory Decoder cannot be mixed into an endpoint.", "Choose a local generator.")
        reader, tokenizer = generator.model, generator.model.tokenizer
        learnt, held = decode.held_out(self._tokens(out))
        if not decode.first_blocks(held, decode.HELD_TOKENS):
            raise TooLittle(*LITTLE)
        llm = twin(reader)
        layers, size = layers_of(llm), len(blocks(learnt.bounds))
        for layer in layers:  # so that stopping waits for one of them, not for a whole shard
            layer.register_forward_pre_hook(self._layer)
        accelerator = setup.accelerator(reader.device.type, reader.model.dtype)
        plan, known = plan_for(size), {"documents": len(self._wanted)}
        self._at("reading", 0, len(layers) * -(-size // BATCH))
        start = decoder_start(rag.models.settings)
        about = decode.make(llm, tokenizer, learnt, held, out, plan, accelerator, known, self._told, start)
        with reader.turn:
            loaded = decoder.load(out, reader.model, tokenizer)
        for rest in ("run", "targets"):
            shutil.rmtree(out / "work" / rest, ignore_errors=True)
        with self._lock:
            self._go_on()
            self._drop()
            rag.mixing, self.about, self.documents = Mixing(reader, loaded, about["alpha"], out), about, self._wanted
            self.stage = "done"

    def _tokens(self, out: Path) -> TokenFile:
        from memo.train.texts import plainly

        tokenizer = self.session.rag.models.generator().model.tokenizer  # type: ignore[attr-defined]
        source = Texts(self.session.rag.library, self._wanted)
        tokens = plainly([source], tokenizer, out / "work")  # type: ignore[list-item]
        if tokens.bounds[-1] < LEAST:
            raise TooLittle(*LITTLE)
        return tokens

    def _told(self, progress: Progress) -> None:
        self._go_on()
        if progress.stage not in ("reading", "done"):  # layers tell of the first; the last is not yet loaded
            self._at(progress.stage, progress.done, progress.of)
        if progress.line:
            self.loss = progress.line["loss"]

    def _layer(self, *_: object) -> None:
        """A layer of the language model is about to read."""
        self._go_on()
        if self.stage == "reading":
            self._at("reading", min(self.done + 1, self.of), self.of)

    def _at(self, stage: str, done: int, of: int) -> None:
        if stage != self.stage:
            self._began, self.loss = time.monotonic(), None
        self.stage, self.done, self.of, self._told_at = stage, done, of, time.monotonic()

    def _go_on(self) -> None:
        self.session.used = time.monotonic()
        if self._stop.wanted():
            raise Cancelled("Stopped.")
