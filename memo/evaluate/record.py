"""Results on disk: a JSON file that says what was measured, on which machine, by which command, at which commit, when.

In: results. Out: a file, written atomically.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memo.models import write_atomic


def processor() -> str:
    """The name of the processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with "+" if files but results differ from it; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/assets/results")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def write(path: Path, results: dict[str, Any], module: str) -> None:
    """Writes results with everything needed to measure them again. module: what was run with `python -m`."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    about = {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "gpu": gpu},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**about, "results": results}, indent=1, ensure_ascii=False) + "\n")
