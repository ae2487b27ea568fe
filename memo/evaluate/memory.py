"""What the memory keeps of a text, against no context, the full context, and evicting entries of the cache.

In: texts and a model with memory weights. Out: rows with means and 95 % intervals over texts:

    loss          of the 256 tokens that follow; recovery = (loss_none - loss) / (loss_none - loss_full), of the means
    copy          copy and fact accuracy, see `probes`
    composition   the same for document A, when its memory stands beside k - 1 others
    lookup        a pass key and a made-up fact at five depths, see `lookup`
    removal       whether taking A out again leaves B exactly as it was alone

One thing varies at a time, around a base of window, ratio and length: all ratios and methods at the base, all windows
at its ratio and length, all lengths at its ratio and window. A method keeps as many entries as the memory has slots.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memo.errors import MemoError, NothingToAsk, SettingsError
from memo.evaluate import metrics
from memo.evaluate.lookup import DEPTHS
from memo.evaluate.memory_measures import Bench, against, beside, by_memory, composition, looking_up, removal
from memo.evaluate.probes import NEXT, cut
from memo.evaluate.rows import Row, Rows
from memo.memory import MemoryModel

BUDGET = 40960  # tokens of text for one configuration: of longer texts there are fewer
TEXTS = 8
SHORTEST = 64  # tokens of a text: a span to be repeated has 48
MEASURES = ("loss", "copy", "composition", "lookup", "removal")
VALUES = ("loss", "copy", "facts", "share", "exact")  # of a row; what else it has tells its configuration
Unit = tuple[str, Callable[[], list[Row]]]


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """What is measured; the base is in it."""

    ratios: Sequence[int]
    windows: Sequence[int]
    lengths: Sequence[int]
    documents: Sequence[int]
    ratio: int
    window: int
    length: int
    lookup: int  # tokens of the texts that sentences are hidden in

    @property
    def lookup_ratios(self) -> list[int]:
        return [r for r in self.ratios if self.ratio / 2 <= r <= self.ratio * 2]

    def at(self, tokens: int) -> list[tuple[int, int]]:
        """(ratio, window) of the memories that are measured at a length."""
        if tokens != self.length:
            return [(self.ratio, self.window)]
        other = [(self.ratio, window) for window in self.windows if window != self.window]
        return [(ratio, self.window) for ratio in self.ratios] + other


def _base(values: Sequence[int], wanted: int) -> int:
    """The wanted value, or the middle of those there are."""
    return wanted if wanted in values else values[len(values) // 2]


def units(bench: Bench, grid: Grid, left_out: list[dict[str, Any]]) -> Iterator[Unit]:
    """Everything there is to do, text by text; what cannot be measured is added to `left_out`."""
    for tokens in grid.lengths:
        long_enough = [(name, text) for name, text in bench.texts if _is_longer(bench.model, text, tokens)]
        if not long_enough:
            left_out.append({"tokens": tokens, "why": "No text is that long."})
        fitting = []
        for ratio, window in grid.at(tokens):
            try:
                bench.model.fitting_ratio(tokens, ratio, window)
                fitting.append((ratio, window))
            except MemoError as error:
                left_out.append({"tokens": tokens, "ratio": ratio, "window": window, "why": str(error)})
        for name, text in long_enough[: _texts(tokens)]:
            ratios = grid.ratios if tokens == grid.length else [grid.ratio]
            key = f"{tokens} tokens of {name}"
            yield f"{key}, no memory", partial(against, bench, name, text, tokens, ratios)
            for ratio, window in fitting:
                told = f"{key}, ratio {ratio}, window {window}"
                yield told, partial(by_memory, bench, name, text, tokens, ratio, window)
    tokens = min(1024, grid.length)
    for index, (name, _) in enumerate(bench.texts):
        yield f"composition with {name}", partial(composition, bench, index, tokens, grid.documents)
        if beside(bench, index, tokens, 1):
            yield f"removal of {name}", partial(removal, bench, index, tokens)
    tokens = min(grid.lookup, grid.length)
    for index, (name, _) in enumerate(bench.texts[: _texts(tokens * len(DEPTHS))]):
        for variant in range(len(DEPTHS)):
            work = partial(looking_up, bench, index, tokens, variant, grid.lookup_ratios)
            yield f"lookup in {name}, {variant}", work


def _texts(tokens: int) -> int:
    """How many texts one configuration takes."""
    return max(1, BUDGET // tokens)


def _is_longer(model: MemoryModel, text: str, tokens: int) -> bool:
    """Whether so many tokens and those to be scored behind them are there."""
    return bool(cut(model, text, tokens + NEXT + 8)[1])


def evaluate(
    texts: list[tuple[str, str]], model: MemoryModel, *, ratios: Sequence[int] = (2, 4, 8, 16, 32, 64),
    windows: Sequence[int] = (256, 512, 1024, 2048), lengths: Sequence[int] = (1024, 4096, 7680, 16384, 65536),
    documents: Sequence[int] = (1, 2, 4, 8, 16), ratio: int = 8, window: int = 512, length: int = 4096,
    lookup: int = 2048, seed: int = 0,
    limit: int | None = None, rows: Path | None = None, tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:  # fmt: skip
    """Measures everything that `rows` does not hold yet; returns the summary of all.

    texts: (name, text); `limit` of those that are long enough are drawn (8 if None). ratio, window, length: the base,
    where one is not in its list the middle of that. lookup: tokens of the texts that sentences are hidden in. tell:
    progress, a dict for each unit of work.

    Raises:
        NothingToAsk: no text is long enough for the base.
        SettingsError: a list is empty or has too small a number, two texts have one name, or `rows` holds another run.
    """
    if len({name for name, _ in texts}) < len(texts):
        raise SettingsError("Two texts have the same name.", "Rename one of them.")
    for name, values in {"ratios": ratios, "windows": windows, "lengths": lengths, "documents": documents}.items():
        least = SHORTEST if name == "lengths" else 1
        if not values or min(values) < least:
            raise SettingsError(f"The {name} are {list(values)}.", f"Give at least one, from {least} up.")
    ratios, windows, lengths, documents = (sorted({*values}) for values in (ratios, windows, lengths, documents))
    grid = Grid(
        ratios, windows, lengths, documents, _base(ratios, ratio), _base(windows, window), _base(lengths, length),
        lookup,
    )
    shuffled = random.Random(seed).sample(texts, len(texts))
    chosen = list(islice((one for one in shuffled if _is_longer(model, one[1], grid.length)), limit or TEXTS))
    if not chosen:
        raise NothingToAsk(f"No text has {grid.length + NEXT:,} tokens.", "Give longer texts, or shorter lengths.")
    what = {
        "model": model.fingerprint, "weights": model.weights_fingerprint, "dtype": str(model.model.dtype),
        "texts": [name for name, _ in chosen], "seed": seed,
        "base": {"ratio": grid.ratio, "window": grid.window, "tokens": grid.length}, "lookup": grid.lookup,
        "ratios": ratios, "windows": windows, "lengths": lengths, "documents": documents,
    }  # fmt: skip
    content = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
    kept = Rows(rows, what | {"measure": "memory", "content": content})
    left_out: list[dict[str, Any]] = []
    todo = list(units(Bench(model, chosen, grid.ratio, grid.window, seed), grid, left_out))
    for number, (key, work) in enumerate(todo, start=1):
        if key not in kept.done:
            kept.add(key, work())
            tell({"done": number, "of": len(todo), "unit": key})
    every = [row for key, _ in todo for row in kept.done[key]]
    return {"what": what | {"left_out": left_out}, "rows": summarise(every, seed)}


# --- from rows to figures --------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """One row for each configuration: of each value the mean over texts and its interval."""
    references = {(row["measure"], row["tokens"], row["text"], row["method"]): row.get("loss") for row in rows}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for about in _groups(row):
            groups.setdefault(json.dumps(about), []).append(row)
    summary = []
    for about, members in groups.items():
        row = json.loads(about)
        row["n"] = len({member["text"] for member in members})
        if "slots" in members[0]:
            row["slots"] = round(sum(member["slots"] for member in members) / len(members))
        if row["measure"] == "removal":
            row["exact"] = all(member["exact"] for member in members)
            row["largest_difference"] = max(member["largest_difference"] for member in members)
        else:
            for name in VALUES:
                if name in members[0]:
                    values, clusters = [m[name] for m in members], [m["text"] for m in members]
                    row[name] = metrics.interval(values, clusters, seed)
            if "loss" in row:
                row |= recovery(members, references, seed)
        summary.append(row)
    return sorted(summary, key=_order)


def _groups(row: Row) -> Iterator[Row]:
    """The configuration of a row; of a look-up also that of all depths together."""
    about = {name: value for name, value in row.items() if name not in (*VALUES, "text", "slots", "largest_difference")}
    yield about
    if "depth" in about:
        yield about | {"depth": None}


def _order(row: Row) -> tuple[Any, ...]:
    """By measure, length and depth; otherwise as they came."""
    depth = row.get("depth", 0)
    return MEASURES.index(row["measure"]), row["tokens"], row.get("kind", ""), 101 if depth is None else depth


def recovery(members: Sequence[Row], references: dict[tuple, float], seed: int) -> dict[str, dict[str, Any]]:
    """(loss_none - loss) / (loss_none - loss_full), of means over texts; nothing where no full context was measured."""
    losses = []
    for row in members:
        of = (row["measure"], row["tokens"], row["text"])
        if (*of, "full") not in references:
            return {}
        losses.append([references[*of, "none"], row["loss"], references[*of, "full"]])

    def ratio(means: Any) -> Any:
        return (means[..., 0] - means[..., 1]) / (means[..., 0] - means[..., 2])

    low, high = metrics.bootstrap(ratio, losses, [row["text"] for row in members], seed)
    mean = float(ratio(np.mean(losses, axis=0)))
    return {"recovery": {"mean": round(mean, 4), "low": low, "high": high, "n": len(losses)}}
