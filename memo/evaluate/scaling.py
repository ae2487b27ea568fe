"""How time and room grow with documents, tokens, visitors and workers.

In: models, a text, how many of each. Out: rows for each part, with the least seconds of several rounds.

    documents    a library of more and more short documents: memorizing, room, one question
    tokens       one document, longer and longer: memorizing, room, loading, the first clue
    visitors     seconds to the first clue when several ask at once
    engines      the same files memorized by this process and by Ray's workers, and whether the libraries are the same
    store        a kNN datastore of more and more entries
    costs        what a million tokens take, told by the parts above

Ratios (`…_ratio`) are to the first row of a part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memo import scale
from memo.documents import Document
from memo.evaluate import decoder_bench, speed_asking, speed_memory
from memo.evaluate.rows import Rows
from memo.evaluate.speed_memory import Bench, Table, cut, slope
from memo.evaluate.turns import seconds_of, short, spent
from memo.library import Library
from memo.models import Models
from memo.passages import split
from memo.pipeline import MemoRAG, finish
from memo.settings import Settings
from memo.train.texts import joined

SHORT = 128  # tokens of a short document
FILE = 500  # tokens of a file that engines memorize
ASKED = 16  # tokens of an answer: a question's time shall not hang on how long the answer came out
QUESTION = "Who is named in this text, and what do they do?"
MILLION = 1_000_000


def evaluate(
    models: Models, settings: Settings, folder: Path, text: str, *, documents: Sequence[int], lengths: Sequence[int],
    visitors: Sequence[int], entries: Sequence[int], workers: Sequence[int], files: int, repeats: int, rows: Rows,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Measures all parts. folder: for libraries and files, which can be deleted afterwards. text: what documents are
    cut from. rows: keeps the parts as they are measured; what is in it is not measured again.

    Raises:
        SettingsError: Ray is not installed, and `workers` are wanted.
        MemoryTooLong: a length is too much for the model.
    """
    model = models.memory_model()
    bench = Bench(model, settings, folder, text, repeats, tell)
    parts: dict[str, Callable[[], Table]] = {
        "documents": lambda: libraries(bench, models, documents),
        "tokens": lambda: tokens(bench, lengths),
        "visitors": lambda: speed_asking.visitors(bench, models, visitors),
        "engines": lambda: engines(bench, models, files, workers),
        "store": lambda: store(bench, entries),
    }
    for name, measure in parts.items():
        if name not in rows.done:
            tell(f"Measuring {name}.")
            rows.add(name, measure())
    found = {name: rows.done[name] for name in parts}
    took = "core_seconds" if model.device.type == "cpu" else "seconds"
    grown = [(row["entries"], row[took]) for row in found["store"]]
    what = {
        "models": models.names(), "device": str(model.device), "ratio": settings.ratio, "window": settings.window,
        "positions": model.max_positions, "short": SHORT, "file": FILE, "answer": ASKED, "repeats": repeats,
    }  # fmt: skip
    exponent = short(slope(grown)) if len(grown) > 1 else None
    return {"what": what, **found, "store_exponent": exponent, "costs": costs(found)}


def compared(rows: Table, *names: str) -> Table:
    """The rows, with the ratios of some numbers to the first row's."""
    first = rows[0]
    return [row | {f"{name}_ratio": short(row[name] / first[name]) for name in names} for row in rows]


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def some(bench: Bench, count: int, tokens: int) -> list[Document]:
    """Documents of so many tokens each, every one from another place of the text on."""
    found = []
    for number in range(count):
        place = len(bench.text) * (number * 37 % 101) // 101
        text = cut(bench.model, f"Document {number}. {bench.text[place:]}\n\n{bench.text[:place]}", tokens)
        found.append(Document(f"{number:016x}", f"{number:04}.txt", text))
    return found


