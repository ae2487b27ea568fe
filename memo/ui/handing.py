"""A visitor's trained weights as a download.

In: a request for `/weights/KEY`, before Gradio sees it; the key is random, told to the visitor's own page alone, and
means something only as long as the weights are there. Out: the file, or 404.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from memo.sessions import Sessions

PATH = "/weights/"
NAME = "memo-weights.safetensors"


class Handing:
    """A layer of the app that gives out weights."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self.app, self.sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            return await self.app(scope, receive, send)
        path = self.found(scope["path"].removeprefix(PATH))
        if path is None or scope["method"] != "GET":
            return await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        headers = {"cache-control": "no-store"}
        await FileResponse(path, headers=headers, media_type="application/octet-stream", filename=NAME)(
            scope, receive, send
        )

    def found(self, key: str) -> Path | None:
        """The weights of this key, if there are such."""
        for session in self.sessions.all():
            training = getattr(session.view, "training", None)
            if training is not None and training.key and secrets.compare_digest(training.key.encode(), key.encode()):
                return training.weights if training.weights and training.weights.exists() else None
        return None


def handing(sessions: Sessions) -> list[Middleware]:
    """What FastAPI takes to have it."""
    return [Middleware(Handing, sessions=sessions)]
