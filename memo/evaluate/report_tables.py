"""Tables of a file of results, row for row: how numbers are written, and a set's, the memory's and the speed's tables.

In: `results` of one file. Out: parts of Markdown. Numbers stand as `0.57 [0.51, 0.63]`: the mean and its 95 % interval
(of fewer than three libraries or texts the mean alone); of speed the median of the rounds, their least and their most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from memo.evaluate.strategies import PARTS
from memo.plots import VALUES, at_base, memories
from memo.plots_style import CONTEXTS, STYLES, Results, beyond, number, sure

FOUND = {"recall@1": "recall@1", "recall@3": "recall@3", "recall@5": "recall@5", "recall@10": "recall@10",
         "reciprocal_rank": "MRR"}  # fmt: skip
SAID = {"exact_match": "EM", "f1": "F1", "contains": "contains", "rouge_l": "ROUGE-L", "cited": "cited",
        "supported": "supported", "answered_anyway": "answered anyway"}  # fmt: skip
COSTS = {"prompt_tokens": "prompt tokens", "seconds": "seconds"}
ENOUGH = 30  # questions; with fewer an interval itself cannot be trusted

Column = tuple[str, Callable[[Any], str]]


# --- numbers and tables ----------------------------------------------------------------------------------------------


def interval(value: Results | None) -> str:
    """`0.57 [0.51, 0.63]`; without an interval `0.57`."""
    if not value:
        return ""
    ends = f" [{value['low']:.2f}, {value['high']:.2f}]" if sure(value) else ""
    return _minus(f"{value['mean']:.2f}{ends}")


def difference(value: Results | None) -> str:
    """`+0.041 [+0.010, +0.072]*`; for *, see `certain`. Without an interval `+0.041`."""
    if not value:
        return ""
    ends = f" [{signed(value['low'])}, {signed(value['high'])}]" if sure(value) else ""
    return f"{signed(value['mean'])}{ends}{'*' * certain(value)}"


def signed(value: float) -> str:
    """`−0.041`."""
    return _minus(f"{value + 0.0:+.3f}")  # + 0.0: there is a −0.0, which is none


def _minus(text: str) -> str:
    return text.replace("-", "−")


def certain(value: Results) -> bool:
    """Whether a difference counts as one: its interval holds no zero, and is of `ENOUGH` questions."""
    return value["n"] >= ENOUGH and beyond(value)


def ratio(row: Results) -> str:
    """`1.35 [1.28, 1.42]`."""
    return f"{number(row['ratio'])} [{number(row['low'])}, {number(row['high'])}]"


def counts(values: Iterable[Results | None]) -> str:
    """How many questions: metrics that do not apply to all of them have fewer."""
    some = [value["n"] for value in values if value]
    return f"{max(some)}" if min(some) == max(some) else f"{min(some)} to {max(some)}"


def table(rows: Iterable[Any], *columns: Column) -> str:
    """Markdown, one line a row; without rows a line that says so."""
    titles = [title for title, _ in columns]
    lines = ["| " + " | ".join(cell(row).replace("|", "\\|") for _, cell in columns) + " |" for row in rows]
    if not lines:
        return f"Not measured: {', '.join(titles)}."
    return "\n".join(["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|", *lines])


# --- a set -----------------------------------------------------------------------------------------------------------


def against_rag(results: Results, strategy: str, metric: str) -> Results | None:
    """The difference from rag on the same questions."""
    return results["against_rag"].get(strategy, {}).get(metric)


def one_set(name: str, results: Results) -> list[str]:
    """What was found and what was said, folded away under the set's name."""
    found = {s: values for s, values in results["strategies"].items() if s not in PARTS}
    lines = [
        f"<details><summary>{name}</summary>",
        f"{results['set']}, {results['split']}, language {results['language']}: {results['questions']} questions,"
        f" {results['answered']} of them answered, {results['libraries']} libraries of a {results['context']} each.",
    ]
    if results["failed"]:
        lines.append("Failed and left out: " + ", ".join(f"{s} {n}" for s, n in results["failed"].items()) + ".")
    for metrics, costs in ((FOUND, {}), (SAID, COSTS)):
        if there := {m: title for m, title in metrics.items() if any(m in values for values in found.values())}:
            some = [(s, values) for s, values in found.items() if any(m in values for m in there)]
            columns: list[Column] = [(t, lambda row, m=m: interval(row[1].get(m))) for m, t in there.items()]
            columns += [(t, lambda row, m=m: number(row[1].get(m, {}).get("mean"))) for m, t in costs.items()]
            columns.append(("n", lambda row, there=there: counts(row[1].get(m) for m in there)))
            lines.append(table(some, ("strategy", lambda row: row[0]), *columns))
            leads = {title: against_rag(results, "memorag", m) for m, title in there.items()}
            told = [f"{title} {difference(lead)}" for title, lead in leads.items() if lead]
            lines += [f"memorag − rag: {', '.join(told)}."] if told else []
    return [*lines, "</details>"]


