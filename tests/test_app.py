"""The app over HTTP: visitors are apart, limits are told per file, the deleted is gone. And the HTML it is made of."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import httpx
import pytest
import tiny
import torch
from conftest import TINY, counting_words

import memo.ui
from memo.errors import DamagedMemory, EmptyDocument, ModelError, SettingsError
from memo.events import Answer, Citation, Clue, Found, Source
from memo.settings import Settings
from memo.trace import Candidate, Neighbour, Token
from memo.train.recipe import Distilling, Studying
from memo.ui import cards, chips, exports, marks, texts
from memo.ui.app import Visitors
from memo.ui.ask import AskPage
from memo.ui.board import Board, Column
from memo.ui.layout import CLUES
from memo.ui.visits import Row, Turn, Visit
from memo.ui.warmup import Warmup

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">${7*7}{{7*7}}'
SECRET = "The vault code 88213 is kept under the blue stone. " * 8
HARMLESS = "The mill has nine blades of oak and one of ash. " * 8


# --- texts and HTML --------------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_texts():
    english, korean = texts.table("en"), texts.table("ko")
    assert english.keys() == korean.keys()
    fields = re.compile(r"{\w+}")
    for key in english:
        if not key.startswith("error."):  # an error's own sentence is English; Korean says it in its own words
            assert set(fields.findall(english[key])) == set(fields.findall(korean[key])), key
    same = [key for key in korean if korean[key] == english[key]]
    assert not [key for key in same if not key.startswith(("strategy.", "error.", "by."))]


@pytest.mark.parametrize(
    ("header", "language"),
    [("ko-KR,ko;q=0.9", "ko"), ("en-GB", "en"), ("fr-FR,ko;q=0.5", "en"), ("", "en"), ("kok", "en")],
)
def test_the_language_is_the_browsers_first(header, language):
    request = SimpleNamespace(headers={"accept-language": header})
    assert texts.language_of(request) == language


def test_errors_are_told_in_the_visitors_language_and_faults_without_their_insides():
    error = EmptyDocument("a.txt is empty.", "Choose a file with text in it.")
    assert texts.tell("en", error) == "a.txt is empty. Choose a file with text in it."
    assert "a.txt" in texts.tell("ko", error, name="a.txt") and "empty" not in texts.tell("ko", error, name="a.txt")
    assert "secret" not in texts.tell("en", RuntimeError("secret"))
    assert texts.tell("ko", DamagedMemory("It is damaged.")) == "It is damaged."  # has no text of its own


def test_notes_of_the_pipeline_are_told_in_korean():
    said = texts.note("ko", "Only the first 7,900 of 13,000 tokens fit the model; the rest was not read.")
    assert "7,900" in said and "13,000" in said and "read" not in said
    assert texts.note("ko", "Something new.") == "Something new."


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (1500, "1.5 kB"), (36_400_000, "36 MB"), (2.5e9, "2.5 GB")])
def test_sizes(count, text):
    assert texts.size(count) == text


class Tags(HTMLParser):
    """The elements and the visible text of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def visit_with(text=HOSTILE, language="en"):
    """A visit without models, whose every text is `text`."""
    document = tiny.document(f"{text}.txt", text * 3)
    session = SimpleNamespace(settings=Settings(), closed=False, history=[], rag=None)
    visit = Visit(session, language)
    row = Row(f"{text}.txt", state="failed", document=document, error=EmptyDocument(text))
    visit.rows[row.key] = row
    found = Found(document.id, 0, len(text), 1, text, 0.5, (text, "question", "memory"))
    clue = Clue(text, "draft", -0.5, (Source(document.id, 0, len(text)),))
    citation = Citation(0, len(text), 0, Source(document.id, 2, len(text) - 2))
    answer = Answer(
        text, "memorag", text, (clue,), (found,), (citation,), {"first_token": 1.0, "total": 2.0}, 10, 5,
        {"generator": text}, (text,),
    )  # fmt: skip
    board = visit.board = Board.of(text, ["memorag"], session, ())
    board.clues, board.passages = (clue,), {"memorag": (found,)}
    board.columns["memorag"] = Column("memorag", "done", text, answer)
    visit.turns = [Turn(text, text, {"memorag": answer})]
    return visit


