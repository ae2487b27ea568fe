"""What all figures share: their ground, their colours and signs, how points, intervals and numbers are drawn.

In: values `{"mean", "low", "high", "n"}`; `low` and `high` are None where there is no interval, and no bar is drawn.
Out: figures without traces, traces, texts. Figures stand on a transparent ground, in a grey that reads on light and on
dark; a page that has a text colour of its own sets it: `figure.update_layout(font_color=…)`. A strategy or a method has
the same colour and the same sign in all of them, so that nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

Results = Mapping[str, Any]

INK = "#7b7b7b"  # at least 4 : 1 on white and on near-black
FAINT = "rgba(123,123,123,.28)"
FONT = "IBM Plex Sans, Noto Sans CJK KR, Noto Sans KR, system-ui, sans-serif"

# after Okabe and Ito, who chose colours that the colour-blind can tell apart; no yellow (white paper), no black (dark)
GREEN, RED, BLUE, SKY, PINK, ORANGE, VIOLET, GREY = (
    "#009e73", "#d55e00", "#0072b2", "#45a5dc", "#cc79a7", "#d99200", "#8052a8", "#8a8a8a"
)  # fmt: skip
STYLES = {  # strategy or method: colour, sign
    "memorag": (GREEN, "circle"), "rag": (RED, "square"), "bm25": (BLUE, "diamond"),
    "dense": (BLUE, "diamond-open"), "rag-names": (RED, "square-open"), "hyde": (SKY, "triangle-up"),
    "rq_rag": (PINK, "triangle-down"), "memory_only": (ORANGE, "star"), "full_context": (VIOLET, "pentagon"),
    "closed_book": (GREY, "x"),
    "full": (VIOLET, "pentagon"), "none": (GREY, "x"), "memory": (GREEN, "circle"), "streaming": (RED, "square"),
    "every_nth": (BLUE, "diamond"), "key_norm": (SKY, "triangle-up"), "snapkv": (PINK, "triangle-down"),
    "expected_attention": (ORANGE, "star"),
}  # fmt: skip
SIGNS = (("circle", "solid"), ("square", "dash"), ("diamond", "dot"))  # several lines of one strategy: sign, dash
CONTEXTS = {"full": "full context", "none": "no context"}
NO_BAR = "none"  # for null plotly draws the two ends of a bar; for what is no number nothing


def empty(height: int, x: str, y: str) -> Figure:
    """An empty figure that looks like all the others. x, y: titles of the axes."""
    import plotly.graph_objects as go

    axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False, "automargin": True, "title_standoff": 8}
    figure = go.Figure()
    figure.update_layout(
        template="none", height=height, margin={"l": 8, "r": 12, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 1, "yanchor": "top",
                "font_size": 12},
        dragmode=False,  # a finger on a phone scrolls the page
        xaxis={**axis, "title_text": x}, yaxis={**axis, "title_text": y},
    )  # fmt: skip
    return figure


def style(name: str) -> tuple[str, str]:
    """Colour and sign of a strategy or a method; of anything else memo's own."""
    return STYLES.get(name, (GREEN, "circle"))


def points(
    name: str, places: Sequence[Any], values: Sequence[Results], what: str,
    lines: bool = False, across: bool = False, each: str = "",
) -> Scatter:  # fmt: skip
    """Means at their places, with their intervals. across: the means run along x. each: names a point when pointed at,
    instead of `name`."""
    import plotly.graph_objects as go

    colour, sign = style(name)
    means = [value["mean"] for value in values]
    error = {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 3,
        "array": [value["high"] - value["mean"] if sure(value) else NO_BAR for value in values],
        "arrayminus": [value["mean"] - value["low"] if sure(value) else NO_BAR for value in values],
    }  # fmt: skip
    along = {"x": means, "y": places, "error_x": error} if across else {"x": places, "y": means, "error_y": error}
    return go.Scatter(
        **along, name=name, mode="lines+markers" if lines else "markers", line={"color": colour, "width": 1.5},
        marker={"color": colour, "symbol": sign, "size": 9}, customdata=[told("", value) for value in values],
        hovertemplate=f"{each or name}<br>{what}%{{customdata}}<extra></extra>",
    )  # fmt: skip


def line(
    figure: Figure, name: str, sign: tuple[str, str], places: Sequence[Any], values: Sequence[Results], over: str
) -> None:
    """One of several lines in the memory's colour. over: what the places are."""
    trace = points(name, places, values, f"%{{x:,}} {over}:", lines=True)
    figure.add_trace(trace.update(marker_symbol=sign[0], line_dash=sign[1]))


def sure(value: Results) -> bool:
    """Whether a mean has an interval: one of fewer than three libraries or texts has none."""
    return value["low"] is not None and value["high"] is not None


def beyond(value: Results) -> bool:
    """Whether a difference has an interval, and that holds no zero."""
    return sure(value) and (value["low"] > 0 or value["high"] < 0)


def told(what: str, value: Results) -> str:
    """`recall@3 0.57 [0.51, 0.63], n = 200`; without an interval `recall@3 0.57, n = 2`."""
    ends = f" [{number(value['low'])}, {number(value['high'])}]" if sure(value) else ""
    count = f", n = {value['n']:,}" if "n" in value else ""
    return f"{what} {number(value['mean'])}{ends}{count}"


def number(value: float | None) -> str:
    """Three digits that count; of numbers from 100 on all."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def doubling(figure: Figure, values: Sequence[int]) -> None:
    """An x axis for what doubles: a tick for each power of 2 that is reached, thousands as 1k, 2k, 4k …"""
    powers = range(int(min(values, default=1)).bit_length() - 1, int(max(values, default=1)).bit_length() + 1)
    texts = [f"{2**i}" if i < 10 else f"{2**i // 1024}k" for i in powers]
    figure.update_xaxes(type="log", tickvals=[2**i for i in powers], ticktext=texts)