# --- the memory ------------------------------------------------------------------------------------------------------


def kept(memory: Results) -> list[str]:
    """What the memory keeps of a text."""
    rows, what = memory["rows"], memory["what"]
    base = what["base"]
    lines = [
        "## The memory",
        f"{_whose(what)}{len(what['texts'])} texts; where not said otherwise {base['tokens']:,} tokens, window"
        f" {base['window']}, ratio {base['ratio']}. Recovery: (loss without context − loss) / (loss without − loss with"
        " full context). Copy: share of tokens of the text given back; facts: of its most surprising ones.",
    ]  # fmt: skip
    at = [r for r in rows if r["measure"] in ("loss", "copy") and at_base(memory, r, "tokens", "window")]
    ratios = sorted({row["wanted_ratio"] for row in at if "wanted_ratio" in row})
    for value, title in VALUES.items():
        by: dict[str, dict[int, Results]] = {}
        for row in (row for row in at if value in row):
            for one in [row["wanted_ratio"]] if "wanted_ratio" in row else ratios:  # no context, full: at any ratio
                by.setdefault(row["method"], {})[one] = row[value]
        columns: list[Column] = [(f"ratio {one}", lambda r, one=one: interval(r[1].get(one))) for one in ratios]
        names = [(CONTEXTS.get(method, method), by[method]) for method in STYLES if method in by]
        lines.append(table(names, (title, lambda r: r[0]), *columns))
    values: list[Column] = [(title, lambda r, v=v: interval(r.get(v))) for v, title in VALUES.items()]
    values += [("ratio", lambda r: str(r["ratio"])), ("texts", lambda r: str(r["n"]))]
    for over, held in (("window", ("tokens", "ratio")), ("tokens", ("window", "ratio"))):
        merged: dict[int, dict[str, Any]] = {}
        for row in memories(memory):
            if at_base(memory, row, *held):
                merged.setdefault(row[over], {}).update(row)  # loss and copy have rows of their own
        some = [row for _, row in sorted(merged.items())]
        lines.append(table(some, (over, lambda r, over=over: f"{r[over]:,}"), *values))
    if together := [row for row in rows if row["measure"] == "composition" and row["method"] == "memory"]:
        some = (("documents", lambda r: str(r["documents"])), ("place", lambda r: r["place"]))
        lines += ["### Several documents in one memory", table(together, *some, *values)]
    for row in rows:
        if row["measure"] == "removal":
            told = f"largest difference {row['largest_difference']:g}, {row['n']} texts"
            same = "yes" if row["exact"] else "**no**"
            lines.append(f"Taking a document out leaves the others exactly as they were: {same}; {told}.")
    lines += _lookup([row for row in rows if row["measure"] == "lookup"])
    left = [f"{one['tokens']:,} tokens{_at(one)}: {one['why']}" for one in what["left_out"]]
    return lines + (["Not measured: " + " ".join(left)] if left else [])


def _whose(what: Results) -> str:
    """The model and its memory weights: their names, where the file has none their fingerprint."""
    if models := what.get("models"):
        return f"Model {models['memory']}, memory weights {models['memory_weights']}. "
    return f"Memory weights with the fingerprint {what['weights']}. " if "weights" in what else ""


def _at(left_out: Results) -> str:
    return "".join(f", {name} {left_out[name]}" for name in ("ratio", "window") if name in left_out)


def _lookup(rows: Sequence[Results]) -> list[str]:
    """Share of an answer's tokens, over depths; a table for each kind of sentence."""
    lines = ["### Looking one sentence up"] if rows else []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        by: dict[str, dict[Any, Results]] = {}
        for row in (row for row in rows if row["kind"] == kind):
            context = CONTEXTS.get(row["method"], row["method"])
            context += f", ratio {row['wanted_ratio']}" if "wanted_ratio" in row else ""
            by.setdefault(context, {})[row["depth"]] = row
        depths = sorted({depth for found in by.values() for depth in found if depth is not None})
        columns: list[Column] = [(f"{d} %", lambda r, d=d: interval(r[1].get(d, {}).get("share"))) for d in depths]
        columns += [("all depths", lambda r: interval(r[1].get(None, {}).get("share"))),
                    ("whole answer right", lambda r: interval(r[1].get(None, {}).get("exact"))),
                    ("texts", lambda r: str(max(row["n"] for row in r[1].values())))]  # fmt: skip
        lines.append(table(by.items(), (f"{kind}, by depth", lambda r: r[0]), *columns))
    return lines


# --- what is recalled ------------------------------------------------------------------------------------------------


RECALLED = {
    "loss": "loss of clues and answers", "recall": "recall@3, clues at weight 1",
    "in_use": "recall@3, clues as in answering", "f1": "F1 from memory alone",
    "contains": "holds the answer",
}  # fmt: skip


