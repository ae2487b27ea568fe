"""What a Memory Decoder's folder says of itself, read without the libraries that run it.

In: a folder. Out: decoder.json as a dict: how it was trained, alpha, what was measured on held-out text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memo.errors import ModelError, reason
from memo.models import write_atomic

ROUTED = -1.0  # in place of an alpha: that of every token by the decoder's router
ROUTER = "router.safetensors"  # its file, where there is one


def note(folder: Path, more: dict[str, Any]) -> None:
    """Adds to what decoder.json says."""
    write_atomic(folder / "decoder.json", json.dumps({**about(folder), **more}, indent=1, ensure_ascii=False))


def publish(made: Path, out: Path) -> None:
    """Puts the files of a finished decoder in place of those in `out`, each whole at any moment, decoder.json last."""
    files = sorted(made.iterdir(), key=lambda path: path.name == "decoder.json")
    for old in {*out.glob("decoder*.safetensors*")} - {out / path.name for path in files}:
        old.unlink()
    for path in files:
        path.replace(out / path.name)
    made.rmdir()


def about(folder: str | Path) -> dict[str, Any]:
    """What decoder.json says; nothing for a causal model that was not written by `save`.

    Raises:
        ModelError: it cannot be read.
    """
    path = Path(folder) / "decoder.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"The Memory Decoder in {path.parent.name} is damaged: {reason(error)}") from error
