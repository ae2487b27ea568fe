"""The figure of a training: its losses, step by step.

In: points of a log (`step` and named losses), the losses of what is held out. Out: a plotly figure, which looks like
those of `memo.plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memo.plots_style import BLUE, GREEN, ORANGE, PINK, RED, SKY, VIOLET, empty

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# stage -> the losses of its log that are drawn, in this order: colour, dash
LINES = {
    "pretrain": {"loss": (GREEN, "solid"), "next": (BLUE, "dot"), "repeat": (ORANGE, "dash")},
    "sft": {
        "loss": (GREEN, "solid"), "span": (BLUE, "dot"), "answer": (ORANGE, "dash"), "draft": (PINK, "dashdot"),
        "question": (SKY, "longdash"), "key": (RED, "longdashdot"),
    },
}  # fmt: skip


def losses(
    kind: str, log: Sequence[Mapping[str, Any]], held: Sequence[tuple[int, float]], steps: int,
    names: Mapping[str, str], titles: tuple[str, str],
) -> Figure:  # fmt: skip
    """Losses over steps. held: (step, loss) of what is held out. steps: of the whole training, which the axis shows.

    kind: of the training, see `LINES`. names: of the losses, and of "held". titles: of the axes.
    """
    import plotly.graph_objects as go

    figure = empty(340, titles[0], titles[1])
    hover = "%{x:,}: %{y:.3f}<extra>%{fullData.name}</extra>"
    for part, (colour, dash) in LINES[kind].items():
        found = [(point["step"], point[part]) for point in log if point.get(part) is not None]
        if found:
            x, y = zip(*found, strict=True)
            line = {"color": colour, "dash": dash, "width": 2.5 if part == "loss" else 1.5}
            figure.add_trace(go.Scatter(x=x, y=y, name=names[part], mode="lines", line=line, hovertemplate=hover))
    if held:
        x, y = zip(*held, strict=True)
        figure.add_trace(
            go.Scatter(
                x=x, y=y, name=names["held"], mode="lines+markers", line={"color": VIOLET, "dash": "dot", "width": 1},
                marker={"color": VIOLET, "symbol": "diamond", "size": 11}, hovertemplate=hover,
            )
        )  # fmt: skip
    figure.update_layout(margin_t=58, showlegend=True)
    figure.update_xaxes(range=[-0.02 * steps, 1.03 * steps])
    return figure