def decoder_pieces(visit):
    """The tab Memory Decoder, whose every token is hostile."""
    visit.decoding.tokens = [Token(1, HOSTILE), Token(2, HOSTILE, -1.0, -2.0, (Candidate(2, HOSTILE, -1.0, -2.0),))]
    visit.decoding.chosen = 1
    visit.learning.error = EmptyDocument(HOSTILE)
    return {
        "tokens": chips.tokens(visit), "token": chips.token(visit), "training": chips.training(visit),
        "neighbours": chips.neighbours(visit, [Neighbour(1.0, HOSTILE, HOSTILE, HOSTILE)]),
    }  # fmt: skip


def test_nothing_of_a_person_a_document_or_a_model_becomes_html():
    visit = visit_with()
    column, [clue] = visit.board.columns["memorag"], visit.board.clues
    pieces = {
        "documents": cards.documents(visit),
        "clue": cards.clue_origin(visit, clue, 1),
        "passages": marks.passages(visit),
        "answer": cards.answer(visit, column),
        "writing": cards.answer(visit, Column("memorag", "answering", HOSTILE)),
        "failed": cards.answer(visit, Column("memorag", "failed", "", None, EmptyDocument(HOSTILE))),
        "conversation": cards.conversation(visit),
        "notice": cards.notice("busy", HOSTILE),
        **decoder_pieces(visit),
    }
    for name, html in pieces.items():
        seen = Tags(html)
        assert not {"script", "img"} & set(seen.tags), name
        assert not [a for a in seen.attributes if a.startswith("on")], name
        assert "alert(" in seen.text, name


def test_the_cited_words_are_marked_exactly_and_hits_within_them_too():
    text = "The heat returns on 3 November. Nobody had expected it."
    html = marks.marked(text, [(4, 8)], [(0, 31, 0)], "memorag")
    assert Tags(html).text == text
    cited = "".join(re.findall(r'<mark class="cited"[^>]*>(.*?)</mark>', html))
    assert Tags(cited).text == text[:31]
    assert '<b class="hit">heat</b>' in html
    assert html.count('id="mark-memorag-0"') == 1


def test_words_of_the_clues_are_highlighted_in_any_script():
    wanted = marks.terms(["Who paid for the locks?", "도서관은 언제 열었나요"])
    text = "The Locks and what was paid, 도서관은 오래"
    assert [text[a:b] for a, b in marks.hits(text, wanted)] == ["Locks", "paid", "도서관은"]
    assert not marks.hits("what would which", marks.terms(["what would which"]))


def test_a_citation_stands_after_its_sentence():
    visit = visit_with("Anna bought it. It was cheap.")
    html = cards.cited(visit, visit.turns[0].main)
    assert re.search(r"It was cheap\.<button[^>]*data-cite=\"0\"[^>]*>1</button>$", html)


def test_the_export_has_everything():
    visit = visit_with("Anna bought it. It was cheap.")
    data = json.loads(exports.as_json(visit))
    answer = data["turns"][0]["answers"]["memorag"]
    assert answer["clues"][0]["kind"] == "draft" and answer["passages"][0]["score"] == 0.5
    assert answer["citations"][0]["passage"] == 0 and answer["timings"]["total"] == 2.0 and answer["models"]
    markdown = exports.as_markdown(visit)
    for part in ("## 1. Anna", "It was cheap. [1]", "draft (-0.50)", "score 0.50", "2.0 s", "generator"):
        assert part in markdown
    assert "<script" not in exports.as_markdown(visit_with())


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(tmp_path_factory, tiny_folder):
    """The app with a tiny random model."""
    settings = Settings(
        memory_model=str(tiny_folder), **TINY | {"clue_tokens": 12}, max_file_mb=1, max_documents=3, max_tokens=3000,
        port=0, data=tmp_path_factory.mktemp("app") / "sessions",
    )  # fmt: skip
    running = memo.ui.launch(settings, prevent_thread_lock=True, models=counting_words(settings))
    yield running
    running.close()


