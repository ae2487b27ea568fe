"""An OpenAI-compatible endpoint as generator, spoken to over HTTP: a small server in this process plays it."""

import dataclasses
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import tiny

from memo.endpoint import EndpointGenerator
from memo.errors import BackendError, SettingsError
from memo.events import AnswerDone, AnswerFailed, CluesRecalled
from memo.generate import Prompt
from memo.pipeline import MemoRAG, Models, finish


class Endpoint(ThreadingHTTPServer):
    """What it does with a question follows from the question's first word; it streams as the protocol has it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.left = [], threading.Event()
        self.together = threading.Barrier(3, timeout=30)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """Broken pipes are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers, body))
        word, _, rest = body["messages"][-1]["content"].partition(" ")
        if word in ("401", "500"):
            return self.refuse(int(word), rest)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if word == "forever":
            return self.forever()
        if word == "together":  # no answer before three have asked
            self.server.together.wait()
        for number, piece in enumerate(rest.split(" ")[: body["max_tokens"]]):  # ends where it was told to
            self.say(piece if not number else f" {piece}")
            if word == "garbage" and number == 1:
                self.event("{this is no JSON")
            if word == "cut" and number == 1:
                return self.connection.shutdown(socket.SHUT_RDWR)
        if word != "silent":
            usage = {"prompt_tokens": 1000, "completion_tokens": 77, "total_tokens": 1077}
            self.event(json.dumps(self.chunk([], usage=usage)))
        self.event("[DONE]")
        self.write(b"")

    def refuse(self, status, reason):
        body = json.dumps({"error": {"message": reason, "type": "invalid_request_error"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def forever(self):
        try:
            while True:
                self.say("on and ")
                self.server.left.wait(0.01)
        except OSError:
            self.server.left.set()

    @staticmethod
    def chunk(choices, **more):
        return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}

    def say(self, text):
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        self.event(json.dumps(self.chunk([choice])))

    def event(self, data):
        self.write(f"data: {data}\n\n".encode())

    def write(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.left.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def generator(endpoint):
    return EndpointGenerator(endpoint.url, "some-model", "the key")


def prompt(text, tokens=50):
    return Prompt((("system", "Be brief."), ("user", text)), tokens)


def finished(run, *streams):
    while run.step():
        pass
    assert all(stream.done for stream in streams)
    return streams


def answer(generator, text):
    run = generator.open()
    [stream] = finished(run, run.add(prompt(text)))
    return stream


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_text_and_its_tokens_are_what_the_endpoint_says(generator, endpoint):
    stream = answer(generator, "say In 1887, 한국에서.")
    assert stream.text == "In 1887, 한국에서." and stream.error is None
    assert (stream.prompt_tokens, stream.tokens) == (1000, 77) and stream.first_token
    [(path, headers, body)] = endpoint.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer the key"
    assert body["model"] == "some-model" and body["max_tokens"] == 50 and body["temperature"] == 0 and body["stream"]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "say In 1887, 한국에서."},
    ]  # fmt: skip


def test_without_usage_the_pieces_are_counted(generator):
    stream = answer(generator, "silent one two three")
    assert stream.text == "one two three" and stream.tokens == 3 and 5 < stream.prompt_tokens < 20


def test_the_text_grows_while_it_streams(generator):
    run = generator.open()
    stream, shown = run.add(prompt("forever")), []
    while len(set(shown)) < 4:
        run.step()
        shown.append(stream.text)
    assert all(after.startswith(before) for before, after in pairwise(shown))
    stream.stop()
    finished(run, stream)


def test_streams_are_asked_for_in_parallel(generator):
    run = generator.open()
    streams = [run.add(prompt(f"together answer {i}")) for i in range(3)]  # the server waits for all three
    finished(run, *streams)
    assert [stream.text for stream in streams] == [f"answer {i}" for i in range(3)]
    assert not any(stream.error for stream in streams)


def test_stopping_keeps_the_text_so_far_and_hangs_up(generator, endpoint):
    run = generator.open()
    stream, other = run.add(prompt("forever")), run.add(prompt("say all of it"))
    while len(stream.text) < 20:
        run.step()
    held = stream.text
    while run._arrived.empty():  # more has come, but the person has seen enough
        endpoint.left.wait(0.01)
    stream.stop()
    finished(run, stream, other)
    assert stream.text == held and held.startswith("on and on and") and stream.error is None
    assert other.text == "all of it"
    assert endpoint.left.wait(10)  # the server noticed
    assert run.step() is False


def test_closing_a_run_hangs_up(generator, endpoint):
    run = generator.open()
    run.add(prompt("forever"))
    run.step()
    run.close()
    assert endpoint.left.wait(10)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "reason", "text"),
    [
        ("401 wrong key", "wrong key", ""),
        ("500 out of order", "out of order", ""),
        ("garbage one two three", "", "one two"),
        ("cut one two three", "", "one two"),
    ],
)
def test_a_failure_is_told_on_that_stream_only(generator, question, reason, text):
    run = generator.open()
    bad, good = finished(run, run.add(prompt(question)), run.add(prompt("say all is well")))
    assert isinstance(bad.error, BackendError) and reason in bad.error.message and bad.error.hint
    assert bad.text == text
    assert good.text == "all is well" and good.error is None


