"""What Gradio keeps of pages and programs that are not there any more, taken away.

In: a served page and the visitors' sessions. Out: nothing; the server's memory no longer grows with every call.

Gradio keeps about half a megabyte for every page that was ever loaded and for every call of a program, ten thousand of
them. What belongs to an open session stays, and what is in use now.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import gradio as gr

from memo.sessions import Sessions, repeat

MOST = 2000  # pages that Gradio keeps at all
IDLE = timedelta(seconds=10)  # a call that takes longer holds what it needs itself


def sweep(demo: gr.Blocks, sessions: Sessions, idle: timedelta = IDLE) -> None:
    """Takes away what has been idle for so long and belongs to no open session."""
    holder, limit = demo.app.state_holder, datetime.now() - idle
    with holder.lock:
        for page, state in list(holder.session_data.items()):
            token = next((value for value in list(state.state_data.values()) if isinstance(value, str)), "")
            if token not in sessions and holder.time_last_used.get(page, datetime.min) < limit:
                del holder.session_data[page]
                holder.time_last_used.pop(page, None)


def watch(demo: gr.Blocks, sessions: Sessions, ended: threading.Event, every: float = 5.0) -> None:
    """Sweeps in the background until `ended` is set."""
    repeat(lambda: sweep(demo, sessions), every, ended, "memo-pages")
