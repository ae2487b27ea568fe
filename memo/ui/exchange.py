"""A visitor's documents under other memory weights: read anew, put in place all at once, and back again as they were.

In: a session, the models with the other weights. Out: a `Shelf`, memories that lie ready beside the library's;
`exchange` swaps them with the library's own, so that what was there before comes back bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memo.errors import UnknownDocument
from memo.library import Entry, Library, text_hash
from memo.models import Models
from memo.sessions import Session

if TYPE_CHECKING:
    from memo.memory import MemoryModel

MEMORY = "memory.safetensors"  # of a document, in its folder of the library
Told = Callable[[int, int], None]  # hears tokens read, of how many; what it raises ends the reading


class Shelf:
    """A folder of memories, all made with the same weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, entry: Entry) -> Path:
        """Where the memory of a document lies, if it is there."""
        return self.folder / f"{entry.id}-{entry.ratio}.safetensors"

    def fill(self, library: Library, reader: MemoryModel, window: int, told: Told) -> None:
        """Memorizes those documents of the library that are missing here."""
        from memo import memory_file
        from memo.memory import Reading

        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [entry for entry in list(library.documents.values()) if not self.path(entry).exists()]
        done, total = 0, sum(entry.tokens for entry in missing)
        for entry in missing:
            try:
                text = library.text(entry.id)
            except UnknownDocument:
                continue
            steps = reader.memorize(text, entry.id, entry.ratio, window, text_sha256=text_hash(text))
            for step in steps:
                if isinstance(step, Reading):
                    told(done + step.done, total)
                else:
                    memory_file.save(step, self.path(entry))
            if entry.id not in library.documents:  # deleted meanwhile
                self.remove(entry.id)
            done += entry.tokens

    def remove(self, document: str) -> None:
        """Deletes what is here of a document."""
        for path in self.folder.glob(f"{document}-*"):
            path.unlink(missing_ok=True)


def exchange(session: Session, models: Models, new: Shelf, old: Shelf, told: Told) -> None:
    """Has the session work with these models, whose memories are on `new`; those it had go on `old`.

    Documents are read while the visitor goes on asking; the swap itself takes the moment of copying files.
    """
    rag, library = session.rag, session.rag.library
    before, old_model = rag.models, rag.models.memory_model()
    old.folder.mkdir(parents=True, exist_ok=True)
    while True:
        new.fill(library, models.memory_model(), session.settings.window, told)
        with session.busy, library.exchanging():
            told(1, 1)
            entries = list(library.documents.values())
            if not all(new.path(entry).exists() for entry in entries):
                continue  # a document came, or was read at another ratio meanwhile
            for entry in entries:
                place = library.folder / entry.id / MEMORY
                shutil.copyfile(place, old.path(entry))
                new.path(entry).replace(place)
            rag.models = models
            if rag.mixing is not None and rag.mixing.llm is old_model and before.generator() is not models.generator():
                rag.mixing = rag.mixing.beside(models.memory_model())
            return
