"""The app in a process of its own, which tells what it holds; programs that call it over plain HTTP.

In: settings as variables of the environment. Out: `Served`, its address and what the process holds (memory after
garbage was collected, threads, open files, sessions); `call`, what became of a request.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memo.errors import BackendError

if TYPE_CHECKING:
    import httpx

MARK = "held "  # a line of the process begins so when it tells what it holds


def holds(sessions: int, pages: int) -> dict[str, int]:
    """What this process holds once its garbage is collected and the allocator has given free pages back. Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"bytes": resident, "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")),
            "sessions": sessions, "pages": pages}  # fmt: skip


def main() -> None:
    """Serves until its input ends; every line that comes in is answered with what the process holds."""
    from memo.settings import from_environment
    from memo.ui import launch

    running = launch(from_environment(port=0), prevent_thread_lock=True)
    try:
        for _ in sys.stdin:
            held = holds(len(running.sessions), len(running.demo.app.state_holder.session_data))
            print(MARK + json.dumps(held), flush=True)
    finally:
        running.close()


@dataclass
class Served:
    """A running app: `url` ends in a slash."""

    process: subprocess.Popen[str]
    url: str

    def held(self) -> dict[str, int]:
        """bytes, threads, files, sessions, pages of the process, now."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(_line(self.process.stdout, MARK))


def _line(stream: IO[str], begin: str) -> str:
    """The rest of the next line that begins so. Raises BackendError if there is none."""
    for line in stream:
        if line.startswith(begin):
            return line.removeprefix(begin).strip()
    raise BackendError("The app has ended.", "Start it alone (memo serve) and see what it says.")


@contextmanager
def serving(environment: Mapping[str, str], log: Path) -> Iterator[Served]:
    """Starts the app with these variables on a free port of this machine; stops it afterwards. log: its stderr

    Raises:
        BackendError: it does not start.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "memo.evaluate.served"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                              "GRADIO_ANALYTICS_ENABLED": "False", **environment},
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Served(process, _line(process.stdout, "memo is at "))
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def call(web: httpx.Client, name: str, *values: Any) -> tuple[str, Any]:
    """Calls a function of the app's API, as a program without any library does.

    -> "answered" and what came; "refused" and the sentence that says why; "failed" and what there is instead of one
    """
    import httpx

    try:
        reply = web.post(f"gradio_api/call/{name}", json={"data": list(values)})
        if reply.status_code != 200:
            return told(reply)
        came = ""
        with web.stream("GET", f"gradio_api/call/{name}/{reply.json()['event_id']}") as stream:
            event = ""
            for line in stream.iter_lines():
                key, _, value = line.partition(": ")
                event = value if key == "event" else event
                if key == "data" and event in ("complete", "error"):
                    came = value
                    break
        found = json.loads(came or "null")
        if event == "complete":
            return "answered", found[0]
        said = found.get("error") if isinstance(found, dict) else found
        return ("refused", said) if said else ("failed", "an error without a sentence")
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        return "failed", f"{type(error).__name__}: {error}"[:200]


def told(reply: httpx.Response) -> tuple[str, str]:
    """What a status other than 200 means: refused, and why, unless the app broke down (5xx, but for 503: too many)."""
    polite = reply.status_code < 500 or reply.status_code == 503
    return "refused" if polite and reply.text else "failed", f"{reply.status_code} {reply.text}"[:200]


if __name__ == "__main__":
    main()
