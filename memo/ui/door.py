"""The door of the server: what comes in is bounded and stays ours, and whoever watches over it is told how it is.

In: requests, before Gradio sees them. Out: the same; 413 for a body over the limit, declared or not; at `/healthz`
whether the app can answer. An address that a client names in place of a file is refused: nothing is fetched for others.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.route_utils import API_PREFIX
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memo.log import note
from memo.settings import Settings
from memo.ui.warmup import Warmup

HEALTH = "/healthz"
UPLOAD = f"{API_PREFIX}/upload"
FRAME = 1 << 20  # bytes of a body beside its files
CLOSE = (b"connection", b"close")
ROUTES = {"gradio_api", "assets", "static", "config", "upload", "upload_progress", "file", "queue", "run", "call",
          "mcp", "heartbeat", "cancel", "reset", "info", "theme.css", "svelte", "login", "app_id"}  # fmt: skip

Health = Callable[[], tuple[int, dict[str, Any]]]


class TooLarge(Exception):
    """More of a body has come than is taken."""


class Door:
    """The outermost layer of the app.

    files, other: bytes of a body with uploads, and of any other. health: status, and what is told of it.
    """

    def __init__(self, app: ASGIApp, files: int, other: int, health: Health) -> None:
        self.app, self.files, self.other, self.health = app, files, other, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == HEALTH:
            status, told = self.health()
            return await _answer(send, status, json.dumps(told).encode(), b"application/json")
        most = self.files if scope["path"] == UPLOAD else self.other
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            return await _refuse(send, most)
        come, begun, began, status = 0, False, time.monotonic(), 0

        async def bounded() -> Message:
            nonlocal come
            message = await receive()
            come += len(message.get("body", b""))
            if come > most:
                raise TooLarge
            return message

        async def noting(message: Message) -> None:
            nonlocal begun, status
            if come <= most or begun:  # what the app makes of `TooLarge` is not told
                begun, status = True, message.get("status", status)
                if message.get("status") == 413:  # Gradio's, of one file: whoever goes on sending is cut off
                    message = {**message, "headers": [*message["headers"], CLOSE]}
                await send(message)

        try:
            await self.app(scope, bounded, noting)
        except Exception:
            if come <= most:
                raise
        if come > most and not begun:
            await _refuse(send, most)
        taken = 1000 * (time.monotonic() - began)
        note("request", route=route(scope["path"]), status=status if begun else 413, milliseconds=round(taken))


def route(path: str) -> str:
    """What of a path is ours: which part of the app it asks, without the name of a file or the id of a page."""
    parts = re.split("[/=]", path.strip("/"))
    ours = [part for part in parts[:2] if part in ROUTES]
    return "/" + "/".join(ours)


async def _refuse(send: Send, most: int) -> None:
    told = f"That is too large: {most >> 20} MB at most in one request."
    await _answer(send, 413, told.encode(), b"text/plain; charset=utf-8")


async def _answer(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    headers += [CLOSE] if status == 413 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def door(settings: Settings, warmup: Warmup) -> list[Middleware]:
    """What FastAPI takes to have one: as many bytes as the settings let a visitor put in, the health of the models."""

    def health() -> tuple[int, dict[str, Any]]:
        if warmup.error:
            return 503, {"status": "failed", "error": type(warmup.error).__name__}
        return 200, {"status": "ok" if warmup.done else "starting"}

    one = settings.max_file_mb << 20
    files, other = settings.max_documents * (one + FRAME), 2 * one + FRAME  # a text may be twice as long in JSON
    return [Middleware(Door, files=files, other=other, health=health)]


def fetch_nothing() -> None:
    """From now on an address in place of a file is refused. Gradio would download it, from public hosts."""

    def refuse(*_: object, **__: object) -> str:
        raise gr.Error("An address is not fetched. Send the file itself.", print_exception=False)

    async def refuse_async(*_: object, **__: object) -> str:
        return refuse()

    processing_utils.async_ssrf_protected_download = refuse_async
    processing_utils.save_url_to_cache = refuse
