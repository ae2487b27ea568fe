"""Who may train now: one at a time in this process, in the order of coming, for it takes every core.

In: threads that want to. Out: their turn, and until then their place in the line.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK = 0.2  # seconds between two looks whether it is still wanted


class Line:
    """A line of threads. The first of it works."""

    def __init__(self) -> None:
        self._waiting, self._changed = deque[object](), threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def turn(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Within it nobody else has their turn. waiting: hears the place, 1 for the next; what it raises ends it."""
        mine = object()
        with self._changed:
            self._waiting.append(mine)
        try:
            while True:
                with self._changed:
                    place = self._waiting.index(mine)
                    if not place:
                        break
                waiting(place)
                with self._changed:
                    self._changed.wait(LOOK)
            yield
        finally:
            with self._changed:
                self._waiting.remove(mine)
                self._changed.notify_all()


LINE = Line()