class Visitor:
    """A page of the app, as far as HTTP goes."""

    def __init__(self, app, page, open_it=True):
        self.app, self.page = app, page
        self.web = httpx.Client(base_url=app.url + "gradio_api", timeout=60)
        if open_it:
            self.call("open")

    def function(self, name):
        return next(i for i, fn in self.app.demo.fns.items()
                    if fn.name == name and fn.api_visibility == "private")  # fmt: skip

    def call(self, name, *data, event=None, page=None):
        """A handler outside the queue: its outputs, or the error that is shown."""
        body = {"fn_index": self.function(name), "session_hash": page or self.page, "data": [None, *data]}
        reply = self.web.post("/run/predict", json=body | ({"event_data": event} if event else {}))
        return reply.text

    def watch(self, name, page=None):
        """A handler in the queue: everything it sends, to its end."""
        page = page or self.page
        body = {"fn_index": self.function(name), "session_hash": page, "data": [None]}
        assert self.web.post("/queue/join", json=body).status_code == 200
        seen = ""
        with self.web.stream("GET", "/queue/data", params={"session_hash": page}) as stream:
            for line in stream.iter_lines():
                seen += line
                if "process_completed" in line or "close_stream" in line:
                    return seen
        return seen

    def upload(self, name, content):
        """Uploads a file: its path on the server, or the status that refused it."""
        reply = self.web.post("/upload", files={"files": (name, content)})
        return reply.json()[0] if reply.status_code == 200 else reply.status_code

    def put(self, *files):
        """Uploads files and has them memorized. What the page shows of them."""
        paths = [{"path": self.upload(*file), "meta": {"_type": "gradio.FileData"}} for file in files]
        self.call("receive", paths)
        self.watch("watch_documents")
        return paths

    @property
    def token(self):
        [state] = [block for block in self.app.demo.blocks.values() if type(block).__name__ == "State"]
        return self.app.demo.app.state_holder[self.page][state._id]

    @property
    def visit(self):
        return self.app.sessions.get(self.token).view


@pytest.fixture
def visitors(app, request):
    """A function: opens pages, which are left at the end."""
    made = []

    def make(name):
        made.append(Visitor(app, f"{request.node.name}-{name}"))
        return made[-1]

    yield make
    for visitor in made:
        app.sessions.close(visitor.token)


def states(visitor):
    return {row.name: row.state for row in visitor.visit.rows.values()}


def test_a_page_that_is_faster_than_the_models_says_so(app):
    warmup, visit = Warmup(app.sessions.models), visit_with("Anna.")
    visit.board, ask = None, AskPage(None, app.sessions, warmup)
    assert "Getting the models ready" in ask.status(visit)
    warmup.error = ModelError("The model <b> cannot be loaded.", "Check its id.")
    assert "The model &lt;b&gt; cannot be loaded. Check its id." in ask.status(visit)


def test_the_footer_names_the_endpoint_and_no_key(app):
    settings = Settings(endpoint_url="https://user:key@llm.example/v1", endpoint_model="m")
    said = Visitors(settings, app.sessions, None, None).footer("en")
    assert "sent to llm.example" in said and "key" not in said and "60 minutes" in said
    assert "no other service" in Visitors(Settings(), app.sessions, None, None).footer("en")


def test_the_footer_says_whether_the_memory_is_trained(app):
    either = ("untrained", "w.safetensors")
    untrained, trained = (Settings(memory_model="org/<model>", memory_weights=one) for one in either)
    said = Visitors(untrained, app.sessions, None, None).footer("en")
    assert "org/&lt;model&gt;" in said and "untrained" in said and "README" in said
    assert "trained for it" in Visitors(trained, app.sessions, None, None).footer("en")


def test_a_port_in_use_is_told_and_touches_nobody(app):
    settings = replace(app.sessions.settings, port=int(app.url.rstrip("/").rsplit(":", 1)[1]))
    with pytest.raises(SettingsError, match="port"):
        memo.ui.launch(settings)
    assert settings.data.exists()


def test_the_page_answers_and_tells_nothing_of_its_handlers(app):
    assert httpx.get(app.url).status_code == 200
    info = httpx.get(app.url + "gradio_api/info").json()
    public = {"/memorize", "/memorize_file", "/ask", "/compare", "/documents", "/forget"}  # see test_api.py
    assert info["named_endpoints"].keys() == public and not info["unnamed_endpoints"]
    assert httpx.get(app.url + "monitoring").status_code in (403, 404)


