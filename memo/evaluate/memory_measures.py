"""The measurements of `memory`: each takes one text (or document) under one configuration and returns its rows.

In: a `Bench`, a text, what varies. Out: rows; `text` names the text, `wanted_ratio` is the ratio asked for and `ratio`
the real one (raised where the text would not fit the positions), `slots` the entries kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memo.evaluate import lookup
from memo.evaluate.eviction import METHODS
from memo.evaluate.probes import NEXT, Case, Context, cut, nothing, remembered, remembered_alone, score
from memo.evaluate.rows import Row
from memo.memory import DocumentMemory, Memory, MemoryModel, read_all
from memo.placement import slot_count, windows

LOOKUP_METHODS = ("streaming", "snapkv")


@dataclass
class Bench:
    """What all measurements share."""

    model: MemoryModel
    texts: list[tuple[str, str]]
    ratio: int
    window: int
    seed: int
    _cases: dict[tuple[str, int], Case] = field(default_factory=dict)
    _documents: dict[tuple[int, int, int], DocumentMemory] = field(default_factory=dict)

    def case(self, name: str, text: str, tokens: int) -> Case:
        """The last one is kept: the units of one text and length come one after the other."""
        if (name, tokens) not in self._cases:
            self._cases = {(name, tokens): Case(self.model, name, text, tokens, self.seed)}
        return self._cases[name, tokens]

    def memorize(self, text: str, ratio: int, window: int, document: str = "text") -> DocumentMemory:
        return read_all(self.model.memorize(text, document, ratio, window))

    def entries(self, tokens: int, ratio: int) -> tuple[int, int]:
        """The ratio that fits, and how many slots the memory of so many tokens has at it."""
        ratio = self.model.fitting_ratio(tokens, ratio, self.window)
        return ratio, sum(slot_count(stop - start, ratio) for start, stop in windows(tokens, self.window))

    def part(self, index: int, number: int, tokens: int) -> str:
        """The number-th piece of a text: so many tokens, and those behind it that no other piece has."""
        text = self.texts[index][1]
        for _ in range(number):
            text = cut(self.model, text, tokens + 2 * NEXT)[1]
        return text

    def document(self, index: int, number: int, tokens: int) -> DocumentMemory:
        """The memory of such a piece."""
        if (index, number, tokens) not in self._documents:
            text = cut(self.model, self.part(index, number, tokens), tokens)[0]
            made = self.memorize(text, self.ratio, self.window, f"{index}.{number}")
            self._documents[index, number, tokens] = made
        return self._documents[index, number, tokens]


# --- loss and copy ---------------------------------------------------------------------------------------------------


def _both(about: Row, found: dict[str, float]) -> list[Row]:
    return [
        {"measure": "loss", **about, "loss": found["loss"]},
        {"measure": "copy", **about, "copy": found["copy"], "facts": found["facts"]},
    ]


def against(bench: Bench, name: str, text: str, tokens: int, ratios: Sequence[int]) -> list[Row]:
    """No context; where the positions suffice the full one too, and every way to evict from its cache."""
    case = bench.case(name, text, tokens)
    about = {"text": name, "tokens": tokens}
    rows = _both({**about, "method": "none"}, case.measure(nothing(bench.model)))
    if not case.fits:
        return rows
    rows += _both({**about, "method": "full", "slots": len(case.ids)}, case.measure(case.full))
    for ratio in ratios:
        fitting, entries = bench.entries(len(case.ids), ratio)
        for method in METHODS:
            told = about | {"method": method, "ratio": fitting, "wanted_ratio": ratio, "slots": entries}
            rows += _both(told, case.measure(case.evicted(method, entries)))
    return rows


def by_memory(bench: Bench, name: str, text: str, tokens: int, ratio: int, window: int) -> list[Row]:
    case = bench.case(name, text, tokens)
    one = bench.memorize(case.text, ratio, window)
    about = {"text": name, "tokens": tokens, "method": "memory", "ratio": one.ratio, "wanted_ratio": ratio}
    found = case.measure(remembered_alone(bench.model, one))
    return _both({**about, "window": window, "slots": one.slots}, found)


# --- several documents -----------------------------------------------------------------------------------------------


def composition(bench: Bench, index: int, tokens: int, documents: Sequence[int]) -> list[Row]:
    """Document A, the beginning of a text, among others: pieces of other texts (of the same if it is the only one)."""
    name, text = bench.texts[index]
    case = bench.case(name, text, tokens)
    about = {"measure": "composition", "text": name, "tokens": tokens}
    rows = [{**about, "method": "none", **case.measure(nothing(bench.model))}]
    if case.fits:
        rows.append({**about, "method": "full", **case.measure(case.full)})
    a = bench.document(index, 0, tokens)
    drawn = random.Random(f"{bench.seed} {name}")
    others = beside(bench, index, tokens, max(documents) - 1)
    drawn.shuffle(others)
    for k in documents:
        if k - 1 > len(others):
            continue
        places = {"first": 0, "drawn": drawn.randrange(k)} if k > 1 else {"first": 0}
        for place, at in places.items():
            parts = [bench.document(*other, tokens) for other in others[: k - 1]]
            parts.insert(at, a)
            memory = Memory(bench.model)
            for part in parts:
                memory.add(part)
            if memory.compose().left_out:
                continue
            told = {"method": "memory", "ratio": a.ratio, "wanted_ratio": bench.ratio, "window": bench.window}
            told |= {"documents": k, "place": place, "slots": len(memory.compose().slots)}
            rows.append({**about, **told, **case.measure(remembered(memory))})
    return rows


def beside(bench: Bench, index: int, tokens: int, count: int) -> list[tuple[int, int]]:
    """(text, piece) of `count` documents to stand beside a text's beginning; fewer where the texts have no more."""
    alone = len(bench.texts) == 1
    texts = [i for i in range(len(bench.texts)) if i != index or alone]
    found: list[tuple[int, int]] = []
    number = int(alone)
    while texts and len(found) < count:
        # a piece counts if it is whole
        texts = [i for i in texts if cut(bench.model, bench.part(i, number, tokens), tokens)[1]]
        found += [(i, number) for i in texts]
        number += 1
    return found[:count]


