"""The command `memo evaluate reliability`: bad inputs, processes that are killed, many visitors.

In: how many of each. Out: what `bad_inputs`, `kills` and `visitors` found, as JSON. Each part is kept beside the
results when it is done: a run that was killed, or asked for one part only, is gone on with.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memo.settings import from_environment


def add_arguments(parser: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """number: of an argument that is 0 or more."""
    parser.add_argument("--inputs", type=number, default=2000, metavar="N", help="bad inputs (default 2000)")
    parser.add_argument("--kills", type=number, default=50, metavar="N", help="killed processes (default 50)")
    parser.add_argument("--visitors", type=number, default=200, metavar="N", help="visitors of the app (default 200)")
    parser.add_argument("--minutes", type=float, default=10.0, help="that they ask, at least (default 10)")
    parser.add_argument("--at-once", type=number, default=8, metavar="N", help="visitors asking at once (default 8)")
    parser.add_argument("--seed", type=number, default=0, help="of what is drawn (default 0)")


def run(chosen: argparse.Namespace, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Measures what is not measured yet; a part that is asked for with 0 is left out unless it is there.

    Raises:
        TrainingFailed: a kill lost something or left something half-done. BackendError: the app does not start.
    """
    from memo.evaluate import bad_inputs, kills, visitors
    from memo.evaluate.rows import Rows

    settings = from_environment()
    rows = Rows(chosen.out.with_suffix(".rows.jsonl"), {"measure": "reliability", "seed": chosen.seed})
    parts: dict[str, Callable[[Path], dict[str, Any]] | None] = {
        "inputs": chosen.inputs and (lambda folder: bad_inputs.evaluate(
            folder, chosen.inputs, chosen.seed, settings.cache, tell)),
        "kills": chosen.kills and (lambda folder: kills.evaluate(
            folder, chosen.kills, chosen.seed, settings.cache, tell)),
        "visitors": chosen.visitors and (lambda folder: visitors.evaluate(
            folder, chosen.visitors, max(1, chosen.at_once), chosen.minutes, chosen.seed, tell)),
    }  # fmt: skip
    for name, measure in parts.items():
        if measure and name not in rows.done:
            began = os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder))
            load = {"cores": os.cpu_count(), "load_average": [round(one, 2) for one in (began, os.getloadavg()[0])]}
            rows.add(name, [{**found, "machine": load}])
    what = {"seed": chosen.seed, "hang_seconds": bad_inputs.HANG}
    return {"what": what} | {name: rows.done[name][0] for name in parts if name in rows.done}
