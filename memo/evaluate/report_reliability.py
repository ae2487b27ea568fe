"""The report's part about hard knocks: bad inputs, processes that are killed, many visitors.

In: results of `memo evaluate reliability`. Out: parts of Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memo.evaluate.report_tables import table
from memo.plots_style import Results


def reliable(results: Results) -> list[str]:
    """The report's part."""
    parts = ["## Hard knocks"]
    parts += broken(results["inputs"], results["what"]["hang_seconds"]) if "inputs" in results else []
    parts += killed(results["kills"]) if "kills" in results else []
    parts += visited(results["visitors"]) if "visitors" in results else []
    return parts


def broken(inputs: Mapping[str, Any], hang: float) -> list[str]:
    """Bad inputs, a kind a row."""
    outcomes = ("read", "refused", "crashed", "hung")
    return [
        f"{inputs['count']:,} bad inputs: documents by their endings, files that memo wrote itself, requests to the"
        f" app; the longest took {inputs['longest_seconds']:.1f} seconds. Refused is refused with a sentence for the"
        f" person; hung is more than {hang:g} seconds.",
        table(list(inputs["kinds"].items()), ("kind", lambda one: one[0]),
              *((name, lambda one, name=name: str(one[1].get(name, 0))) for name in outcomes)),
    ]  # fmt: skip


def killed(kills: Mapping[str, Any]) -> list[str]:
    """Kills, a stage a row."""
    stages = [(work, stage, count) for work in ("library", "decoder") for stage, count in kills[work]["kills"].items()]
    lost, half = (sum(kills[work][name] for work in ("library", "decoder")) for name in ("lost", "half_done"))
    return [
        f"{sum(count for *_, count in stages)} processes killed in the middle of a stage of their work. Lost: {lost};"
        f" half-done things that showed: {half}; decoders other than the one made in peace:"
        f" {kills['decoder']['another_decoder']}.",
        table(stages, ("work", lambda one: one[0]), ("killed while", lambda one: one[1]),
              ("times", lambda one: str(one[2]))),
    ]  # fmt: skip


def visited(visitors: Mapping[str, Any]) -> list[str]:
    """Visitors, a kind of request a row."""
    memory, load = visitors["memory"], visitors["load_average"]
    return [
        f"{visitors['visitors']} visitors with a document each, {visitors['at_once']} asking at once for"
        f" {visitors['seconds'] / 60:.0f} minutes ({visitors['model']}, answers of at most"
        f" {visitors['answer_tokens']} tokens, {visitors['machine']['cores']} cores with a load of {min(load):.1f} to"
        f" {max(load):.1f}): {visitors['requests']:,} requests, {visitors['mixed_up']} replies with anything of"
        f" somebody else. Memory of the server: {memory['before']['bytes'] / 1e6:,.0f} MB before,"
        f" {memory['with_all']['bytes'] / 1e6:,.0f} MB with all of them,"
        f" {memory['after']['bytes'] / 1e6:,.0f} MB after ({memory['change']:+.1%}).",
        table(list(visitors["kinds"].items()), ("request", lambda one: one[0]),
              *((name, lambda one, name=name: str(one[1][name])) for name in ("answered", "refused", "failed")),
              ("p50, seconds", lambda one: f"{one[1]['p50_seconds']:.2f}"),
              ("p95, seconds", lambda one: f"{one[1]['p95_seconds']:.2f}")),
    ]  # fmt: skip