def libraries(bench: Bench, models: Models, counts: Sequence[int]) -> Table:
    """Libraries of so many short documents. seconds_per_1000: of memorizing 1,000 tokens, indexing and all, of the
    documents that came last; ask_seconds: of a question once everything is loaded."""
    asking, rounds = replace(bench.settings, answer_tokens=ASKED), list[Table]()
    everything = some(bench, max(counts), SHORT)
    for turn in range(bench.repeats):
        rounds.append(rows := [])
        with Library(bench.folder / f"documents-{turn}", models.embedder) as library:
            rag = MemoRAG(library, models, asking)
            for before, count in zip((0, *counts), counts, strict=False):
                new = everything[before:count]
                took = spent(lambda rag=rag, new=new: list(rag.memorize(new)))
                entries = list(library.documents.values())
                fresh = sum(entry.tokens for entry in entries[before:])
                finish(rag.ask(QUESTION))  # what is loaded once is loaded
                asked = min(seconds_of(lambda rag=rag: finish(rag.ask(QUESTION))) for _ in range(bench.repeats))
                memory = library.memory(bench.model).compose()
                rows.append({
                    "documents": count, "tokens": sum(entry.tokens for entry in entries),
                    "passages": sum(len(library.passages(entry.id)) for entry in entries),
                    **{f"{name}_per_1000": 1000 * value / fresh for name, value in took.items()},
                    "ask_seconds": asked,
                    "memory_bytes": sum(entry.bytes for entry in entries),
                    "chroma_bytes": size(library.root / "chroma"),
                    "words_bytes": size(library.root) - size(library.root / "chroma") - size(library.folder),
                    "text_bytes": sum(path.stat().st_size for path in library.folder.glob("*/text.txt")),
                    "slots": sum(entry.slots for entry in entries), "slots_seen": len(memory.owners),
                })  # fmt: skip
                bench.tell(f"documents, round {turn + 1}: {count}, a question takes {asked:.1f} s")
            vectors = library.index.vectors(library.passages(everything[0].id)) or [[]]
            dimensions = len(vectors[0])
    timed = [name for name in rounds[0][0] if "seconds" in name]
    best = [one | {name: short(min(rows[i][name] for rows in rounds)) for name in timed}
            for i, one in enumerate(rounds[0])]  # fmt: skip
    embedder = models.embedder()
    texts = [passage.text for one in everything[:100]
             for passage in split(one, embedder.tokenizer, bench.settings.passage_tokens)]  # fmt: skip
    embedded = [spent(lambda: embedder.encode(texts)) for _ in range(bench.repeats)]
    share = best[-1]["passages"] / len(texts)
    best[-1] |= {"dimensions": dimensions}
    best[-1] |= {f"embedding_{name}": short(share * min(one[name] for one in embedded)) for name in embedded[0]}
    return compared(best, "documents", "seconds_per_1000", "core_seconds_per_1000", "ask_seconds", "memory_bytes",
                    "chroma_bytes")  # fmt: skip


def tokens(bench: Bench, lengths: Sequence[int]) -> Table:
    """One document of so many tokens."""
    rows = [
        {
            **{name: row[name] for name in ("tokens", "slots", "memory_ratio", "bytes")},
            "seconds_per_1000": short(1000 * row["memorize_seconds"] / row["tokens"]),
            "load_seconds": min(row["load_seconds"]), "clue_seconds": min(row["clue_seconds"]),
        }
        for row in speed_memory.documents(bench, lengths)
    ]  # fmt: skip
    return compared(rows, "tokens", "seconds_per_1000", "bytes", "load_seconds", "clue_seconds")


