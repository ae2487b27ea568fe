"""Whose turn it is to run a model, which is changed for everybody while memory tokens are read.

In: threads that ask (`with turn:`). Out: one at a time, in the order of asking.
"""

from __future__ import annotations

import threading
from collections import deque


class Turn:
    """A lock that is handed on in the order of asking, so that a long reading does not starve a short question."""

    def __init__(self) -> None:
        self._lock, self._waiting, self._busy = threading.Lock(), deque[threading.Event](), False

    def __enter__(self) -> None:
        with self._lock:
            if not self._busy and not self._waiting:
                self._busy = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            mine.wait()
        except BaseException:  # interrupted while waiting: the turn must not be handed to nobody
            with self._lock:
                given = mine not in self._waiting
                if not given:
                    self._waiting.remove(mine)
            if given:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # busy goes over to the next in line
            else:
                self._busy = False
