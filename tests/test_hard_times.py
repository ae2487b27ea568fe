"""When what memo stands on gives way: no room on the disk, a folder that cannot be written, no database, an endpoint
that is slow or streams without end. What goes wrong is said, and the rest keeps working.

An endpoint that refuses, breaks off or streams garbage: test_endpoint.py; a Chroma server that is not there:
test_search.py.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import torch

from memo import memory_file
from memo.endpoint import EndpointGenerator
from memo.errors import BackendError, MemoError, SettingsError
from memo.events import AnswerDone, AnswerFailed
from memo.generate import Prompt
from memo.library import Library
from memo.pipeline import MemoRAG, finish
from memo.train import loop


@contextmanager
def files_of_at_most(size):
    """No file may grow beyond so many bytes: the system itself refuses to write, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def errors(steps):
    return [step.error for step in steps if step.error is not None]


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["memory", "text", "about", "words", "passages"])
def test_a_full_disk_is_told_and_leaves_the_library_as_it_was(tmp_path, tiny_rag, tiny_models, monkeypatch, what):
    kept = tiny.document("kept.txt", tiny.KOREAN)
    assert not errors(tiny_rag.memorize([kept]))
    with monkeypatch.context() as patch:
        if what == "memory":
            patch.setattr(memory_file, "save_file", no_room)
        if what == "text":
            patch.setattr(Path, "write_bytes", no_room)
        if what == "about":
            patch.setattr("memo.library.write_atomic", no_room)
        if what == "passages":
            patch.setattr(tiny_rag.library.index.collection, "upsert", no_room)
        if what == "words":
            put = tiny_rag.library.words.put
            patch.setattr(tiny_rag.library.words, "put", lambda name, some: no_room() if some else put(name, some))
        [error] = errors(tiny_rag.memorize([tiny.document()]))
    assert isinstance(error, MemoError) and error.hint
    assert [entry.name for entry in tiny_rag.library.documents.values()] == ["kept.txt"]
    assert [path.name for path in tiny_rag.library.folder.iterdir()] == [kept.id]
    assert finish(tiny_rag.ask("겨울마다?", "rag"))["rag"].passages
    assert not errors(tiny_rag.memorize([tiny.document()]))  # there is room again
    assert len(tiny_rag.library.documents) == 2


@pytest.mark.parametrize("size", [0, 3000, 20_000])
def test_files_that_cannot_grow_are_told_and_what_is_there_stays(tmp_path, tiny_rag, size):
    """The memory is written by code in Rust, words and passages by SQLite: none of it may get past us."""
    assert not errors(tiny_rag.memorize([tiny.document("kept.txt", tiny.KOREAN)]))
    with files_of_at_most(size):
        [error] = errors(tiny_rag.memorize([tiny.document(text=tiny.TEXT * 8)]))
    assert isinstance(error, MemoError)
    assert [entry.name for entry in tiny_rag.library.documents.values()] == ["kept.txt"]
    assert finish(tiny_rag.ask("겨울마다?", "rag"))["rag"].passages
    assert not errors(tiny_rag.memorize([tiny.document(text=tiny.TEXT * 8)]))


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path, monkeypatch):
    from test_train_loop import PLAN, Line, in_groups, points_of, squares

    from memo.train import setup

    accelerator = setup.accelerator("cpu", torch.float32)

    def train(until=None):
        line = Line()
        loop.train(line, lambda step: in_groups(points_of(step), 2, 2), squares(line), PLAN, tmp_path, {}, accelerator,
                   until=until)  # fmt: skip

    train(until=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_file", no_room)
        with pytest.raises(OSError):
            train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000002"]
    train()
    assert (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("command", ["memorize", "documents", "ask"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, tiny_folder, command):
    """/proc takes no files from anybody, not even from root."""
    text = tmp_path / "a.txt"
    text.write_text(tiny.TEXT)
    what = {"memorize": [str(text)], "documents": [], "ask": ["Who?"]}[command]
    environment = os.environ | {"MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_DEVICE": "cpu"}
    done = subprocess.run([sys.executable, "-m", "memo", command, *what, "--library", "/proc/memo"],
                          capture_output=True, text=True, env=environment)  # fmt: skip
    assert done.returncode and done.stderr.startswith("memo: ") and "/proc/memo" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sessions_in_a_folder_that_cannot_be_written_are_refused(tiny_settings):
    from memo.sessions import Sessions

    with pytest.raises(SettingsError, match="cannot be made"):
        Sessions(replace(tiny_settings, data=Path("/proc/memo")))


# --- the database ----------------------------------------------------------------------------------------------------


def test_without_the_database_what_needs_no_search_is_still_answered(tiny_rag, monkeypatch):
    assert not errors(tiny_rag.memorize([tiny.document()]))

    def down(*_, **__):
        raise ConnectionError("refused")

    for name in ("query", "count", "get"):
        monkeypatch.setattr(tiny_rag.library.index.collection, name, down)
    ends = [event for event in tiny_rag.compare("Who bought the mill?", ["rag", "full_context", "closed_book"])
            if isinstance(event, AnswerDone | AnswerFailed)]  # fmt: skip
    failed = {event.strategy: event.error for event in ends if isinstance(event, AnswerFailed)}
    answered = {event.strategy for event in ends if isinstance(event, AnswerDone)}
    assert failed.keys() == {"rag"} and isinstance(failed["rag"], BackendError) and "Chroma" in str(failed["rag"])
    assert answered == {"full_context", "closed_book"}
    assert tiny_rag.library.text(next(iter(tiny_rag.library.documents)))


def test_a_document_goes_and_is_put_in_again_after_the_database_was_away(tmp_path, tiny_models, tiny_settings):
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        rag = MemoRAG(library, tiny_models, tiny_settings)
        assert not errors(rag.memorize([tiny.document(), tiny.document("b.txt", tiny.KOREAN)]))
        remove, library.index.remove = library.index.remove, no_room
        with pytest.raises(OSError):
            rag.forget("b.txt")
        library.index.remove = remove
        assert [entry.name for entry in library.documents.values()] == ["mill.txt"]
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        assert set(library.index.sizes()) == set(library.documents)


# --- the endpoint ----------------------------------------------------------------------------------------------------


class Endless(BaseHTTPRequestHandler):
    """Says the same for ever, or nothing at all, whatever is asked for."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.silent:
            self.server.over.wait(30)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        piece = (b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
                 b'[{"index":0,"delta":{"content":"on and on "},"finish_reason":null}]}\n\n')  # fmt: skip
        try:
            while not self.server.over.is_set():
                self.wfile.write(piece * 20)
        except OSError:
            self.server.left.set()


@pytest.fixture
def endless():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads, server.silent = True, False
    server.over, server.left = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def said(server, tokens, **more):
    generator = EndpointGenerator(f"http://127.0.0.1:{server.server_port}/v1", "m", **more)
    run = generator.open()
    stream = run.add(Prompt((("user", "Who?"),), tokens))
    while run.step():
        pass
    return stream


def test_an_endpoint_that_never_ends_is_hung_up_on(endless):
    stream = said(endless, 20)
    assert stream.done and stream.error is None and len(stream.text) < 20 * 40
    assert endless.left.wait(10)


def test_an_endpoint_that_is_silent_is_given_up(endless, monkeypatch):
    endless.silent = True
    monkeypatch.setattr("memo.endpoint.TIMEOUT", 0.2)
    stream = said(endless, 20)
    assert isinstance(stream.error, BackendError) and "timed out" in str(stream.error).lower()

