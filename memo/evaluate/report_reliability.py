"""The report's part about hard knocks: broken files, and processes that are killed.

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
    if inputs := results.get("inputs"):
        kinds: Mapping[str, Any] = inputs["kinds"]
        outcomes = ("read", "refused", "crashed", "hung")
        parts += [
            f"{inputs['count']:,} broken files; the longest took {inputs['longest_seconds']:.1f} seconds. Refused is"
            " refused with a sentence for the person; hung is more than"
            f" {results['what']['hang_seconds']:g} seconds.",
            table(list(kinds.items()), ("kind", lambda one: one[0]),
                  *((name, lambda one, name=name: str(one[1].get(name, 0))) for name in outcomes)),
        ]  # fmt: skip
    if kills := results.get("kills"):
        parts.append(
            f"Processes killed while they worked: {kills['memorize']['kills']} that memorized and indexed documents,"
            f" {kills['train']['kills']} that made a Memory Decoder (datastore, neighbours, training). Documents lost:"
            f" {kills['memorize']['lost']}, half-done ones that showed: {kills['memorize']['half_done']}, decoders"
            f" other than the one made in peace: {kills['train']['another_decoder']}."
        )
    return parts
