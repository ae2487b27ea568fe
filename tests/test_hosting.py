"""The app as a host runs it: told to stop it ends in order, and its log holds nothing of what people wrote."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import tiny
from conftest import TINY
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from memo import log
from memo.errors import SettingsError
from memo.ui import texts
from memo.ui.door import route

ROOT = Path(__file__).parents[1]
SECRET = "Zanzibar-4471"


@pytest.fixture
def served(tmp_path, tiny_folder):
    """A function: starts app.py with a tiny model; its process, address and folder of visitors."""
    started = []

    def start():
        sizes = {f"MEMO_{name.upper()}": str(value) for name, value in TINY.items()}
        environment = os.environ | sizes | {
            "MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_DATA": str(tmp_path / "data"), "PORT": "0",
            "MEMO_LOG": "json", "MEMO_DTYPE": "float32", "MEMO_MAX_TOKENS": "900000",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("w"),
        )  # fmt: skip
        started.append(process)
        for line in process.stdout:
            if said := re.match(r"memo is at (\S+)", line):
                return process, said[1], tmp_path / "data"
        raise AssertionError((tmp_path / "log").read_text())

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_in_order_and_deletes_what_visitors_left(served, number):
    process, url, data = served()
    client = Client(url, verbose=False)
    client.predict(text=tiny.TEXT, name="mill.txt", token="", api_name="/memorize")
    assert [path for path in data.iterdir() if len(path.name) == 32]

    def put_in():
        with suppress(Exception):  # whatever a client says whose server is gone
            client.predict(text=tiny.TEXT * 2000, name="long.txt", token="", api_name="/memorize")

    more = threading.Thread(target=put_in, daemon=True)
    more.start()  # told to stop in the middle of a long text
    while len([path for path in data.iterdir() if len(path.name) == 32]) < 2 and more.is_alive():
        pass
    process.send_signal(number)
    assert process.wait(60) == 0
    assert [path for path in data.iterdir() if len(path.name) == 32] == []


def test_the_log_holds_nothing_of_what_people_wrote(served, tmp_path):
    process, url, _ = served()
    client = Client(url, verbose=False)
    path = tmp_path / f"{SECRET}.txt"
    path.write_text(f"{SECRET} is told here. {tiny.TEXT}")
    made = client.predict(handle_file(str(path)), "", api_name="/memorize_file")
    client.predict(question=f"What is {SECRET}?", token=made["token"], strategy="memorag", api_name="/ask")
    with pytest.raises(AppError):
        client.predict(question=f"What is {SECRET}?", token=made["token"], strategy=SECRET, api_name="/ask")
    with pytest.raises(AppError):
        client.predict(text="", name=SECRET, token="", api_name="/memorize")
    httpx.get(f"{url}gradio_api/file={SECRET}"), httpx.get(f"{url}{SECRET}?{SECRET}")
    client.predict(token=made["token"], document="", api_name="/forget")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    text = (tmp_path / "log").read_text()
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert SECRET not in text and made["token"] not in text and "127.0.0.1" not in "".join(map(str, events))
    known = {event["event"] for event in events}
    assert known >= {"serving", "session opened", "memorized", "answered", "session ended", "request", "stopping"}
    [answered] = [event for event in events if event["event"] == "answered"]
    assert answered["strategy"] == "memorag" and answered["seconds"] > 0 and answered["tokens"] > 0


def test_only_facts_that_are_known_get_out():
    with pytest.raises(ValueError, match="question"):
        log.note("answered", question="Who?")
    record = logging.LogRecord("memo", logging.INFO, "x.py", 1, "answered", (), None)
    record.facts = {"seconds": 1.5}
    assert json.loads(log.Lines().format(record)) | {"time": ""} == {"time": "", "event": "answered", "seconds": 1.5}
    with pytest.raises(SettingsError):
        log.start("xml")


def test_of_a_fault_its_type_is_told_and_nothing_it_says():
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(log.Lines().format(record))
    texts.log.addHandler(handler)
    try:
        texts.tell("en", ValueError(SECRET))
    finally:
        texts.log.removeHandler(handler)
    assert [json.loads(line) | {"time": ""} for line in told] == [
        {"time": "", "event": "unexpected", "error": "ValueError"}
    ]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/gradio_api/file=/tmp/gradio/secret.txt", "/gradio_api/file"), ("/secret.txt", "/"), ("/", "/"),
        ("/gradio_api/heartbeat/abc", "/gradio_api/heartbeat"), ("/secret/upload", "/upload"),
    ],
)  # fmt: skip
def test_of_a_path_only_what_is_ours_is_told(path, told):
    assert route(path) == told
