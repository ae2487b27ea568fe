"""The figures of answers and of the memory: one function each, used by the app and the notebooks alike.

In: `results` of the files in assets/results (see memo.evaluate; `memo.evaluate.report.load` reads them). Figures over
several sets take {name of the set: results}. Out: plotly figures. What a file does not hold is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memo.evaluate.strategies import PARTS, WITH_PASSAGES
from memo.evaluate.summary import DEPTHS
from memo.plots_style import (
    CONTEXTS,
    INK,
    SIGNS,
    STYLES,
    Results,
    beyond,
    doubling,
    empty,
    line,
    number,
    points,
    style,
    told,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DIVERGING = [[0, "#8a3c00"], [0.25, "#e39a5f"], [0.5, "#f4f1ea"], [0.75, "#5fbfa2"], [1, "#00614a"]]
RISING = [[0, "#f4f1ea"], [0.5, "#5fbfa2"], [1, "#00513d"]]
METRICS = {
    "f1": "F1 of the answer", "rouge_l": "ROUGE-L of the answer", "exact_match": "exact match of the answer",
    "contains": "answer contains a reference", "reciprocal_rank": "mean reciprocal rank",
}  # fmt: skip


# --- answers and what they found -------------------------------------------------------------------------------------


def recall(results: Results) -> Figure:
    """Share of the evidence among the first k passages, by strategy: one set."""
    figure = empty(360, "first k passages", "share of the evidence found")
    for name in (name for name in WITH_PASSAGES if name not in PARTS):
        found = {k: v for k in DEPTHS if (v := results["strategies"].get(name, {}).get(f"recall@{k}"))}
        if found:
            figure.add_trace(points(name, [str(k) for k in found], list(found.values()), "recall@%{x}"))
    figure.update_layout(scattermode="group", scattergap=0.3)  # side by side, so that intervals do not hide each other
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure


def difference(sets: Mapping[str, Results], metric: str = "recall@3") -> Figure:
    """memorag less rag on the same questions, set by set, with a line at no difference. Filled: beyond the interval."""
    found = {
        name: value for name, results in sets.items()
        if (value := results["against_rag"].get("memorag", {}).get(metric))
    }  # fmt: skip
    figure = empty(110 + 30 * len(found), f"{METRICS.get(metric, metric)}, memorag − rag", "")
    leads = points("memorag", list(found), list(found.values()), f"{metric}, memorag − rag", across=True, each="%{y}")
    signs = ["circle" if beyond(value) else "circle-open" for value in found.values()]
    figure.add_trace(leads.update(marker_symbol=signs))
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    figure.update_layout(showlegend=False)
    figure.update_xaxes(tickformat="+.2~f")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def ablation(sets: Mapping[str, Results], metric: str = "recall@3") -> Figure:
    """What is left of memorag's lead over rag without each of its parts, in hundredths. *: beyond the interval."""
    import plotly.graph_objects as go

    measured = {name: results["against_rag"] for name, results in sets.items() if "memorag" in results["against_rag"]}
    parts = [
        part for part in dict.fromkeys(part for found in measured.values() for part in found)
        if part == "memorag" or part in PARTS
    ]  # fmt: skip
    cells = [[found.get(part, {}).get(metric) for found in measured.values()] for part in parts]
    drawn = [[cell["mean"] if cell else None for cell in row] for row in cells]
    most = max((abs(mean) for row in drawn for mean in row if mean is not None), default=1)
    labels = [part if part in ("memorag", "pointers") else part.replace("memorag-", "without ") for part in parts]
    labels = ["pointers alone" if label == "pointers" else label for label in labels]
    figure = empty(170 + 30 * len(parts), f"{metric} − rag’s, × 100", "")
    figure.add_trace(
        go.Heatmap(
            x=list(measured), y=labels, z=drawn, zmin=-most, zmax=most, colorscale=DIVERGING, xgap=1, ygap=1,
            text=[[_signed(cell) for cell in row] for row in cells], texttemplate="%{text}", showscale=False,
            textfont_size=10,
            hovertext=[
                [f"{label}, {name}<br>{told(f'{metric} − rag’s', cell)}" if cell else "" for name, cell in
                 zip(measured, row, strict=True)] for label, row in zip(labels, cells, strict=True)
            ],
            hoverinfo="text",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, type="category", tickangle=-90, side="top")
    return figure


def answers(results: Results, metric: str = "f1") -> Figure:
    """How good the answers are against what was read for them, by strategy: one set."""
    figure = empty(380, "prompt tokens a question, clues included", METRICS.get(metric, metric))
    for name in STYLES:
        found = results["strategies"].get(name, {})
        if metric in found and "prompt_tokens" in found:
            read = found["prompt_tokens"]["mean"]
            figure.add_trace(points(name, [read], [found[metric]], f"{number(read)} prompt tokens<br>{metric}"))
    figure.update_xaxes(type="log", dtick="D2", tickformat=",~s")
    figure.update_yaxes(rangemode="tozero")
    return figure


# --- the memory ------------------------------------------------------------------------------------------------------

VALUES = {"recovery": "recovery", "copy": "copy accuracy", "facts": "fact accuracy"}


def by_ratio(memory: Results, value: str = "recovery") -> Figure:
    """What the memory keeps, at each ratio, against ways to evict as many entries. value: one of `VALUES`."""
    figure = empty(420, "text tokens per entry kept", VALUES[value])
    rows = [row for row in memory["rows"] if row.get(value) and row["measure"] in ("loss", "copy")]
    rows = [row for row in rows if at_base(memory, row, "tokens", "window")]
    for method in STYLES:
        some = sorted((r for r in rows if r["method"] == method), key=lambda row: row.get("wanted_ratio", 0))
        if not some:
            continue
        if method in CONTEXTS:
            dotted = {"color": style(method)[0], "width": 1.5, "dash": "dot"}
            figure.add_hline(y=some[0][value]["mean"], line=dotted, name=CONTEXTS[method], showlegend=True)
        else:
            places = [row["wanted_ratio"] for row in some]
            figure.add_trace(points(method, places, [row[value] for row in some], value, lines=True))
    doubling(figure, [row["wanted_ratio"] for row in rows if "wanted_ratio" in row])
    figure.update_layout(legend={"font_size": 11, "entrywidth": 105})  # two columns on a phone
    return figure


def by_window(memory: Results) -> Figure:
    """What the memory keeps, over the windows in which a text is read."""
    rows = [row for row in memories(memory) if at_base(memory, row, "tokens", "ratio")]
    return _kept(rows, "window", "tokens read at a time")


def by_length(memory: Results) -> Figure:
    """What the memory keeps, over lengths of the text. Recovery: as far as the positions hold the full context."""
    rows = [row for row in memories(memory) if at_base(memory, row, "window", "ratio")]
    return _kept(rows, "tokens", "tokens of the text")


def composition(memory: Results) -> Figure:
    """What is left of a document when others stand in the memory beside it, at a place among them drawn at random."""
    rows = [row for row in memory["rows"] if row["measure"] == "composition" and row["method"] == "memory"]
    rows = [row for row in rows if row["place"] == "drawn" or row["documents"] == 1]  # alone it has one place only
    return _kept(rows, "documents", "documents in the memory")


def memories(memory: Results) -> list[Results]:
    """The rows of loss and of copying that are about the memory alone."""
    return [row for row in memory["rows"] if row["measure"] in ("loss", "copy") and row["method"] == "memory"]


def at_base(memory: Results, row: Results, *names: str) -> bool:
    """Whether a row has the base's value of these, as far as it has one."""
    base = {**memory["what"]["base"], "wanted_ratio": memory["what"]["base"]["ratio"]}
    names = tuple("wanted_ratio" if name == "ratio" else name for name in names)
    return all(row.get(name, base[name]) == base[name] for name in names)


def _kept(rows: Sequence[Results], over: str, title: str) -> Figure:
    """All `VALUES` of rows, over one of their settings."""
    figure = empty(360, title, "share, or recovery")
    for sign, (value, label) in zip(SIGNS, VALUES.items(), strict=True):
        some = sorted((row for row in rows if row.get(value)), key=lambda row: row[over])
        if some:
            line(figure, label, sign, [row[over] for row in some], [row[value] for row in some], title)
    figure.update_yaxes(rangemode="tozero")
    doubling(figure, [row[over] for row in rows])
    return figure


def lookup(memory: Results, kind: str) -> Figure:
    """Tokens of an answer that come back, over depths of its sentence in the text. kind: "passkey" or "fact"."""
    import plotly.graph_objects as go

    rows = [row for row in memory["rows"] if row["measure"] == "lookup" and row["kind"] == kind]
    rows.sort(key=lambda row: (list(STYLES).index(row["method"]), row.get("wanted_ratio", 0)))
    cells: dict[str, dict[str, Results]] = {}
    for row in rows:
        method = CONTEXTS.get(row["method"], row["method"])
        label = f"{method}, {row['wanted_ratio']} : 1" if "wanted_ratio" in row else method
        cells.setdefault(label, {})["all" if row["depth"] is None else str(row["depth"])] = row["share"]
    depths = sorted({depth for found in cells.values() for depth in found}, key=lambda d: (d == "all", len(d), d))
    table = [[found.get(depth) for depth in depths] for found in cells.values()]
    figure = empty(110 + 28 * len(cells), "depth in the text, %", "")
    figure.add_trace(
        go.Heatmap(
            x=depths, y=list(cells), z=[[cell["mean"] if cell else None for cell in row] for row in table],
            zmin=0, zmax=1, colorscale=RISING, showscale=False, xgap=1, ygap=1, texttemplate="%{z:.2f}",
            textfont_size=11, hoverinfo="text",
            hovertext=[
                [f"{label}, {depth}<br>{told('share of the answer', cell)}" if cell else "" for depth, cell in
                 zip(depths, row, strict=True)] for label, row in zip(cells, table, strict=True)
            ],
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, type="category")
    return figure


def _signed(cell: Results | None) -> str:
    """`+12*`, hundredths, for a cell of a few millimetres; * where the interval holds no zero."""
    if cell is None:
        return ""
    return f"{100 * cell['mean']:+.0f}".replace("-", "−") + "*" * beyond(cell)
