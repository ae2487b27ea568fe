"""The question sets beside one another: what was found, what was said, what memorag's parts add, and where it loses.

In: {name of the set: results of its file}. Out: parts of Markdown. A strategy or a metric that no file has is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from memo.evaluate.report_tables import (
    COSTS,
    FOUND,
    SAID,
    Column,
    against_rag,
    certain,
    counts,
    difference,
    signed,
    table,
)
from memo.evaluate.strategies import EVERY, PARTS, WITH_PASSAGES
from memo.plots_style import Results, number

ANSWERING = tuple(name for name in EVERY if name not in PARTS)
RANKING = tuple(name for name in WITH_PASSAGES if name not in PARTS)
RIVALS = tuple(name for name in RANKING if name not in ("rag", "memorag"))
FEWER_IS_BETTER = ("answered_anyway",)

Sets = Mapping[str, Results]


def by_value(sets: Sets, value: Callable[[Results], Any]) -> str:
    """A value of all sets; where they differ in it, each value with its sets."""
    values: dict[str, list[str]] = {}
    for name, results in sets.items():
        values.setdefault(str(value(results)), []).append(name)
    return next(iter(values)) if len(values) == 1 else ", ".join(f"{v} ({', '.join(of)})" for v, of in values.items())


def retrieval(sets: Sets) -> list[str]:
    """How much of the evidence is found, and how early."""
    evidence = by_value(sets, lambda results: results.get("evidence", "not told"))
    return [
        "## Retrieval",
        "recall@3, the share of the evidence among the first three passages. Means; bold: the best of a row.",
        _beside(sets, "recall@3", RANKING, "n"),
        "MRR, 1 / rank of the first passage that holds evidence.",
        _beside(sets, "reciprocal_rank", RANKING, "n"),
        f"Evidence: {evidence}.",
    ]


def answers(sets: Sets) -> list[str]:
    """How good the answers are, and what they cost."""
    timed = [v["n"] for r in sets.values() for s in r["strategies"].values() if (v := s.get("seconds"))]
    seconds = f" Seconds: of {_from_to(timed)} questions a set, each strategy alone." if timed else ""
    return [
        "## Answers",
        "Both measures for every set: F1 suits short answers, ROUGE-L (words in their order) those of several"
        " sentences. Means; bold: the best of a row.",
        "F1:",
        _beside(sets, "f1", ANSWERING, "n answered"),
        "ROUGE-L:",
        _beside(sets, "rouge_l", ANSWERING, "n answered"),
        "What an answer costs and rests on, the mean of the sets’ means. Prompt tokens: clues included. Cited: share of"
        " its sentences with a citation; supported: share of the cited places that hold evidence or an answer, of those"
        f" answers that cite.{seconds}",
        _costs(sets),
    ]


def _beside(sets: Sets, metric: str, strategies: Sequence[str], count: str) -> str:
    """Sets down, strategies across, at the end memorag's lead over rag."""
    rows = []
    for name, results in sets.items():
        found = {s: value for s in strategies if (value := results["strategies"].get(s, {}).get(metric))}
        if found:
            rows.append((name, results, found, _bold({s: f"{value['mean']:.2f}" for s, value in found.items()})))
    there = [s for s in strategies if any(s in row[2] for row in rows)]
    return table(
        rows, ("set", lambda r: r[0]), (count, lambda r: counts(r[2].values())),
        *[(s, lambda r, s=s: r[3].get(s, "")) for s in there],
        ("memorag − rag", lambda r: difference(against_rag(r[1], "memorag", metric))),
    )  # fmt: skip


def _bold(cells: Mapping[str, str]) -> dict[str, str]:
    """The best of several in bold, all of them where they read the same; one alone is not the best of anything."""
    best = max(cells.values(), key=float) if len(cells) > 1 else None
    return {name: f"**{cell}**" if cell == best else cell for name, cell in cells.items()}