def test_two_visitors_are_apart(visitors):
    one, two = visitors("one"), visitors("two")
    one.put(("secret.txt", SECRET))
    two.put(("mill.txt", HARMLESS))
    assert states(one) == {"secret.txt": "ready"} and states(two) == {"mill.txt": "ready"}
    two.call("ask", "Where is the vault code?", ["memorag", "rag", "full_context"], False)
    shown = two.watch("watch_answers")
    assert "blades" in shown and "88213" not in shown and "secret.txt" not in shown
    exported = two.call("as_json") + two.call("as_markdown")
    assert "88213" not in exported and "blades" in exported


def test_forged_pages_and_tokens_see_and_do_nothing(visitors, app):
    owner, other = visitors("owner"), visitors("other")
    owner.put(("secret.txt", SECRET))
    owner.call("ask", "Where is the vault code?", ["rag"], False)
    owner.watch("watch_answers")
    stranger = Visitor(app, "made-up-page", open_it=False)
    [key] = owner.visit.rows
    for visitor in (stranger, other):
        for handler in ("as_json", "as_markdown", "delete_all", "new_conversation", "watch_documents"):
            told = visitor.watch(handler) if handler.startswith("watch") else visitor.call(handler)
            assert "88213" not in told and "secret" not in told
        visitor.call("change_document", event={"delete": key})
    assert states(owner) == {"secret.txt": "ready"} and "88213" in owner.call("as_json")


def test_a_token_sent_by_the_client_is_not_believed(visitors, app):
    owner, thief = visitors("owner"), visitors("thief")
    owner.put(("secret.txt", SECRET))
    for name in ("as_json", "as_markdown"):
        body = {"fn_index": thief.function(name), "session_hash": thief.page, "data": [owner.token]}
        reply = thief.web.post("/run/predict", json=body)
        assert "secret" not in reply.text and "88213" not in reply.text
    for page in ("unknown", ""):
        body = {"fn_index": thief.function("as_json"), "session_hash": page, "data": [owner.token]}
        assert "secret" not in thief.web.post("/run/predict", json=body).text


def test_the_token_never_reaches_the_browser(visitors):
    visitor = visitors("one")
    assert visitor.token not in visitor.call("open")
    visitor.put(("mill.txt", HARMLESS))
    assert visitor.token not in visitor.watch("watch_documents")


def test_an_upload_over_the_limit_is_refused_while_it_arrives(visitors):
    assert visitors("one").upload("big.txt", "x" * 1_500_000) == 413


def test_each_file_is_told_what_is_wrong_with_it_and_the_others_go_on(visitors):
    visitor = visitors("one")
    visitor.put(("program.exe", b"MZ\x90"), ("empty.txt", b""), ("fake.pdf", b"no pdf"), ("mill.txt", HARMLESS))
    assert states(visitor) == {
        "program.exe": "failed", "empty.txt": "failed", "fake.pdf": "failed", "mill.txt": "ready",
    }  # fmt: skip
    html = cards.documents(visitor.visit)
    assert "program.exe is of a kind that is not read" in html and "empty.txt is empty" in html
    assert "fake.pdf is not a .pdf file" in html


def test_too_many_documents_and_too_many_tokens_are_told_on_the_file(visitors):
    visitor = visitors("one")
    visitor.put(("long.txt", "word " * 1000))
    assert states(visitor) == {"long.txt": "failed"}
    assert "tokens" in cards.documents(visitor.visit)
    visitor.put(*((f"{i}.txt", HARMLESS + str(i)) for i in range(4)))
    assert list(states(visitor).values()).count("ready") == 3 and states(visitor)["3.txt"] == "failed"
    assert "Delete one to make room" in cards.documents(visitor.visit)


def test_an_upload_is_gone_from_the_servers_folder_once_it_is_read(visitors, app):
    visitor = visitors("one")
    [file] = visitor.put(("secret.txt", SECRET))
    reply = visitor.web.get("/file=" + file["path"])
    assert reply.status_code in (403, 404) and "88213" not in reply.text