def engines(bench: Bench, models: Models, count: int, workers: Sequence[int]) -> Table:
    """The same files by one process, and by workers of Ray. seconds: with the models loaded, until the library has
    them; start_seconds: until workers are ready; keep_seconds: of putting what was made into the library, which this
    process does for all workers; same: whether the library is that of one process, to the last bit."""
    files = []
    for document in some(bench, count, FILE):
        files.append(bench.folder / document.name)
        files[-1].write_text(document.text, encoding="utf-8")
    with Library(bench.folder / "warm", models.embedder) as library:  # what is loaded once is loaded
        list(MemoRAG(library, models, bench.settings).memorize(files[:1]))
    rows, wanted = dict[str, dict[str, Any]](), None
    for turn in range(bench.repeats):
        with Library(bench.folder / f"one-{turn}", models.embedder) as library:
            made = list[Any]()
            making = spent(lambda made=made: made.extend(
                scale.made(path.read_bytes(), path.name, bench.settings.ratio, {}, models, bench.settings)
                for path in files))  # fmt: skip
            keeping = spent(lambda made=made, library=library: [scale.keep(library, one) for one in made])
            wanted = wanted or content(library)
            read = sum(entry.tokens for entry in library.documents.values())
            parts = {f"{name}_{unit}": part[unit] for unit in making for name, part in
                     (("make", making), ("keep", keeping))}  # fmt: skip
            alone = making["seconds"] + keeping["seconds"]
            least(rows, "one process", {"workers": 0, "tokens": read, "seconds": alone, **parts})
        for number in workers:
            began = time.perf_counter()
            with (
                scale.pool(bench.settings, number) as actors,
                Library(bench.folder / f"ray-{number}-{turn}", models.embedder) as library,
            ):
                start = time.perf_counter() - began
                rag = MemoRAG(library, models, bench.settings)
                took = seconds_of(lambda rag=rag, actors=actors: list(
                    scale.memorize(rag, files, bench.settings.ratio, actors)))  # fmt: skip
                row = {"seconds": took, "start_seconds": start, "workers": number, "same": content(library) == wanted}
            least(rows, f"Ray, {number}", row)
            bench.tell(f"engines, round {turn + 1}: Ray with {number} in {took:.1f} s, one process {alone:.1f} s")
    return compared([{"engine": name, **row} for name, row in rows.items()], "seconds")


def least(rows: dict[str, dict[str, Any]], name: str, row: dict[str, Any]) -> None:
    """Keeps the least seconds of a row's rounds, and whether it was the same in all of them."""
    before = rows.get(name, row)
    rows[name] = row | {key: short(min(row[key], before[key])) for key in row if key.endswith("seconds")}
    if "same" in row:
        rows[name]["same"] = row["same"] and before["same"]


def content(library: Library) -> list[Any]:
    """Checksums of the memories, passages and vectors of a library, in the order of its documents."""
    from safetensors import safe_open

    found = []
    for document in library.documents:
        with safe_open(library.folder / document / "memory.safetensors", "pt") as file:
            checksum = file.metadata()["sha256"]
        passages = library.passages(document)
        found.append((document, checksum, passages, library.index.vectors(passages)))
    return found


def store(bench: Bench, sizes: Sequence[int]) -> Table:
    """A kNN datastore of about so many entries."""
    ids = np.array(bench.model.encode(cut(bench.model, bench.text, max(sizes) + 100), start=False)[0])
    rows = decoder_bench.stores(bench.model.model, joined([ids]), sizes, bench.folder)
    return compared(rows, "entries", "seconds", "core_seconds", "index_seconds", "bytes")


def costs(found: dict[str, Any]) -> dict[str, Any]:
    """What a million tokens take, told by the largest library and store and by the files of the engines: bytes,
    passages, seconds of this machine and seconds of its processors at work."""
    library, entries, one = found["documents"][-1], found["store"][-1], found["engines"][0]
    per = MILLION / library["tokens"]
    held = {name: round(per * library[f"{name}_bytes"]) for name in ("text", "memory", "chroma", "words")}
    held |= {"vectors": round(per * library["passages"] * library["dimensions"] * 4),
             "store": round(MILLION / entries["entries"] * entries["bytes"])}  # fmt: skip
    took = {
        unit: {
            "making": short(MILLION / one["tokens"] * one[f"make_{unit}"]),
            "keeping": short(MILLION / one["tokens"] * one[f"keep_{unit}"]),
            "embedding": short(per * library[f"embedding_{unit}"]),
            "store": short(MILLION / entries["entries"] * entries[unit]),
        }
        for unit in ("seconds", "core_seconds")
    }
    return {"bytes": held, "passages": round(per * library["passages"]), **took}
