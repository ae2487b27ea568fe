"""Texts to train on: read once into a file of tokens, then cut into pieces that are drawn anew in every epoch.

In: sources of texts, each `NAME[:SPLIT][@TOKENS]`: a folder with `docs.jsonl[.gz]` (only documents whose `split` is
SPLIT), a text file, or `hub:OWNER/NAME:SPLIT` (streamed; column `text`), and how many tokens of it at most. Out: a
`TokenFile`; `pieces` of it, whole windows of one document each, in an order that follows from a seed and an epoch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memo.errors import SettingsError, reason
from memo.evaluate.data import lines
from memo.evaluate.hub import PREFIX, datasets, is_hub
from memo.models import untrusted, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Source:
    """Where texts come from. tokens: so many of them at most, 0: all."""

    name: str
    split: str = ""
    tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> Source:
        """`NAME[:SPLIT][@TOKENS]`."""
        rest, _, tokens = text.rpartition("@")
        if not tokens.isdecimal():
            rest, tokens = text, "0"
        prefix = PREFIX if is_hub(rest) else ""
        name, _, split = rest.removeprefix(prefix).partition(":")
        return cls(prefix + name, split, int(tokens))

    @property
    def state(self) -> list[Any]:
        """What tells it from others, and from itself before a change."""
        path = Path(self.name)
        files = sorted(path.glob("docs.jsonl*")) if path.is_dir() else [path] if path.exists() else []
        known = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return [self.name if is_hub(self.name) else known, self.split, self.tokens]

    def texts(self) -> Iterator[str]:
        """Its documents, in order.

        Raises:
            SettingsError: there is no such folder, file or set, or none of its documents is of that split.
        """
        if is_hub(self.name):
            yield from _hub(self.name.removeprefix(PREFIX), self.split or "train")
        elif Path(self.name).is_dir():
            found = False
            for line in lines(Path(self.name), "docs"):
                if not self.split or line.get("split") == self.split:
                    found = True
                    yield str(line.get("text") or "")
            if not found:
                raise SettingsError(f"{self.name} has no document of the split {self.split!r}.")
        else:
            try:
                yield Path(self.name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{self.name} cannot be read as text.", "Name a folder or a text file.") from error


def _hub(name: str, split: str) -> Iterator[str]:
    library = datasets()
    try:
        for row in library.load_dataset(name, split=split, streaming=True):
            yield row["text"]
    except Exception as error:  # whatever the hub and the network come up with, at any row
        told = f"{name} cannot be read: {reason(error).rstrip('.')}."
        raise SettingsError(told, "Check its name and the network.") from error


@dataclass(frozen=True)
class TokenFile:
    """Tokens of many documents on disk, one after the other."""

    ids: np.ndarray  # (N,) memory-mapped
    bounds: tuple[int, ...]  # where each document begins, and last where all end
    sources: tuple[int, ...]  # tokens of each source

    @classmethod
    def load(cls, index: Path) -> TokenFile:
        """What `tokenize` wrote. index: its JSON file; the tokens lie beside it."""
        known: dict[str, Any] = json.loads(index.read_text())
        ids = np.memmap(index.with_suffix(".bin"), dtype="<u4", mode="r")
        return cls(ids, tuple(known["bounds"]), tuple(known["sources"]))

    def piece(self, start: int, count: int) -> Tensor:
        """(count,) int64"""
        return torch.from_numpy(self.ids[start : start + count].astype(np.int64))

    def document_of(self, place: int) -> int:
        """The number of the document that a place lies in."""
        return bisect_right(self.bounds, place) - 1


def joined(documents: Sequence[np.ndarray]) -> TokenFile:
    """A token file of these documents, in memory."""
    bounds = tuple(itertools.accumulate(map(len, documents), initial=0))
    return TokenFile(np.concatenate(documents), bounds, (bounds[-1],))


def key_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """What tells a tokenizer from others."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def plainly(sources: Sequence[Source], tokenizer: PreTrainedTokenizerFast, folder: Path) -> TokenFile:
    """`tokenize` with nothing put before a text; special tokens in it are taken as text."""
    engine = untrusted(tokenizer)
    return tokenize(sources, lambda text: engine.encode(text, add_special_tokens=False).ids, key_of(tokenizer), folder)


def tokenize(sources: Sequence[Source], encode: Callable[[str], list[int]], key: str, folder: Path) -> TokenFile:
    """The token file of these sources in `folder`, made on the first call; texts are read one at a time.

    key: what tells this tokenizer from others.

    Raises:
        SettingsError: a source cannot be read, or there is no text in any.
    """
    about = json.dumps([key, *(source.state for source in sources)])
    stem = folder / f"tokens-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    data, index, temporary = stem.with_suffix(".bin"), stem.with_suffix(".json"), stem.with_suffix(".tmp")
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            bounds, counts = _write(sources, encode, temporary)
            temporary.replace(data)
        finally:
            temporary.unlink(missing_ok=True)
        write_atomic(index, json.dumps({"bounds": bounds, "sources": counts}))
    return TokenFile.load(index)


def _write(sources: Sequence[Source], encode: Callable[[str], list[int]], path: Path) -> tuple[list[int], list[int]]:
    """Writes the tokens. -> where documents begin and all end, tokens of each source"""
    bounds, counts = [0], []
    with path.open("wb") as file:
        for source in sources:
            first = bounds[-1]
            for text in source.texts():
                ids = encode(text)
                room = source.tokens - (bounds[-1] - first) if source.tokens else len(ids)
                np.asarray(ids[:room], dtype="<u4").tofile(file)
                bounds.append(bounds[-1] + min(len(ids), room))
                if source.tokens and bounds[-1] - first >= source.tokens:
                    break
            counts.append(bounds[-1] - first)
    if not bounds[-1]:
        raise SettingsError("There is no text in what is to be trained on.")
    return bounds, counts


@dataclass(frozen=True)
class Piece:
    """So many whole windows of one document."""

    start: int
    windows: int


def pieces(tokens: TokenFile, window: int, most: int, least: int, seed: int, epoch: int) -> list[Piece]:
    """All documents cut into pieces of `most` windows, what is left over of `least` at least, in random order.

    Where a document's first piece begins is drawn too, so that every epoch cuts elsewhere.
    """
    drawn, found = random.Random(f"{seed} pieces {epoch}"), []
    for begin, end in itertools.pairwise(tokens.bounds):
        start = begin + drawn.randrange(window) if end - begin > (least + 1) * window else begin
        while (whole := min((end - start) // window, most)) >= least:
            found.append(Piece(start, whole))
            start += whole * window
    drawn.shuffle(found)
    return found


def batches(found: Sequence[Piece], size: int, seed: int) -> list[list[Piece]]:
    """Batches of `size` pieces of as many windows each, in random order; what does not fill one is left out."""
    lengths: dict[int, list[Piece]] = {}
    for piece in found:
        lengths.setdefault(piece.windows, []).append(piece)
    full = [same[i : i + size] for same in lengths.values() for i in range(0, len(same) - size + 1, size)]
    random.Random(f"{seed} batches").shuffle(full)
    return full
