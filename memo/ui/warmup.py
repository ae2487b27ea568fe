"""Loads the models in the background, so that the page is there before they are.

In: `Models`. Out: `done`, or the error that kept them from loading.
"""

from __future__ import annotations

import threading

from memo.pipeline import Models


class Warmup:
    """Loads the generator and the embedder in a thread of its own, once started."""

    def __init__(self, models: Models) -> None:
        self.models, self.done = models, False
        self.error: Exception | None = None

    def start(self) -> None:
        threading.Thread(target=self._load, daemon=True, name="memo-warmup").start()

    def _load(self) -> None:
        try:
            self.models.embedder()
            self.models.generator()
            self.done = True
        except Exception as error:  # shown on the page: whatever a model, a hub or a disk comes up with
            self.error = error
