"""The figures of the Memory Decoder.

In: a token that was traced (`memo.trace`) and alpha, or `results` of decoder/*.json. Out: plotly figures, which look
like those of `memo.plots`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memo.plots_style import BLUE, GREEN, ORANGE, Results, empty

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from memo.trace import Token

SHOWN = 8  # candidates
LETTERS = 14  # of a candidate's text


def label(text: str) -> str:
    """A candidate's text as plotly takes it: it reads tags, so none may be left; white space is seen."""
    seen = text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"
    return html.escape(seen if len(seen) <= LETTERS else seen[: LETTERS - 1] + "…")


def candidates(token: Token, alpha: float, names: tuple[str, str, str] = ("LLM", "memory", "mix")) -> Figure:
    """Bars of the mix's most probable candidates, and of the token itself (in bold), under the LLM, the decoder and the
    mix. names: of the three."""
    import plotly.graph_objects as go

    from memo.trace import remix

    best = remix(token, alpha)
    came = next(pair for pair in best if pair[0].id == token.id)
    best = best[:SHOWN] if came in best[:SHOWN] else [*best[: SHOWN - 1], came]
    figure = empty(96 + 46 * len(best), "", "")
    values = {
        names[0]: [candidate.llm for candidate, _ in best],
        names[1]: [candidate.memory for candidate, _ in best],
        names[2]: [logp for _, logp in best],
    }
    for (name, logps), colour, pattern in zip(values.items(), (BLUE, ORANGE, GREEN), ("", "/", ""), strict=True):
        shares = [math.exp(logp) for logp in logps]
        figure.add_trace(
            go.Bar(
                x=shares, y=list(range(len(best))), orientation="h", name=name, marker_color=colour,
                marker_pattern_shape=pattern, text=[f"{share:.1%}" for share in shares], textposition="outside",
                textfont_size=11, cliponaxis=False, hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    most = max((math.exp(logp) for logps in values.values() for logp in logps), default=1.0)
    figure.update_layout(barmode="group", bargap=0.28, bargroupgap=0.08, margin_t=38, legend_traceorder="normal")
    figure.update_xaxes(range=[0, 1.18 * most], tickformat=".0%", nticks=5)
    ticks = [f"<b>{label(c.text)}</b>" if c.id == token.id else label(c.text) for c, _ in best]
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(best))), ticktext=ticks, showgrid=False)
    return figure


def perplexities(domains: Mapping[str, Results]) -> Figure:
    """Bars of the perplexity of every way on the test texts, a group for each domain."""
    import plotly.graph_objects as go

    figure = empty(560, "", "perplexity")
    ways = dict.fromkeys(row["way"] for results in domains.values() for row in results["test"])
    for number, way in enumerate(ways):
        rows = [(name, row["perplexity"]["mean"]) for name, results in domains.items() for row in results["test"]
                if row["way"] == way]  # fmt: skip
        figure.add_trace(go.Bar(name=way, x=[name for name, _ in rows], y=[mean for _, mean in rows],
                              marker_pattern_shape="/" if number > 5 else ""))  # there are more ways than colours
    figure.update_layout(barmode="group")
    figure.update_yaxes(type="log")
    return figure
