"""What Gradio keeps of pages and programs that are not there any more, taken away.

In: a served page and the visitors' sessions. Out: nothing; the server's memory no longer grows with every call.

Gradio keeps about half a megabyte for every page that was ever loaded and for every call of a program, ten thousand of
them; and of two thousand what came out and nobody fetched: answers, passages. What belongs to an open session stays,
and what is in use now.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

import gradio as gr

from memo.sessions import Sessions, repeat

MOST = 2000  # pages that Gradio keeps at all
IDLE = timedelta(seconds=10)  # a call that takes longer holds what it needs itself
FETCHED = 300.0  # seconds within which what came out of a call is to be fetched


def sweep(demo: gr.Blocks, sessions: Sessions, idle: timedelta = IDLE) -> None:
    """Takes away what has been idle for so long and belongs to no open session."""
    holder, limit = demo.app.state_holder, datetime.now() - idle
    with holder.lock:
        for page, state in list(holder.session_data.items()):
            token = next((value for value in list(state.state_data.values()) if isinstance(value, str)), "")
            if token not in sessions and holder.time_last_used.get(page, datetime.min) < limit:
                del holder.session_data[page]
                holder.time_last_used.pop(page, None)


def forget(demo: gr.Blocks, since: dict[str, float], fetched: float = FETCHED) -> None:
    """Takes away what came out of calls whose page is gone and of which none has been running for so long.

    since: when each was first seen so; kept from call to call.
    """
    queue, there = demo._queue, demo.app.state_holder.session_data
    running = {event.session_hash for event in list(queue.event_ids_to_events.values())}
    known = {*list(queue.pending_messages_per_session), *list(queue.pending_event_ids_session)}
    over = {page for page in known if page not in there and page not in running}
    now = time.monotonic()
    for page in since.keys() - over:
        del since[page]
    for page in over:
        if now - since.setdefault(page, now) >= fetched:
            queue.pending_event_ids_session.pop(page, None)
            queue.pending_messages_per_session.pop(page, None)
            del since[page]


def watch(demo: gr.Blocks, sessions: Sessions, ended: threading.Event, every: float = 5.0) -> None:
    """Sweeps in the background until `ended` is set."""
    since = dict[str, float]()

    def work() -> None:
        sweep(demo, sessions)
        forget(demo, since)

    repeat(work, every, ended, "memo-pages")
