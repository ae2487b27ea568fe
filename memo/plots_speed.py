"""The figures of speed: one function each, used by the app and the notebooks alike.

In: `results` of speed.json (see memo.evaluate.speed). Out: plotly figures. Ratios stand with the least and the most of
their rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from memo.plots_style import FAINT, GREEN, INK, SIGNS, Results, doubling, empty, line, number, style

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def against_prefill(speed: Results) -> Figure:
    """Speed of memorizing over that of a plain prefill, by length of the text; dotted: as fast."""
    figure = _by_tokens(speed["memorize"], "times a plain prefill’s speed")
    figure.add_hline(y=1, line={"color": INK, "width": 1.5, "dash": "dot"})
    figure.update_yaxes(rangemode="tozero")
    return figure


def size(speed: Results) -> Figure:
    """Bytes of a memory over those of the full K and V cache, by length of the text."""
    figure = _by_tokens(speed["bytes"], "bytes, share of the full K and V")
    figure.update_yaxes(rangemode="tozero")
    return figure


def loading(speed: Results) -> Figure:
    """Seconds of loading a memory over those of making it, by length of the text."""
    figure = _by_tokens(speed["load"], "loading / memorizing")
    figure.update_yaxes(type="log", dtick="D2", tickformat=",~r")
    return figure


def first_clue(speed: Results) -> Figure:
    """How many times sooner the first clue is there than without a memory, by length of the text."""
    figure = empty(340, "tokens of the text", "times sooner")
    rows = speed["first_clue"]
    _lines(figure, rows, "instead", lambda instead: f"than {instead}", "tokens")
    doubling(figure, [row["tokens"] for row in rows])
    figure.update_yaxes(type="log", dtick="D2", tickformat=",~r")
    return figure


def memorizing(speed: Results) -> Figure:
    """Seconds of memorizing by length of the text, and the line through them: its slope is the exponent."""
    import plotly.graph_objects as go

    rows = [row for row in speed["exponent"] if "tokens" in row]
    slope = next((row["exponent"] for row in speed["exponent"] if "exponent" in row), None)
    tokens, seconds = [row["tokens"] for row in rows], [row["memorize_seconds"] for row in rows]
    figure = empty(340, "tokens of the text", "seconds of memorizing")
    texts = [f"{row['tokens']:,} tokens: {number(row['memorize_seconds'])} s<br>{row['memory_ratio']} tokens a slot"
             for row in rows]  # fmt: skip
    marks = go.Scatter(x=tokens, y=seconds, name="measured", mode="markers", hovertext=texts, hoverinfo="text")
    figure.add_trace(marks.update(marker={"color": GREEN, "size": 9}))
    if slope is not None:
        figure.add_trace(
            go.Scatter(
                x=tokens, y=_fitted(tokens, seconds, slope), name=f"seconds ∝ tokens^{slope:.2f}", mode="lines",
                line={"color": INK, "width": 1.5, "dash": "dot"}, hoverinfo="skip",
            )
        )  # fmt: skip
    doubling(figure, tokens)
    figure.update_yaxes(type="log", dtick="D2", tickformat="~r")
    return figure


def compare(speed: Results) -> Figure:
    """Seconds of each strategy alone, and of all of them in one batch."""
    import plotly.graph_objects as go

    row = speed["compare"][0]
    fixed = ("together_seconds", "over_seconds")
    alone = {key.removesuffix("_seconds"): value for key, value in row.items()
             if key.endswith("_seconds") and key not in fixed}  # fmt: skip
    bars = alone | {"together": row["together_seconds"]}
    figure = empty(110 + 34 * len(bars), "seconds to the last word", "")
    figure.add_trace(
        go.Bar(
            x=list(bars.values()), y=list(bars), orientation="h", showlegend=False, hoverinfo="x+y",
            text=[f"{number(value)} s" for value in bars.values()], textposition="outside", cliponaxis=False,
            marker={"color": ["rgba(0,0,0,0)" if name == "together" else style(name)[0] for name in bars],
                    "line": {"color": [INK if name == "together" else style(name)[0] for name in bars], "width": 2}},
        )
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1.15 * max(bars.values())])  # room for the last number
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def visitors(speed: Results) -> Figure:
    """How many times longer the first clue takes when several ask at once."""
    figure = empty(320, "visitors who ask at once", "times the wait of one alone")
    rows = speed["visitors"]
    _lines(figure, rows, "of", lambda of: f"the {of} visitor", "visitors")
    figure.update_xaxes(tickvals=sorted({row["visitors"] for row in rows}))
    figure.update_yaxes(rangemode="tozero")
    return figure


def search(speed: Results) -> Figure:
    """A search in Chroma over embedding its queries, by passages in the collection."""
    figure = empty(320, "passages (random vectors)", "search / embedding")
    rows = sorted(speed["search"], key=lambda row: row["queries"])
    _lines(figure, rows, "queries", lambda n: f"{n} quer{'y' if n == 1 else 'ies'} at once", "passages")
    sizes = sorted({row["passages"] for row in rows})
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[f"{one:,}" for one in sizes])
    figure.update_yaxes(rangemode="tozero")
    return figure


def peak(speed: Results) -> Figure:
    """The most memory that the process had had after each part, in MB: the models’, and what came on top."""
    import plotly.graph_objects as go

    rows = speed["peak"]
    names = [row["after"] for row in rows]
    figure = empty(110 + 34 * len(rows), "peak memory so far, MB", "")
    for name, key, colour in (("models loaded", "loaded_bytes", FAINT), ("on top", "above_loaded_bytes", GREEN)):
        bars = go.Bar(x=[row[key] / 1e6 for row in rows], y=names, name=name, orientation="h", marker_color=colour)
        figure.add_trace(bars.update(hovertemplate=f"%{{y}}<br>{name} %{{x:,.0f}} MB<extra></extra>"))
    totals = [row["peak_bytes"] / 1e6 for row in rows]
    figure.data[-1].update(text=[f"{number(total)}" for total in totals], textposition="outside", cliponaxis=False)
    figure.update_layout(barmode="stack")
    figure.update_xaxes(range=[0, 1.15 * max(totals, default=1)])  # room for the last number
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def _by_tokens(rows: Sequence[Results], title: str) -> Figure:
    """One line of ratios over lengths of the text."""
    figure = empty(320, "tokens of the text", title)
    tokens = [row["tokens"] for row in rows]
    line(figure, title, SIGNS[0], tokens, _ratios(rows), "tokens")
    doubling(figure, tokens)
    figure.update_layout(showlegend=False)
    return figure


def _lines(figure: Figure, rows: Sequence[Results], of: str, name: Callable[[Any], str], over: str) -> None:
    """A line of ratios for each value of the column `of`, over the column `over`."""
    for sign, value in zip(SIGNS, dict.fromkeys(row[of] for row in rows), strict=False):
        some = [row for row in rows if row[of] == value]
        line(figure, name(value), sign, [row[over] for row in some], _ratios(some), over)


def _ratios(rows: Iterable[Results]) -> list[Results]:
    """Rows of ratios as values, with the least and the most of the rounds as their interval; sizes have no rounds."""
    return [{"mean": row["ratio"], "low": row.get("low"), "high": row.get("high")} for row in rows]


def _fitted(x: Sequence[float], y: Sequence[float], slope: float) -> list[float]:
    """The curve y = a x^slope that goes through the middle of the points (in logarithms)."""
    import math

    a = math.exp(sum(math.log(v) - slope * math.log(u) for u, v in zip(x, y, strict=True)) / len(x))
    return [a * u**slope for u in x]
