"""What a visitor has the Memory Decoder read or go on with: the tokens, and the one that is looked at.

In: a text and alpha. Out: traced tokens (`memo.trace`), in the order they come. The models run in a thread of its own,
which holds their turn for one pass at a time.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memo.decoder_file import ROUTER, about
from memo.errors import ModelError
from memo.models import decoder_place
from memo.sessions import Session
from memo.ui.board import AskStop

if TYPE_CHECKING:
    from memo.mixing import Mixing
    from memo.trace import Neighbour, Token

READ = 400  # tokens of a text that are read at most
WRITTEN = 60  # tokens it goes on with
NEAR = 6  # neighbours that are shown
ALPHA = 0.5  # where nothing better is known


def decoder_of(session: Session) -> str:
    """Which decoder a visitor has: "own", "shared" (that of the settings), "endpoint" (none is possible), or ""."""
    if session.settings.endpoint_url:
        return "endpoint"
    if session.rag.mixing is not None:
        return "own"
    return "shared" if decoder_place(session.settings) else ""


def usable(session: Session) -> bool:
    """Whether there is a decoder to mix in."""
    return decoder_of(session) in ("own", "shared")


def routed(session: Session) -> bool:
    """Whether the decoder's router decides, without loading it: not where the host has chosen an alpha."""
    if session.settings.alpha >= 0:
        return False
    return decoder_of(session) == "shared" and (Path(decoder_place(session.settings)) / ROUTER).exists()


def best_alpha(session: Session) -> float:
    """The alpha that suits the visitor's decoder best, without loading it."""
    if session.rag.mixing is not None:
        return float(session.rag.mixing.alpha)
    if session.settings.alpha >= 0:
        return session.settings.alpha
    if not usable(session):
        return ALPHA
    return float(about(decoder_place(session.settings)).get("alpha", ALPHA))


class Decoding:
    """One visitor's text in tokens."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tokens: list[Token] = []
        self.chosen = -1  # the token that is looked at; -1: none
        self.alpha = ALPHA
        self.cut = False  # the text was longer than what is read
        self.running = False
        self.error: Exception | None = None
        self.refused = ""  # the key of a text that says why it was not begun
        self.version = 0
        self._mixing: Mixing | None = None  # that the tokens were traced with
        self._stop = AskStop(session)

    def clear(self) -> None:
        """Forgets the text."""
        self._stop.all()
        self.tokens, self.chosen, self.error, self.cut, self.running = [], -1, None, False, False
        self._mixing, self.refused = None, ""
        self.version += 1

    def begin(self, text: str, write: bool) -> None:
        """Reads the text, and goes on with it if `write`, in the background."""
        self.clear()
        self._stop, self.running = AskStop(self.session), True
        work = threading.Thread(target=self._work, args=(text, write, self.tokens, self._stop), daemon=True)
        work.start()

    def stop(self) -> None:
        """Ends it where it is; the tokens so far stay."""
        self._stop.all()

    def _work(self, text: str, write: bool, tokens: list[Token], stop: AskStop) -> None:
        try:
            self._trace(text, write, tokens, stop)
        except Exception as error:
            if stop is self._stop:
                self.error = error
        if stop is self._stop:  # else it was begun again, or forgotten
            self.running = False
            self.version += 1

    def _trace(self, text: str, write: bool, tokens: list[Token], stop: AskStop) -> None:
        from memo import trace
        from memo.decoder import Mixed
        from memo.memory import inference

        mixing = self.session.rag.mixing or self.session.rag.models.mixing()
        reader, tokenizer, alpha = mixing.llm, mixing.llm.tokenizer, self.alpha
        with reader.turn:
            mixed = Mixed(reader.model, mixing.memory.model, alpha)
        if stop.wanted():
            return
        self._mixing = mixing
        self.cut = len(reader.encode(text, start=False)[0]) > READ
        if not write:
            with inference(reader):  # type: ignore[arg-type]
                tokens += trace.trace(mixed, tokenizer, text, READ)
            return
        steps = trace.write(mixed, tokenizer, text, alpha, WRITTEN, READ)
        while not stop.wanted():
            with inference(reader):  # type: ignore[arg-type]
                token = next(steps, None)
            if token is None or stop.wanted():
                return
            self.session.used = time.monotonic()
            tokens.append(token)  # the list it began with: there is another one after `clear`
            self.version += 1

    @property
    def token(self) -> Token | None:
        """The token that is looked at."""
        return self.tokens[self.chosen] if 0 <= self.chosen < len(self.tokens) else None

    def neighbours(self) -> list[Neighbour] | None:
        """The entries of the datastore nearest to that token; None: there is no datastore.

        Raises:
            DatastoreError: it is damaged.
        """
        from memo.trace import neighbours

        token, mixing = self.token, self._mixing
        if token is None or token.key is None or mixing is None:
            raise ModelError("There is no token to look up.")
        if mixing.index is None:
            return None
        return neighbours(mixing.index, mixing.llm.tokenizer, token.key, NEAR)
