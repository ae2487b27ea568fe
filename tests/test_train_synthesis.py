"""Synthesis: what an LLM writes about a text becomes a lesson only if it holds."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny

from memo.cli import main
from memo.errors import BackendError
from memo.train import lessons, synthesis

STRETCH = tiny.TEXT
BOUGHT = {"question": "Who bought the mill?", "answer": "Anna Okafor"}
FLOOD = {"question": "What did the flood take?", "answer": "the bridge, the boat house and the east wall"}
CLUES = {
    "Who bought the mill?": {
        "quotations": ["Anna Okafor bought it in 1887 for 412 crowns", "She sold it again."],
        "questions": ["Whose was the mill?", "Who bought the mill?"],
    },
    "What did the flood take?": {
        "quotations": ["“in 1903 a FLOOD took the bridge, the boat house and the east wall.”"],
    },
}


def llm(pairs, clues=CLUES, around="{}"):
    """Writes these pairs, and of each question these clues."""

    def say(prompt):
        text = prompt.messages[-1][1]
        asked = [question for question in clues if f"Question: {question}\n" in text]
        return around.format(json.dumps(clues[asked[0]] if asked else pairs))

    return tiny.Says(say)


def test_what_holds_becomes_a_lesson():
    made, thrown = synthesis.lesson(STRETCH, llm([BOUGHT, FLOOD]), 3)
    assert not thrown and made.documents == (STRETCH,)
    bought, flood = made.questions
    assert (bought.question, bought.answers) == ("Who bought the mill?", ("Anna Okafor",))
    assert bought.clues == {
        "span": ("Anna Okafor bought it in 1887 for 412 crowns",), "question": ("Whose was the mill?",),
        "draft": ("Anna Okafor",),
    }  # fmt: skip
    [(_, start, end)] = flood.evidence
    assert STRETCH[start:end] == "In 1903 a flood took the bridge, the boat house and the east wall"
    assert "question" not in flood.clues


@pytest.mark.parametrize("around", ["Here it is:\n```json\n{}\n```\nDone.", "[not this] {}", "{}"])
def test_json_is_found_among_words(around):
    made, _ = synthesis.lesson(STRETCH, llm([BOUGHT], around=around), 3)
    assert made is not None


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"question": "Who sold the mill?", "answer": "Baron von Trotta"}, "unsupported"),
        ({"question": "Its wheel had nine blades of oak.", "answer": "nine"}, "echo"),
        ({"question": "Did Anna Okafor buy it?", "answer": "Anna Okafor"}, "echo"),
        ({"question": "?", "answer": "Anna Okafor"}, "unreadable"),
        ({"question": "Who?"}, "unreadable"),
        ("Who?", "unreadable"),
        ({"question": "who bought  the MILL", "answer": "Anna Okafor"}, "repeated"),
        ({"question": "When did the flood come?", "answer": "1903"}, "no span"),
    ],
)
def test_what_does_not_hold_is_thrown_away_and_counted(pair, reason):
    known = {**CLUES, "When did the flood come?": {"quotations": ["The flood came in the year 1903."]}}
    made, thrown = synthesis.lesson(STRETCH, llm([BOUGHT, pair], known), 3)
    assert [asked.question for asked in made.questions] == ["Who bought the mill?"]
    assert thrown == Counter({reason: 1})


@pytest.mark.parametrize("said", ["no JSON at all", '{"question": "Who?"}', "[", '"text"'])
def test_nothing_readable_gives_no_lesson(said):
    made, thrown = synthesis.lesson(STRETCH, tiny.Says(lambda prompt: said), 3)
    assert made is None and sum(thrown.values()) == (0 if said == "[]" else 1)


def test_an_llm_that_does_not_answer_is_an_error():
    with pytest.raises(BackendError, match="gone"):
        synthesis.lesson(STRETCH, tiny.Says(lambda prompt: BackendError("It is gone.")), 3)


class Llm(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that writes as `llm` does."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        if self.server.asked > self.server.patience:
            self.send_error(503)
            return
        text = body["messages"][-1]["content"]
        clue = next((clues for question, clues in CLUES.items() if f"Question: {question}\n" in text), None)
        delta = {"index": 0, "delta": {"content": json.dumps(clue or [BOUGHT])}, "finish_reason": None}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "strong", "choices": [delta]}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Llm) as server:
        server.asked, server.patience = 0, 99
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_command_writes_lessons_and_goes_on_where_it_was(tmp_path, monkeypatch, tiny_folder, server, capsys):
    text, out = tmp_path / "mill.txt", tmp_path / "lessons.jsonl"
    text.write_text(STRETCH + "\n\n" + tiny.TEXT.replace("1887", "1888"))
    for name, value in {
        "MEMO_MEMORY_MODEL": tiny_folder, "MEMO_DTYPE": "float32", "MEMO_CACHE": tmp_path / "cache",
        "MEMO_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}/v1", "MEMO_ENDPOINT_MODEL": "strong",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    command = ["train", "synthesize", str(text), "--out", str(out), "--most", "400"]
    server.patience = 2  # one stretch
    assert main(command) == 2 and not out.exists()
    server.patience, server.asked = 99, 0
    assert main(command) == 0
    [made] = lessons.load(out)
    assert made.documents == (STRETCH.strip(),) and made.questions[0].question == "Who bought the mill?"
    assert server.asked == 2  # of the second stretch only, where nothing was quoted from
    assert "Thrown away: 1 no span." in capsys.readouterr().out