def test_a_path_outside_the_uploads_is_refused(visitors, app):
    visitor = visitors("one")
    inside = app.sessions.settings.data / "chroma" / "chroma.sqlite3"
    for path in ("/etc/hostname", str(inside)):
        visitor.call("receive", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
        assert not visitor.visit.rows
    assert inside.exists()


def test_delete_frees_text_memory_passages_and_leaves_the_others(visitors, app):
    visitor = visitors("one")
    visitor.put(("secret.txt", SECRET), ("mill.txt", HARMLESS))
    library = visitor.visit.session.rag.library
    gone = library.find("secret.txt").id
    key = next(k for k, row in visitor.visit.rows.items() if row.name == "secret.txt")
    visitor.call("change_document", event={"delete": key})
    assert states(visitor) == {"mill.txt": "ready"}
    assert gone not in library.documents and gone not in library.index.documents()
    assert not [p for p in library.root.rglob("*") if gone in str(p)]
    assert not list((library.root / "incoming").iterdir())
    assert not [p for p in library.root.rglob("*") if p.is_file() and b"88213" in p.read_bytes()]
    visitor.call("delete_all")
    assert not states(visitor) and not library.index.count() and not list(library.folder.iterdir())


@pytest.fixture
def short_study(monkeypatch):
    """A study of few and small steps."""
    plan = Studying(steps=6, part=64, span=16, given=4, stretches=1, questions=1, answers=1, asked=6, answered=6)
    monkeypatch.setattr("memo.ui.visits.Studying", lambda: plan)


def keys_of(visitor):
    rag = visitor.visit.session.rag
    entries, model = rag.library.documents.values(), rag.models.memory_model()
    return {entry.name: rag.library.load(entry.id, model).keys for entry in entries}


def test_a_document_is_studied_and_stays_ready(visitors, short_study):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS), ("other.txt", SECRET))
    before = keys_of(visitor)
    key = next(k for k, row in visitor.visit.rows.items() if row.name == "mill.txt")
    visitor.call("change_document", event={"study": key})
    assert 'data-study="' in cards.documents(visitor.visit)
    shown = visitor.watch("watch_documents")
    assert states(visitor) == {"mill.txt": "ready", "other.txt": "ready"} and "Studied" in shown
    after = keys_of(visitor)
    assert not torch.equal(after["mill.txt"], before["mill.txt"])
    assert torch.equal(after["other.txt"], before["other.txt"])


def test_studying_is_stopped_by_the_same_button_and_changes_nothing(visitors, short_study, monkeypatch):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    visit, [key], before = visitor.visit, visitor.visit.rows, keys_of(visitor)
    show = visit._show

    def stopping(row, progress):
        show(row, progress)
        if progress.state == "studying":
            visit.study(key)

    monkeypatch.setattr(visit, "_show", stopping)
    visitor.call("change_document", event={"study": key})
    shown = visitor.watch("watch_documents")
    assert states(visitor) == {"mill.txt": "ready"} and "Studied" not in shown and "why" not in shown
    assert torch.equal(keys_of(visitor)["mill.txt"], before["mill.txt"])


def test_a_document_deleted_while_it_is_studied_is_gone(visitors, short_study, monkeypatch):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS), ("other.txt", SECRET))
    visit = visitor.visit
    key = next(k for k, row in visit.rows.items() if row.name == "mill.txt")
    show = visit._show

    def deleting(row, progress):
        show(row, progress)
        if progress.state == "studying":
            visit.delete(key)

    monkeypatch.setattr(visit, "_show", deleting)
    visitor.call("change_document", event={"study": key})
    visitor.watch("watch_documents")
    assert states(visitor) == {"other.txt": "ready"}
    assert [entry.name for entry in visit.session.rag.library.documents.values()] == ["other.txt"]


