"""memo: a model that has read your documents before you ask.

The names below are what most programs need; each is loaded when it is first used, so `import memo` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_library": "memo.pipeline",
    "finish": "memo.pipeline",
    "MemoRAG": "memo.pipeline",
    "Models": "memo.pipeline",
    "Stop": "memo.pipeline",
    "Library": "memo.library",
    "Settings": "memo.settings",
    "from_environment": "memo.settings",
    "read_document": "memo.documents",
    "read_bytes": "memo.documents",
    "MemoError": "memo.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
