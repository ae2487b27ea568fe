"""How fast memo is: ratios, measured in turns in one process, and the seconds they are made of.

In: models, and a long text. Out: a table of rows for each part.

    memorize      memorizing tokens/s over plain prefill tokens/s
    first_clue    reading the text again in the faster of two ways (beyond the positions: memorizing it anew) over the
                  first clue from memory
    bytes         bytes of a memory over bytes of the plain K and V cache; bytes of its file
    load          loading a memory over making it
    exponent      how the seconds of memorizing grow with the tokens
    compare       four answers in one batch over the four alone
    search        a search in Chroma over embedding its query
    visitors      first clue among several visitors over the first clue alone
    walk          the timeline of one comparison
    peak          memory of the process

A ratio is the median of `repeats` rounds; `low` and `high` are the least and the most of them. One round before them
warms up. Seconds and tokens/s beside it are medians of their own.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memo.evaluate import speed_asking, speed_memory
from memo.evaluate.rows import Rows
from memo.evaluate.speed_memory import Bench
from memo.library import text_hash
from memo.models import Models
from memo.settings import Settings


def evaluate(
    models: Models, settings: Settings, folder: Path, *, text: str, repeats: int = 3,
    lengths: Sequence[int] = (1024, 2048, 4096, 8192), long_lengths: Sequence[int] = (16384, 32768, 65536),
    exponent_lengths: Sequence[int] = (2048, 4096, 8192, 16384, 32768, 65536, 131072),
    passages: Sequence[int] = (1000, 10000, 100000), visitors: Sequence[int] = (1, 4, 8), rows: Path | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Measures everything. folder: for libraries and files; what is put there can be deleted afterwards.

    lengths: tokens that the model's positions hold (cut to them). long_lengths: tokens beyond. passages: sizes of a
    collection. visitors: how many ask at once. rows: a file that keeps each part as it is measured, with the peak
    of memory after it; what is in it is not measured again. text: repeated, with other beginnings, where it is shorter
    than a length.

    Raises:
        MemoryTooLong: one of the lengths is more than the model can memorize.
    """
    model = models.memory_model()
    models.generator(), models.embedder()
    loaded = peak_bytes()
    bench = Bench(model, settings, folder, text, repeats, tell)
    documents = sorted({*lengths, *long_lengths, *exponent_lengths})
    model.fitting_ratio(documents[-1], settings.ratio, settings.window)
    what = {
        "models": models.names(), "device": str(model.device), "dtype": str(model.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "ratio": settings.ratio, "window": settings.window,
        "positions": model.max_positions, "text_sha256": text_hash(text), "text_tokens": len(model.encode(text)[0]),
        "repeats": repeats, "lengths": list(lengths), "document_lengths": documents, "passages": list(passages),
        "visitors": list(visitors), "notes": NOTES,
    }  # fmt: skip
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "memorize": lambda: speed_memory.memorize(bench, lengths),
        "rereading": lambda: speed_memory.rereading(bench, lengths),
        "documents": lambda: list(speed_memory.documents(bench, documents)),
        "compare": lambda: speed_asking.compare(bench, models),
        "walk": lambda: speed_asking.walk(bench, models),
        "visitors": lambda: speed_asking.visitors(bench, models, visitors),
        "search": lambda: speed_asking.search(bench, models, passages),
    }
    kept = Rows(rows, what)
    for name, measure in parts.items():
        if name not in kept.done:
            tell(f"Measuring {name}.")
            kept.add(name, [*measure(), {"after": name} | peak(loaded)])  # one unit: a kill leaves both or neither
    done = {name: kept.done[name][:-1] for name in parts}
    measured = done["documents"]
    return {
        "what": what,
        "memorize": done["memorize"],
        "first_clue": done["rereading"] + speed_memory.beyond(measured, long_lengths),
        "bytes": speed_memory.sizes(measured),
        "load": speed_memory.loads(measured),
        "exponent": speed_memory.growth(measured, exponent_lengths),
        "compare": done["compare"],
        "search": done["search"],
        "visitors": done["visitors"],
        "walk": done["walk"],
        "peak": [kept.done[name][-1] for name in parts],
    }


NOTES = {
    "text": "A text shorter than a length is repeated, each time from another place on.",
    "memorize": "Plain prefill: one causal pass of the unchanged model that keeps its K and V.",
    "first_clue": "From a memory in RAM, its slots put in their places, to the first token of any of the clues."
    " Instead: to the first token of an answer whose prompt holds the text, as much of it as the positions hold with"
    " the question; the faster, round by round, of reading that prompt as memo reads every prompt, in pieces, and of"
    " one causal pass of the unchanged model over its tokens. Beyond the positions, memorizing anew (once) and the"
    " first clue.",
    "load": "Memorizing was timed once a length, loading in each round. The file was just written: it comes from the"
    " system's cache.",
    "exponent": "The slope of log(seconds) over log(tokens). memory_ratio: text tokens a slot; it is raised where the"
    " text would not fit the positions otherwise.",
    "compare": "Each round asks another question; over the sum, and over the slowest, of the same four asked alone.",
    "search": "The passages are random unit vectors, put into the collection directly; the queries are pieces of the"
    " text, embedded for real.",
    "visitors": "Threads that share the models, each with a session and a library of their own; all go on until the"
    " last one has a first clue. The app answers only a few at a time: visitors beyond those wait until one of them is"
    " done, which is not in these numbers.",
    "peak": "The most resident memory of the process so far, and how much more than after loading the models. Where a"
    " run was ended and went on, the peak starts anew: it is then of the parts since.",
}


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(loaded: int) -> dict[str, int]:
    """loaded: `peak_bytes` right after the models were loaded."""
    now = peak_bytes()
    return {"peak_bytes": now, "loaded_bytes": loaded, "above_loaded_bytes": now - loaded}
