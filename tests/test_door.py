"""The door: bodies are bounded, no address is fetched, the health is told."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import safehttpx
from conftest import SMALL, TINY, counting_words
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

import memo.ui
from memo.ui.door import HEALTH, UPLOAD, Door, door


@pytest.fixture(scope="module")
def app(tmp_path_factory, tiny_folder):
    data = tmp_path_factory.mktemp("door") / "sessions"
    settings = replace(
        SMALL, data=data, port=0, memory_model=str(tiny_folder), max_file_mb=1, max_documents=2, **TINY
    )
    running = memo.ui.launch(settings, prevent_thread_lock=True, models=counting_words(settings))
    yield running
    running.close()


@pytest.fixture
def fetched(monkeypatch):
    """The addresses that the server asks for."""
    asked = []

    async def get(address, *_, **__):
        asked.append(address)
        raise RuntimeError("nothing is to be fetched")

    monkeypatch.setattr(safehttpx, "get", get)
    return asked


ADDRESS = "https://example.com/report.txt"


def test_an_address_in_place_of_a_file_is_not_fetched(app, fetched):
    client = Client(app.url, verbose=False)
    for file in ({"path": ADDRESS}, {"path": ADDRESS, "url": ADDRESS}):
        with pytest.raises(AppError) as caught:
            client.predict(file | {"meta": {"_type": "gradio.FileData"}}, "", api_name="/memorize_file")
        assert "not fetched" in str(caught.value)
    assert fetched == [] and len(app.sessions) == 0


def test_nor_for_a_page(app, fetched):
    web = httpx.Client(base_url=app.url + "gradio_api", timeout=60)
    for number, fn in app.demo.fns.items():
        if fn.name == "receive":
            file = {"path": ADDRESS, "url": ADDRESS, "meta": {"_type": "gradio.FileData"}}
            body = {"fn_index": number, "session_hash": "door", "data": [None, [file]]}
            assert web.post("/run/predict", json=body).status_code >= 400
    assert fetched == []


def test_nor_for_an_assistant(app, fetched):
    async def call():
        async with (
            streamablehttp_client(app.url + "gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            name = next(tool.name for tool in (await session.list_tools()).tools if tool.name.endswith("memorize_file"))
            return await session.call_tool(name, {"file": ADDRESS, "token": ""})

    assert asyncio.run(call()).isError
    assert fetched == []


@pytest.mark.parametrize("path", ["run/predict", "upload", "queue/join", "mcp/"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_without_end_is_refused_and_leaves_nothing(app, path, declared):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
        while True:
            yield b"x" * 65536

    def there():
        uploads, single = Path(app.demo.app.uploaded_file_dir), Path(tempfile.gettempdir())
        return {*uploads.rglob("*"), *(file for file in single.glob("tmp*") if file.is_file())}

    headers = {"Content-Type": "multipart/form-data; boundary=x" if path == "upload" else "application/json"}
    headers["Accept"] = "application/json, text/event-stream"
    if declared:
        headers["Content-Length"] = str(1 << 40)
    before, status = there(), 0
    try:
        status = httpx.post(f"{app.url}gradio_api/{path}", content=endless(), headers=headers, timeout=60).status_code
    except httpx.TransportError:  # the server hung up while we were still talking
        assert httpx.get(app.url + HEALTH.strip("/")).status_code == 200
    assert status in (0, 413)
    assert there() <= before


def test_the_health_of_the_models():
    def told(**warmup):
        [middleware] = door(SMALL, SimpleNamespace(**{"done": False, "error": None} | warmup))
        return middleware.kwargs["health"]()

    assert told() == (200, {"status": "starting"}) and told(done=True) == (200, {"status": "ok"})
    assert told(error=OSError("/home/me/secret")) == (503, {"status": "failed", "error": "OSError"})


def test_health_is_answered(app):
    reply = httpx.get(app.url + HEALTH.strip("/"))
    assert reply.status_code == 200 and reply.json()["status"] in ("starting", "ok")
    assert reply.headers["cache-control"] == "no-store"


def test_what_the_app_makes_of_it_is_not_told_and_its_own_faults_are():
    """The door by itself: a body in pieces, and an app that answers 400 to what it cannot read."""

    async def careless(scope, receive, send):
        size, more = 0, True
        try:
            while more:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        except Exception:
            size = -1
        if size == 3:
            raise ValueError("a fault of its own")
        await send({"type": "http.response.start", "status": 400 if size < 0 else 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def status(*pieces, path="/x"):
        sent, waiting = [], [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
        waiting.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": []}
        asyncio.run(Door(careless, 100, 10, lambda: (200, {}))(scope, receive, send))
        return sent[0]["status"]

    assert status(b"12345", b"12345") == 200 and status(b"12345", b"123456") == 413
    assert status(b"x" * 100, path=UPLOAD) == 200 and status(b"x" * 101, path=UPLOAD) == 413
    assert status(b"x" * 11, path="/gradio_api/call/upload") == 413  # a function of that name takes no files
    with pytest.raises(ValueError, match="its own"):
        status(b"123")
