"""The command `memo evaluate reliability`: broken files, and processes that are killed.

In: how many of each. Out: what `bad_inputs` and `kills` found, as JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memo.settings import from_environment


def add_arguments(parser: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """number: of an argument that is 0 or more."""
    parser.add_argument("--inputs", type=number, default=2000, metavar="N", help="broken files (default 2000)")
    parser.add_argument("--kills", type=number, default=50, metavar="N", help="killed processes (default 50)")
    parser.add_argument("--seed", type=number, default=0, help="of what is drawn (default 0)")


def run(chosen: argparse.Namespace, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Measures. Raises TrainingFailed if a kill lost something or left something half-done."""
    from memo.evaluate import bad_inputs, kills

    found: dict[str, Any] = {"what": {"seed": chosen.seed, "hang_seconds": bad_inputs.HANG}}
    if chosen.inputs:
        found["inputs"] = bad_inputs.evaluate(chosen.inputs, chosen.seed, tell)
    if chosen.kills:
        with tempfile.TemporaryDirectory() as folder:
            found["kills"] = kills.evaluate(Path(folder), chosen.kills, chosen.seed, from_environment().cache, tell)
    return found