def test_a_refused_connection_is_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stream = answer(EndpointGenerator(f"http://127.0.0.1:{port}/v1", "some-model"), "say hello")
    assert isinstance(stream.error, BackendError) and stream.text == ""


def test_the_key_is_never_part_of_an_error(generator):
    error = answer(generator, "401 wrong key").error
    assert "the key" not in f"{error} {error!r}".replace("model and key", "")


# --- in the pipeline -------------------------------------------------------------------------------------------------


@pytest.fixture
def rag(tiny_rag, settings_for, tiny_models, endpoint):
    """A library read by the local memory model, whose questions the endpoint answers."""
    assert not [s.error for s in tiny_rag.memorize([tiny.document()]) if s.error]
    settings = dataclasses.replace(tiny_rag.settings, endpoint_url=endpoint.url, endpoint_model="some-model")
    models = Models(settings)
    models.__dict__.update({name: getattr(tiny_models, name) for name in ("_memory_model", "_embedder")})
    return MemoRAG(tiny_rag.library, models, settings)


def test_clues_come_from_the_local_memory_and_the_answer_from_the_endpoint(rag, tiny_rag, endpoint):
    events = list(rag.ask("What froze?"))
    local = finish(tiny_rag.ask("What froze?"))["memorag"]
    clues = [event for event in events if isinstance(event, CluesRecalled)][-1].clues
    assert [clue.text for clue in clues] == [clue.text for clue in local.clues] and clues
    assert len(endpoint.requests) == 1  # the answer's own prompt, nothing else
    [message] = [m["content"] for m in endpoint.requests[0][2]["messages"] if m["role"] == "user"]
    answer = events[-1].answer
    assert all(found.text.strip() in message for found in answer.passages) and answer.passages
    assert answer.models["generator"] == "some-model" and answer.models["memory"] == "tiny-llama"
    assert answer.text and answer.answer_tokens == 77


def test_memory_only_is_answered_by_the_memory_model_even_with_an_endpoint(rag, tiny_rag, endpoint):
    question = "What froze?"
    [mine], [local] = (finish(one.ask(question, "memory_only")).values() for one in (rag, tiny_rag))
    assert mine.text == local.text and not endpoint.requests


def test_an_endpoint_that_fails_fails_only_the_strategies_that_need_it(rag, monkeypatch):
    monkeypatch.setattr("memo.answers.ASK", "500 {passages} {question}")
    events = list(rag.compare("What froze?", ("rag", "memory_only", "closed_book")))
    [failed] = [event for event in events if isinstance(event, AnswerFailed)]
    assert failed.strategy == "rag" and isinstance(failed.error, BackendError)
    assert {e.strategy for e in events if isinstance(e, AnswerDone)} == {"memory_only", "closed_book"}


def test_an_endpoint_without_a_model_is_refused(settings_for):
    with pytest.raises(SettingsError, match="MEMO_ENDPOINT_MODEL"):
        Models(settings_for(endpoint_url="http://127.0.0.1:9/v1")).generator()
