"""Serves the app: settings from the environment, the page, the models in the background.

In: `MEMO_*` variables (see memo/settings.py), `HOST`, `PORT`. Out: a web server until interrupted.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for work must not keep others from the cores

with suppress(ImportError):
    import spaces  # noqa: F401  a host with shared GPUs wants it imported before torch

from memo.errors import MemoError
from memo.settings import Settings, from_environment
from memo.ui import launch


def settings() -> Settings:
    """Those of the environment; `HOST` and `PORT` win, and a Space serves to its outside."""
    chosen: dict[str, object] = {}
    if os.environ.get("SYSTEM") == "spaces":
        chosen["host"] = "0.0.0.0"
    if host := os.environ.get("HOST"):
        chosen["host"] = host
    if port := os.environ.get("PORT"):
        chosen["port"] = from_environment({"MEMO_PORT": port}).port
    return from_environment(**chosen)


if __name__ == "__main__":
    try:
        launch(settings())
    except MemoError as error:
        sys.exit(str(error))