def test_leaving_the_page_in_the_middle_of_memorizing_ends_everything(app):
    visitor = Visitor(app, "leaving")
    folder = visitor.visit.session.rag.library.root
    with visitor.web.stream("GET", f"/heartbeat/{visitor.page}") as beat:
        lines = beat.iter_lines()
        next(lines)
        path = visitor.upload("mill.txt", HARMLESS * 5)
        visitor.call("receive", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
        visitor.visit.work()
        assert folder.exists()
        token = visitor.token
    until = time.monotonic() + 20
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()
    assert token not in app.sessions._sessions
    assert "ended" in visitor.call("as_json")


def test_a_handler_with_nonsense_shows_no_stack_trace(visitors):
    visitor = visitors("one")
    for told in (
        visitor.call("ask", None, ["rag"], True), visitor.call("ask", "What?", ["no_such"], True),
        visitor.call("ask", "What?", [], True), visitor.call("change_document", event={"delete": {"a": 1}, "study": 3}),
        visitor.call("change_ratio", 3), visitor.call("again", "own"),
    ):  # fmt: skip
        assert "Traceback" not in told and "site-packages" not in told
    assert visitor.visit.board is None


def test_search_again_takes_the_clues_as_they_were_left(visitors):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    visitor.call("ask", "How many blades?", ["memorag", "rag"], False)
    visitor.watch("watch_answers")
    board = visitor.visit.board
    rag = board.columns["rag"].answer
    board.clues = (Clue("kept as it is", "key", -1.0), Clue("reworded", "span", -1.0), Clue("switched off", "key"),
                   Clue("York", "name", 0.5))  # fmt: skip
    edits = [True, "kept as it is", True, "the oak blades", False, "switched off", True, "New York"]
    edits += [True, ""] * (CLUES - 4)
    visitor.call("again", "a clue of my own", *edits)
    visitor.watch("watch_answers")
    used = board.columns["memorag"].answer.clues
    assert [(clue.text, clue.kind) for clue in used] == [
        ("kept as it is", "key"), ("the oak blades", "own"), ("New York", "name"), ("a clue of my own", "own"),
    ]  # fmt: skip
    assert board.columns["rag"].answer is rag and len(visitor.visit.turns) == 1
    assert "the oak blades" in visitor.call("as_markdown")


def test_stop_keeps_what_was_written_and_a_failure_stays_in_its_column(visitors, monkeypatch):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    visitor.call("ask", "How many blades?", ["rag", "closed_book"], False)
    visitor.visit.stop("rag")
    visitor.watch("watch_answers")
    columns = visitor.visit.board.columns
    assert columns["rag"].phase == "stopped" and columns["closed_book"].phase == "done"


def test_changing_the_ratio_reads_the_documents_again(visitors):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    before = visitor.visit.session.rag.library.find("mill.txt")
    visitor.call("change_ratio", 8)
    visitor.watch("watch_documents")
    after = visitor.visit.session.rag.library.find("mill.txt")
    assert (before.ratio, after.ratio) == (4, 8) and after.slots < before.slots


def test_several_visitors_are_answered_at_the_same_time(visitors):
    several = [visitors(str(i)) for i in range(4)]

    def use(visitor):
        visitor.put(("mill.txt", HARMLESS + visitor.page))
        visitor.call("ask", "How many blades?", ["memorag", "rag"], False)
        return visitor.watch("watch_answers")

    with ThreadPoolExecutor(4) as pool:
        shown = list(pool.map(use, several))
    for visitor, told in zip(several, shown, strict=True):
        assert [column.phase for column in visitor.visit.board.columns.values()] == ["done", "done"]
        assert not [other.page for other in several if other is not visitor and other.page in told]


def test_too_many_visitors_are_told_so(visitors, app, monkeypatch):
    visitors("one")
    monkeypatch.setattr(app.sessions, "settings", replace(app.sessions.settings, max_sessions=len(app.sessions)))
    late = Visitor(app, "late", open_it=False)
    assert "Too many people" in late.call("open")
    assert "has ended" in late.call("ask", "What?", ["rag"], False)
    for look in ("look", "look_inside", "look_at_testing"):  # a tab that is opened says nothing of a session's end
        assert "has ended" not in late.call(look)


def test_a_question_on_its_way_is_not_replaced(visitors):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    visitor.call("ask", "How many blades?", ["rag"], False)
    visitor.visit.board.started = True
    assert "still being answered" in visitor.call("ask", "What else?", ["rag"], False)
    assert visitor.visit.board.question == "How many blades?"


def test_a_follow_up_is_asked_with_the_conversation_and_a_new_one_without(visitors):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS))
    for question in ("How many blades?", "Of which wood?"):
        visitor.call("ask", question, ["rag"], True)
        visitor.watch("watch_answers")
    assert len(visitor.visit.turns) == 2 and visitor.visit.board.rewritten
    visitor.call("new_conversation")
    assert not visitor.visit.turns and not visitor.visit.session.history and states(visitor) == {"mill.txt": "ready"}
    visitor.call("ask", "How many blades?", ["rag"], True)
    visitor.watch("watch_answers")
    assert not visitor.visit.board.rewritten


