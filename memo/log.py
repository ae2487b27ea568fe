"""What the app tells about its work: one JSON object a line, nothing of what people wrote.

In: the name of an event and its facts. Out: with `MEMO_LOG=json` lines on standard error, for whoever hosts the app;
else nothing. Only facts that are known here get out, and a text among them only if it is one of ours (the name of a
strategy, of a type of error, of a route): no question, no name of a file, no token, no address.

    {"time": "2026-01-31T12:00:00.000+00:00", "event": "answered", "strategy": "rag", "seconds": 1.8, "tokens": 40}
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from memo.errors import SettingsError

LOG = logging.getLogger("memo")
FACTS = {"strategy", "error", "route", "seconds", "milliseconds", "status", "tokens", "slots", "sessions", "documents"}


class Lines(logging.Formatter):
    """A record as a line of JSON. The traceback of a fault is left out, for it may quote; its type is told."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "event": record.msg}
        fault = {"error": record.exc_info[0].__name__} if record.exc_info and record.exc_info[0] else {}
        return json.dumps(line | fault | getattr(record, "facts", {}))


def note(event: str, **facts: str | float) -> None:
    """Tells of an event. Raises ValueError for a fact that is not known here."""
    if unknown := facts.keys() - FACTS:
        raise ValueError(f"no such facts: {sorted(unknown)}")
    LOG.info(event, extra={"facts": {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}})


def start(kind: str) -> None:
    """Has events written from now on. kind: "json"; empty: not. Raises SettingsError for anything else."""
    if kind not in ("", "json"):
        raise SettingsError(f"MEMO_LOG is {kind!r}.", "It must be json, or not set.")
    if kind and not LOG.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines())
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