def recalled(clues: Results) -> list[str]:
    """What each stage of training adds to the same questions."""
    weights, against = clues["weights"], clues["against"]
    alone = interval(next(iter(weights.values()))["all"]["question"])
    sets = ", ".join(f"{name} {count}" for name, count in clues["sets"].items())
    columns: list[Column] = [(t, lambda row, m=m: interval(row[1]["all"][m])) for m, t in RECALLED.items()]
    pairs = [(f"{name} − {list(others)[-1]}", list(others.values())[-1]) for name, others in against.items()]
    changes: list[Column] = [(t, lambda row, m=m: difference(row[1]["all"][m])) for m, t in RECALLED.items()]
    return [
        "## What is recalled",
        f"Questions that no weights were trained on ({sets}), clues recalled greedily at ratio"
        f" {clues['what']['ratio']}, without names and pointers. Recall@3 of the question alone: {alone}."
        " Below, what each of the weights changes from those before. Intervals are drawn over lessons: stretches of one"
        " document count as several.",
        table(weights.items(), ("weights", lambda row: row[0]), *columns),
        table(pairs, ("difference", lambda row: row[0]), *changes),
    ]  # fmt: skip


def studied(study: Results) -> list[str]:
    """What studying a document harder gains, and what it costs."""
    rows, what = study["rows"], study["what"]
    names = {"copy": "copy", "facts": "facts", "f1": "F1 from memory alone", "contains": "holds the answer"}
    columns: list[Column] = [(title, lambda row, m=m: interval(row.get(m))) for m, title in names.items()]
    columns.append(("seconds", lambda row: number(row["seconds"]["mean"]) if row["steps"] else ""))
    columns.append(("texts", lambda row: ", ".join(row["texts"])))
    gains: list[Column] = [(title, lambda row, m=m: difference(row["per_minute"][m])) for m, title in names.items()]
    step = ("steps", lambda row: "the full text" if row["steps"] is None else str(row["steps"]))
    return [
        "## Studying a document harder",
        f"{_whose(what)}Ratio {what['ratio']}; seconds of this machine.",
        table(rows, step, *columns),
        "Gained a minute:",
        table((row for row in rows if row["steps"]), step, *gains),
    ]


# --- speed -----------------------------------------------------------------------------------------------------------


def fast(speed: Results) -> list[str]:
    """A table for each part; ratios are within one process, the seconds beside them of this machine."""

    def num(key: str, unit: float = 1) -> Callable[[Any], str]:
        return lambda row: number(row[key] / unit)

    tokens: Column = ("tokens", num("tokens"))
    return [
        "## Speed",
        "Ratios: median of the rounds [least, most].",
        table(speed["memorize"], tokens, ("memorizing / plain prefill", ratio),
               ("memorizing, tokens/s", num("memorize_tokens_per_second")),
               ("prefill, tokens/s", num("prefill_tokens_per_second"))),
        table(speed["first_clue"], tokens, ("first clue sooner than", lambda r: r["instead"]), ("times", ratio),
               ("seconds to the clue", num("clue_seconds")), ("instead", num("instead_seconds")),
               ("read in pieces", lambda r: number(r.get("run_seconds"))),
               ("in one pass", lambda r: number(r.get("prefill_seconds")))),  # beyond the positions there are neither
        table(speed["bytes"], tokens, ("ratio", num("memory_ratio")), ("memory, MB", num("bytes", 1e6)),
               ("full K and V, MB", num("full_bytes", 1e6)), ("file, MB", num("file_bytes", 1e6)),
               ("memory / full", num("ratio"))),
        table(speed["load"], tokens, ("loading / memorizing", ratio), ("loading, s", num("load_seconds")),
               ("memorizing, s", num("memorize_seconds")), ("saving, s", num("save_seconds"))),
        table(speed["compare"], ("four answers at once, over", lambda r: r["over"]), ("ratio", ratio),
               ("together, s", num("together_seconds")), ("apart, s", num("over_seconds"))),
        table(speed["search"], ("passages", num("passages")), ("queries", num("queries")),
               ("search / embedding", ratio), ("search, ms", num("search_milliseconds")),
               ("embedding, ms", num("embedding_milliseconds"))),
        table(speed["visitors"], ("visitors at once", num("visitors")), ("of them", lambda r: r["of"]),
               ("first clue / alone", ratio), ("seconds", num("first_clue_seconds"))),
        table(speed["peak"], ("after", lambda r: r["after"]), ("peak memory, MB", num("peak_bytes", 1e6)),
               ("above the models, MB", num("above_loaded_bytes", 1e6))),
        *_notes(speed["what"].get("notes", {})),
    ]  # fmt: skip


def _notes(notes: Mapping[str, str]) -> list[str]:
    """What the numbers of each part are of."""
    points = [f"* {part.replace('_', ' ')}: {note}" for part, note in notes.items()]
    return ["How it was measured:", "\n".join(points)] if points else []