# --- the tab Memory Decoder ------------------------------------------------------------------------------------------


@pytest.fixture
def short_training(monkeypatch):
    """A training of few steps on few blocks."""
    monkeypatch.setattr("memo.ui.learning.plan_for", lambda blocks: Distilling(steps=3, batch=1, micro=1, layers=1))


def train(visitor):
    visitor.call("train")
    return visitor.watch("watch_training")


def read(visitor, text="The mill has nine blades.", write=False):
    visitor.call("continue_text" if write else "read_text", text)
    return visitor.watch("watch_text")


def folders(visitor):
    return list(visitor.visit.session.rag.library.root.glob("decoder-*"))


def test_without_a_decoder_the_tab_says_what_to_do(visitors):
    visitor = visitors("one")
    assert "no Memory Decoder here yet" in visitor.call("look")
    assert "no Memory Decoder here yet" in visitor.call("read_text", "The mill.")
    assert "no Memory Decoder here yet" in visitor.watch("watch_text")
    assert "too little text" in visitor.call("train")
    assert "too little text" in visitor.watch("watch_training")
    visitor.put(("short.txt", "The mill."))
    assert "too little text" in train(visitor)
    visitor.call("change_mix", True, 0.5, True)
    assert not visitor.visit.alpha and not folders(visitor)


def test_a_decoder_is_trained_on_a_visitors_documents_for_them_alone(visitors, short_training):
    visitor, other = visitors("one"), visitors("two")
    visitor.put(("mill.txt", HARMLESS * 2))
    shown = train(visitor)
    assert "Learnt" in shown and "Perplexity" in shown and visitor.visit.learning.stage == "done"
    [folder] = folders(visitor)
    assert not (folder / "work" / "run").exists() and (folder / "work" / "store").exists()
    assert other.visit.session.rag.mixing is None and "no Memory Decoder" in other.call("read_text", "The mill.")
    train(visitor)  # again: in place of the first
    assert len(folders(visitor)) == 1 and folders(visitor) != [folder]
    root = visitor.visit.session.rag.library.root
    visitor.app.sessions.close(visitor.token)
    assert not root.exists()


def test_a_text_is_read_token_by_token_and_mixed_again_without_a_model(visitors, short_training, monkeypatch):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS * 2))
    train(visitor)
    visitor.call("change_alpha", 0.8)
    text = "The <b>mill</b> has nine"
    shown = read(visitor, text)
    assert "data-token" in shown and "perplexity" in shown and "<b>mill" not in shown
    tokens = visitor.visit.decoding.tokens
    assert "".join(token.text for token in tokens) == text
    chosen = visitor.call("choose_token", event={"token": len(text) - 1})
    assert "distance" in chosen and "blades" in chosen and "plotly" in chosen
    monkeypatch.setattr("memo.trace._read", None)  # no model from here on
    before, after = visitor.call("change_alpha", 0.2), visitor.call("change_alpha", 0.0)
    assert before != after and "raised by" in after and 'token raised' not in after and 'token lowered' not in after
    for nonsense in ({"token": 10**6}, {"token": "1"}, {"token": -1}, {}, [1]):
        assert "Traceback" not in visitor.call("choose_token", event=nonsense)
    assert visitor.visit.decoding.chosen == len(text) - 1


def test_a_text_is_gone_on_with_and_stopped(visitors, short_training):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS * 2))
    train(visitor)
    read(visitor, "The mill", write=True)
    tokens = visitor.visit.decoding.tokens
    assert [token.written for token in tokens[:8]] == [False] * 8 and not visitor.visit.decoding.running
    assert "Type a text first" in visitor.call("read_text", "  ")
    visitor.call("read_text", "x" * 900)
    assert "longer than what is read" in visitor.watch("watch_text")
    visitor.call("continue_text", "The mill")
    visitor.call("stop_text")
    visitor.watch("watch_text")
    assert not visitor.visit.decoding.running


