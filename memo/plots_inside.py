"""The figures of a memory looked into.

In: attention on the slots of a document, or the losses of its tokens. Out: plotly figures, which look like those of
`memo.plots`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memo.plots_style import GREEN, RED, VIOLET, empty

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from torch import Tensor

    from memo.inside import Losses

COLUMNS = 120  # of the heat map at most
POINTS = 240  # of a curve at most
SMOOTH = 96  # tokens whose losses are averaged at a place
LETTERS = 32  # of a slot's text where a cell is pointed at
HEAT = [[0, "rgba(0,158,115,0)"], [0.15, "rgba(0,158,115,.22)"], [0.5, "rgba(0,158,115,.65)"], [1, GREEN]]


def columns(slots: int) -> list[tuple[int, int]]:
    """Which slots each column of the heat map stands for: neighbours, the same number of them (one more or less)."""
    count = min(slots, COLUMNS)
    return [(column * slots // count, (column + 1) * slots // count) for column in range(count)]


def peak(mass: Tensor, column: int, layer: int) -> int:
    """The slot of a column that a layer looks at most. mass: (layers, m)"""
    first, end = columns(mass.shape[1])[column]
    return first + int(mass[layer, first:end].argmax())


def attention(
    mass: Tensor, texts: Sequence[str], places: Sequence[float], chosen: int, titles: tuple[str, str, str]
) -> Figure:
    """Layers over the slots of a document: the attention on each column's slots together.

    mass: (layers, m). texts: of the slots. places: of the slots in the text, 0 to 1. chosen: a slot that is marked; -1:
    none. titles: of the axes and of the values. The first slot, on which every text leans, does not set the scale.
    """
    import plotly.graph_objects as go
    import torch

    cuts = columns(mass.shape[1])
    cells = torch.stack([mass[:, first:end].sum(dim=1) for first, end in cuts], dim=1)  # (layers, C)
    apart = cells[:, 1:] if len(cuts) > 1 else cells
    layers = range(len(mass))
    pointed = [[peak(mass, column, layer) for column in range(len(cuts))] for layer in layers]
    hover = [
        [
            f"{titles[1]} {layer + 1}<br>{titles[2]} {float(cells[layer, column]):.2%}<br>{_short(texts[slot])}"
            for column, slot in enumerate(pointed[layer])
        ]
        for layer in layers
    ]
    figure = empty(max(300, 60 + 11 * len(mass)), titles[0], titles[1])
    figure.add_trace(
        go.Heatmap(
            x=list(range(len(cuts))), y=[layer + 1 for layer in layers], z=cells.tolist(), zmin=0,
            zmax=max(float(apart.max()), 1e-6), colorscale=HEAT, hovertext=hover, hoverinfo="text",
            colorbar={"tickformat": ".1~%", "thickness": 10, "outlinewidth": 0, "tickfont_size": 11, "nticks": 5},
        )
    )  # fmt: skip
    if chosen >= 0:
        at = next(column for column, (first, end) in enumerate(cuts) if first <= chosen < end)
        figure.add_vrect(at - 0.5, at + 0.5, line={"color": RED, "width": 2}, fillcolor="rgba(0,0,0,0)")
    ticks = sorted({round(share * (len(cuts) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{places[cuts[t][0]]:.0%}" for t in ticks], showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def losses(parts: Sequence[Losses], names: tuple[str, str, str], titles: tuple[str, str]) -> Figure:
    """The smoothed loss over the tokens of a text: nothing before the window, the memory, all of the text.

    names: of the three, in that order. titles: of the axes.
    """
    import plotly.graph_objects as go
    import torch

    from memo.inside import smoothed

    figure = empty(340, titles[0], titles[1])
    places = torch.cat([part.first + torch.arange(len(part.memory)) for part in parts])
    step = max(1, len(places) // POINTS)
    curves = [("none", RED, "dot"), ("memory", GREEN, "solid"), ("full", VIOLET, "dash")]
    for (which, colour, dash), name in zip(curves, names, strict=True):
        values = [getattr(part, which) for part in parts]
        if not values or any(value is None for value in values):
            continue
        curve = smoothed(torch.cat(values), SMOOTH)[::step]
        figure.add_trace(
            go.Scatter(
                x=places[::step].tolist(), y=curve.tolist(), name=name, mode="lines",
                line={"color": colour, "width": 2, "dash": dash},
                hovertemplate="%{x:,}: %{y:.2f}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    figure.update_layout(margin_t=34, showlegend=True, hovermode="x")
    return figure


def _short(text: str) -> str:
    """A slot's text as plotly takes it: it reads tags, so none may be left."""
    flat = " ".join(text.split())
    return html.escape(flat if len(flat) <= LETTERS else flat[: LETTERS - 1] + "…")
