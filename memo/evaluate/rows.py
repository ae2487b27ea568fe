"""Rows on disk: what is measured already, so that a run that was killed goes on where it was.

In: a file, what tells this run apart from others (`about`), and the rows of each finished unit of work. Out: all rows
so far, by unit. The file is JSON lines, appended to: first `{"about": …}`, then `{"key": …, "rows": […]}` a unit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memo.errors import SettingsError

Row = dict[str, Any]


class Rows:
    """Finished units of work: `done` maps a unit's key to its rows. One process at a time.

    path: None keeps them in memory only. about: everything that determines results, as JSON values.

    Raises:
        SettingsError: the file holds rows of another run, or is no file of rows.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.done = path, dict[str, list[Row]]()
        about = json.loads(json.dumps(about))  # as it comes back from a file: tuples are lists
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.read_bytes() if path.exists() else b""
        whole = held[: held.rfind(b"\n") + 1]  # a last line without its end was cut off by a kill
        if not whole:
            with path.open("wb") as file:
                file.write(_line({"about": about}))
            return
        self._read(whole, about)
        if len(whole) < len(held):  # only once it is known to be ours
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def _read(self, whole: bytes, about: dict[str, Any]) -> None:
        hint = "Delete it to measure from the start, or choose another file."
        try:
            header, *units = map(json.loads, whole.splitlines())
            known = dict(header["about"])
            self.done = {unit["key"]: unit["rows"] for unit in units}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SettingsError(f"{self.path} is not a file of measured rows.", hint) from error
        if known != about:
            other = [name for name in sorted(known.keys() | about.keys()) if known.get(name) != about.get(name)]
            raise SettingsError(f"{self.path} holds the rows of another run ({', '.join(other)} differ).", hint)

    def add(self, key: str, rows: list[Row]) -> None:
        """A finished unit: in `done`, and on disk as one line."""
        line = _line({"key": key, "rows": rows})
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(line)
        self.done[key] = json.loads(line)["rows"]  # the same values as after resuming


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