def test_the_decoder_is_mixed_into_answers_on_request(visitors, short_training):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS * 2))
    train(visitor)
    visitor.visit.session.rag.mixing.alpha = 0.4
    for mix, alpha, share in ((True, 0.7, "0.7"), (False, 0.7, "")):
        visitor.call("change_mix", mix, alpha, True)
        visitor.call("ask", "How many blades?", ["rag"], False)
        shown = visitor.watch("watch_answers")
        assert ("has a share of 0.7 in this answer" in shown) == bool(share)


def test_a_decoder_goes_with_a_document_it_learnt(visitors, short_training):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS * 2))
    train(visitor)
    visitor.put(("other.txt", SECRET))
    visitor.call("change_mix", True, 0.5, True)
    read(visitor)
    keys = {row.name: key for key, row in visitor.visit.rows.items()}
    visitor.call("change_document", event={"delete": keys["other.txt"]})
    assert visitor.visit.session.rag.mixing is not None and visitor.visit.alpha == 0.5
    visitor.call("change_document", event={"delete": keys["mill.txt"]})
    visit = visitor.visit
    assert visit.session.rag.mixing is None and not visit.alpha and not visit.decoding.tokens and not folders(visitor)
    assert "no Memory Decoder here yet" in visitor.call("look")


@pytest.mark.parametrize("how", ["stop", "delete", "leave"])
def test_a_training_that_is_ended_leaves_nothing(visitors, short_training, monkeypatch, how):
    visitor = visitors("one")
    visitor.put(("mill.txt", HARMLESS * 2))
    visit, told = visitor.visit, []
    at, [key], root = visit.learning._at, visit.rows, visit.session.rag.library.root

    def ending(stage, done, of):
        at(stage, done, of)
        if stage == "training" and not told:
            told.append(stage)
            if how == "leave":
                visit.session.closed = True
            else:
                visitor.call("stop_training") if how == "stop" else visit.delete(key)

    monkeypatch.setattr(visit.learning, "_at", ending)
    shown = train(visitor)
    visit.learning._thread.join(20)
    assert told and not list(root.glob("decoder-*")) and visit.session.rag.mixing is None
    if how == "stop":
        assert "Stopped." in shown and states(visitor) == {"mill.txt": "ready"}
        monkeypatch.undo()
    visit.session.closed = False


def test_with_an_endpoint_no_decoder_can_be_mixed_in(visitors, monkeypatch):
    visitor = visitors("one")
    session = visitor.visit.session
    monkeypatch.setattr(session, "settings", replace(session.settings, endpoint_url="http://127.0.0.1:1/v1"))
    assert "a service elsewhere" in visitor.call("look") and "a service elsewhere" in visitor.call("read_text", "The")


def test_a_forged_page_has_no_tab_either(visitors, app, short_training):
    owner = visitors("owner")
    owner.put(("mill.txt", HARMLESS * 2))
    train(owner)
    read(owner, "My secret text")
    stranger = Visitor(app, "made-up-page", open_it=False)
    for handler, data in (("choose_token", ()), ("change_alpha", (0.5,)), ("train", ()), ("look", ())):
        assert "secret" not in stranger.call(handler, *data)
    assert "secret" not in stranger.watch("watch_text") and owner.visit.decoding.tokens


OPENED = """
import sys
from pathlib import Path
from memo.sessions import Sessions
from memo.settings import Settings
from memo.ui import app
tabs = []
app.{tab}.wire, wire = lambda tab: (tabs.append(tab), wire(tab)), app.{tab}.wire
sessions = Sessions(Settings(data=Path(sys.argv[1])))
app.build(sessions.settings, sessions)
visit = app.Visit(sessions.open(), "en")
tab, = tabs
{draw}
print([name for name in ("torch", "transformers", "faiss", "plotly") if name in sys.modules])
"""


def imported_by_drawing(folder, tab, draw):
    """Which of the models' libraries a process has imported that has drawn a tab of a new page; as text."""
    script = OPENED.format(tab=tab, draw=draw)
    found = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    return found.stdout.strip().splitlines()[-1]


def test_a_page_is_drawn_without_waiting_for_the_models_libraries(tmp_path):
    """They are loaded in the background; a click before the page is drawn is lost."""
    draw = "tab.ask.draw(visit, app.Drawn()), tab.draw(visit), tab.fitting(visit)"
    assert imported_by_drawing(tmp_path, "DecoderTab", draw) == "[]"