def _costs(sets: Sets) -> str:
    """Strategies down; how many sets a mean is of stands behind it, unless it is all of them."""

    def cell(strategy: str, metric: str) -> str:
        found = [r["strategies"].get(strategy, {}).get(metric) for r in sets.values()]
        means = [value["mean"] for value in found if value]
        if not means:
            return ""
        mean = sum(means) / len(means)
        told = number(mean) if metric in COSTS else f"{mean:.2f}"
        return told if len(means) == len(sets) else f"{told} ({_several(len(means), 'set')})"

    titles = COSTS | {name: SAID[name] for name in ("cited", "supported")}
    rows = [s for s in ANSWERING if any(cell(s, metric) for metric in titles)]
    columns: list[Column] = [(title, lambda s, metric=metric: cell(s, metric)) for metric, title in titles.items()]
    return table(rows, ("strategy", str), *columns)


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _from_to(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def ablation(sets: Sets) -> list[str]:
    """recall@3 without each part of memorag."""
    parts = list(dict.fromkeys(s for results in sets.values() for s in results["against_rag"] if s in PARTS))
    columns: list[Column] = [
        (part, lambda row, part=part: difference(against_rag(row[1], part, "recall@3"))) for part in ("memorag", *parts)
    ]
    return [
        "## Parts of memorag",
        "recall@3 less rag’s: of all of memorag, and without one part each." if parts else "Not measured.",
        *([table(sets.items(), ("set", lambda row: row[0]), *columns)] if parts else []),
    ]


# --- losses ----------------------------------------------------------------------------------------------------------


def losses(sets: Sets) -> list[str]:
    """Every set and metric where memorag does worse than rag; every set where another strategy finds more."""
    leads = {
        name: {metric: lead for metric in FOUND | SAID if (lead := against_rag(results, "memorag", metric))}
        for name, results in sets.items()
    }
    lost = {name: {m: lead for m, lead in of.items() if _worse(m, lead["mean"])} for name, of in leads.items()}
    every = [lead for of in lost.values() for lead in of.values()]
    lines = [
        "## Where memorag loses",
        f"Against rag: worse in {len(every)} of {sum(map(len, leads.values()))} pairs of set and metric, beyond the"
        f" interval in {sum(map(certain, every))} of them (bold). Differences of the means, memorag − rag"
        + ("; of `answered anyway` less is better." if any("answered_anyway" in of for of in lost.values()) else "."),
    ]
    told = [f"* {name}: {_losses_of(of)}" for name, of in lost.items() if of]
    without = [name for name, of in lost.items() if leads[name] and not of]
    told += [f"* in no metric: {', '.join(without)}"] if without else []
    lines += ["\n".join(told)] if told else []
    if others := [f"* {rival}: {told}" for rival in RIVALS if (told := _finds_more(sets, rival))]:
        lines += ["recall@3 of another strategy above memorag’s, difference of the means:", "\n".join(others)]
    costs = []
    for cost, title in COSTS.items():
        both = [[results["strategies"].get(s, {}).get(cost) for s in ("memorag", "rag")] for results in sets.values()]
        if times := [mine["mean"] / theirs["mean"] for mine, theirs in both if mine and theirs]:
            costs.append(f"{title} {min(times):.1f} to {max(times):.1f} times")
    return lines + ([f"Cost of an answer, against rag’s, by set: {', '.join(costs)}."] if costs else [])


def _losses_of(lost: Mapping[str, Results]) -> str:
    """`recall@1 −0.011, MRR −0.009 (60 questions); F1 −0.013 (8 questions)`."""
    told = []
    for count, some in groupby(lost.items(), key=lambda one: one[1]["n"]):
        cells = [(f"{(FOUND | SAID)[metric]} {signed(lead['mean'])}", certain(lead)) for metric, lead in some]
        words = ", ".join(f"**{cell}**" if sure else cell for cell, sure in cells)
        told.append(f"{words} ({_several(count, 'question')})")
    return "; ".join(told)


def _finds_more(sets: Sets, rival: str) -> str:
    """`squad +0.200 (1 of 2 sets)`; empty where it was not measured beside memorag."""
    pairs = {name: [r["strategies"].get(s, {}).get("recall@3") for s in (rival, "memorag")] for name, r in sets.items()}
    both = {name: theirs["mean"] - mine["mean"] for name, (theirs, mine) in pairs.items() if theirs and mine}
    above = [f"{name} {signed(lead)}" for name, lead in both.items() if lead > 0]
    of_all = f"of {_several(len(both), 'set')}"
    return f"{', '.join(above)} ({len(above)} {of_all})" if above else f"nowhere, {of_all}" if both else ""


def _worse(metric: str, change: float) -> bool:
    return change > 0 if metric in FEWER_IS_BETTER else change < 0