def removal(bench: Bench, index: int, tokens: int) -> list[Row]:
    """A and B together, A taken out: slots and logits against those of B alone."""
    name, text = bench.texts[index]
    a = bench.document(index, 0, tokens)
    b = bench.document(*beside(bench, index, tokens, 1)[0], tokens)
    alone, both = Memory(bench.model), Memory(bench.model)
    alone.add(b)
    both.add(a)
    both.add(b)
    both.compose()
    both.remove(a.document)
    one, other = alone.compose().slots, both.compose().slots
    pairs = list(zip(one.keys + one.values, other.keys + other.values, strict=True))
    ids = bench.case(name, text, tokens).next_ids
    losses = [score(bench.model, remembered(memory), ids, 1)[0] for memory in (alone, both)]
    pairs.append((losses[0], losses[1]))
    largest = max((x.float() - y.float()).abs().max().item() for x, y in pairs)
    same = all(torch.equal(x, y) for x, y in pairs)
    about = {"measure": "removal", "text": name, "tokens": tokens, "method": "memory"}
    return [about | {"exact": same, "largest_difference": largest}]


# --- looking up ------------------------------------------------------------------------------------------------------


def looking_up(bench: Bench, index: int, tokens: int, variant: int, ratios: Sequence[int]) -> list[Row]:
    """A pass key at one depth, a fact at another; over the variants both come to every depth."""
    name, text = bench.texts[index]
    count = len(lookup.DEPTHS)
    depths = {"passkey": lookup.DEPTHS[variant], "fact": lookup.DEPTHS[(variant + 2) % count]}
    needles = {kind: lookup.make(kind, f"{bench.seed} {name} {variant}") for kind in lookup.KINDS}
    with_needles = lookup.insert(
        cut(bench.model, text, tokens)[0], [(needles[kind], depths[kind]) for kind in lookup.KINDS]
    )
    case = Case(bench.model, name, with_needles, 2 * tokens, bench.seed)  # all of it
    about = {"measure": "lookup", "text": name, "tokens": tokens}

    def ask(context: Context, **told: Any) -> list[Row]:
        return [
            {**about, **told, "kind": kind, "depth": depths[kind], **lookup.look_up(bench.model, context, needle)}
            for kind, needle in needles.items()
        ]

    rows = ask(nothing(bench.model), method="none")
    if case.fits:
        rows += ask(case.full, method="full", slots=len(case.ids))
    for ratio in ratios:
        one = bench.memorize(with_needles, ratio, bench.window)
        told = {"ratio": one.ratio, "wanted_ratio": ratio, "slots": one.slots}
        rows += ask(remembered_alone(bench.model, one), method="memory", window=bench.window, **told)
        for method in LOOKUP_METHODS if case.fits else ():
            rows += ask(case.evicted(method, one.slots), method=method, **told)
    return rows
