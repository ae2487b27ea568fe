"""The app for programs, with real clients: gradio_client over HTTP, and an MCP client."""

from __future__ import annotations

import ast
import asyncio
import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from conftest import SMALL, TINY, counting_words
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

import memo.ui

NAMES = {"/memorize", "/memorize_file", "/ask", "/compare", "/documents", "/forget"}


@pytest.fixture(scope="module")
def app(tmp_path_factory, tiny_folder):
    data = tmp_path_factory.mktemp("api") / "sessions"
    settings = replace(SMALL, data=data, port=0, memory_model=str(tiny_folder), **TINY)
    running = memo.ui.launch(settings, prevent_thread_lock=True, models=counting_words(settings))
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(app):
    return Client(app.url, verbose=False)


def test_the_lines_of_the_readme_run(app, capsys):
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```text\n(from gradio_client.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(block.replace("http://127.0.0.1:7860", app.url), {})
    assert capsys.readouterr().out.strip()


def test_only_what_is_documented_can_be_called(client):
    known = client.view_api(return_format="dict")["named_endpoints"]
    assert known.keys() == NAMES
    for name, one in known.items():
        assert all(not parameter["parameter_name"].startswith("param_") for parameter in one["parameters"]), name


def test_from_memorizing_to_forgetting(app, client, tmp_path):
    made = client.predict(text=tiny.TEXT, name="mill.md", token="", api_name="/memorize")
    token, document = made["token"], made["document"]
    assert document["name"] == "mill.md" and document["tokens"] > document["slots"] > 0
    path = tmp_path / "bridge.txt"
    path.write_text("The bridge of the mill was built again in 1904.")
    again = client.predict(handle_file(str(path)), token, api_name="/memorize_file")
    assert again["token"] == token and path.exists()
    assert not list(Path(app.demo.app.uploaded_file_dir).rglob(path.name))  # the server's copy is gone
    listed = client.predict(token=token, api_name="/documents")["documents"]
    assert [one["name"] for one in listed] == ["mill.md", "bridge.txt"]
    answer = client.predict(question="Who bought the mill?", token=token, strategy="rag", api_name="/ask")
    assert answer["strategy"] == "rag" and answer["passages"] and isinstance(answer["answer"], str)
    both = client.predict(question="Who?", token=token, strategies=["memorag", "closed_book"], api_name="/compare")
    assert both.keys() == {"memorag", "closed_book"}
    assert client.predict(token=token, document="mill.md", api_name="/forget") == {"forgotten": ["mill.md"]}
    root = app.sessions.get(token).rag.library.root
    assert client.predict(token=token, document="", api_name="/forget") == {"forgotten": ["bridge.txt"]}
    assert not root.exists()
    with pytest.raises(AppError, match="session has ended"):
        client.predict(token=token, api_name="/documents")


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("/ask", {"question": "Who?", "token": "0" * 32, "strategy": "rag"}, "session has ended"),
        ("/documents", {"token": "../../etc"}, "session has ended"),
        ("/memorize", {"text": " ", "name": "a.txt", "token": ""}, "empty|no text"),
        ("/forget", {"token": "", "document": "x"}, "session has ended"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(app, client, name, more, said):
    before = len(app.sessions)
    with pytest.raises(AppError, match=said) as caught:
        client.predict(**more, api_name=name)
    assert "Traceback" not in str(caught.value) and len(app.sessions) == before


def test_a_wrong_file_and_an_unknown_strategy_are_refused(app, client, tmp_path):
    path = tmp_path / "photo.pdf"
    path.write_bytes(base64.b64decode("iVBORw0KGgo="))
    with pytest.raises(AppError):
        client.predict(handle_file(str(path)), "", api_name="/memorize_file")
    token = client.predict(text=tiny.TEXT, name="mill", token="", api_name="/memorize")["token"]
    with pytest.raises(AppError, match="No strategy is named"):
        client.predict(question="Who?", token=token, strategy="magic", api_name="/ask")
    assert client.predict(token=token, document="", api_name="/forget") == {"forgotten": ["mill.txt"]}


def test_libraries_are_apart(client):
    one, two = (client.predict(text=text, name="a.txt", token="", api_name="/memorize")["token"]
                for text in (tiny.TEXT, "The harbour froze."))  # fmt: skip
    listed = [client.predict(token=token, api_name="/documents")["documents"] for token in (one, two)]
    assert one != two and [len(some) for some in listed] == [1, 1] and listed[0][0]["id"] != listed[1][0]["id"]
    for token in (one, two):
        client.predict(token=token, document="", api_name="/forget")


def test_an_assistant_finds_the_same_as_tools(app):
    async def talk() -> None:
        async with (
            streamablehttp_client(f"{app.url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name.split("memo_")[-1]: tool for tool in (await session.list_tools()).tools}
            assert {"memorize", "ask", "compare", "documents", "forget"} <= {name.lstrip("_") for name in tools}
            by_name = {name.lstrip("_"): tool.name for name, tool in tools.items()}

            async def call(tool: str, **more: object) -> dict:
                result = await session.call_tool(by_name[tool], more)
                assert not result.isError, result
                return ast.literal_eval(result.content[0].text)

            made = await call("memorize", text=tiny.TEXT, name="mill.txt", token="")
            answer = await call("ask", question="Who bought the mill?", token=made["token"], strategy="rag")
            assert answer["passages"]
            listed = await call("documents", token=made["token"])
            assert listed["documents"][0]["name"] == "mill.txt"
            assert (await call("forget", token=made["token"], document=""))["forgotten"] == ["mill.txt"]

    asyncio.run(talk())
