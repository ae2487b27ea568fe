"""The tab Training over HTTP with tiny models: trained, stopped, kept, thrown away, each visitor for themselves."""

import json
import threading
import time

import httpx
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_app import (  # noqa: F401 (fixtures)
    HARMLESS,
    HOSTILE,
    Tags,
    Visitor,
    app,
    imported_by_drawing,
    visit_with,
    visitors,
)

from memo.answers import memory_prompt
from memo.decoder import first_layers
from memo.errors import LessonsError, TooLittleText
from memo.evaluate.beside import Told
from memo.generate import LocalGenerator, write
from memo.mixing import Mixing
from memo.models import Reweighted, fingerprint
from memo.train import own
from memo.ui import training, training_html
from memo.ui.comparing import Compared
from memo.ui.line import Line
from memo.ui.questions import Question
from memo.ui.training import Training

TEXT = (HARMLESS + tiny.TEXT) * 2
QUESTION = "How many blades has the mill?"
LESSON = {"documents": ["The mill has nine blades of oak. Anna bought it."], "questions": [
    {"question": QUESTION, "answers": ["nine"], "evidence": [[0, 0, 32]],
     "clues": {"span": ["The mill has nine blades of oak."], "draft": ["nine"]}}]}  # fmt: skip
CSV = f"question;answers\n{QUESTION};nine\nWho bought the mill?;Anna Okafor|Anna\nWhat is it?;no such thing\n"


@pytest.fixture
def visitor(visitors, monkeypatch):  # noqa: F811
    """One with a document; trainings may be short."""
    monkeypatch.setattr(training, "STEPS", (1, 400))
    made = visitors("one")
    made.put(("mill.txt", TEXT))
    return made


def train(visitor, kind="pretrain", steps=2, rate=1e-3):
    visitor.visit.training.begin(kind, steps, rate)  # a click would be for ten steps at least
    return visitor.watch("watch_weights")


def then(visitor, handler, *data):
    visitor.call(handler, *data)
    return visitor.watch("watch_weights")


def bring(visitor, handler, name, content):
    path = {"path": visitor.upload(name, content), "meta": {"_type": "gradio.FileData"}}
    return visitor.call(handler, path)


def folders(visitor):
    return sorted(visitor.visit.session.rag.library.root.glob("weights-*"))


def recalled(visitor):
    """What the visitor's memory is, bit for bit, and what it answers."""
    rag = visitor.visit.session.rag
    reader = rag.models.memory_model()
    memory = rag.library.memory(reader)
    [document] = rag.library.documents
    slots = memory.compose().slots
    said = write(LocalGenerator(reader, ""), memory_prompt(QUESTION, 12, slots)).text
    return [memory[document].keys.clone(), memory[document].values.clone()], said


def answers(visitor):
    visitor.call("ask", QUESTION, ["memorag", "memory_only"], False)
    visitor.watch("watch_answers")
    columns = visitor.visit.board.columns
    return {name: (column.error, column.answer.text) for name, column in columns.items()}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True)) and one[1] == other[1]


def test_training_changes_the_memory_weights_and_nothing_else(visitor):
    shared = visitor.app.sessions.models.memory_model()
    before, model = fingerprint(shared.weights), {n: p.clone() for n, p in shared.model.named_parameters()}
    memory = recalled(visitor)
    shown = train(visitor)
    made = visitor.visit.training
    assert "training is done" in shown and "Held-out loss" in shown and "plotly" in shown and made.error is None
    assert [line["step"] for line in made.lines] == [1, 2] and [step for step, _ in made.held] == [0, 2]
    assert made.held[0][1] != made.held[1][1]
    assert fingerprint(shared.weights) == before
    assert all(torch.equal(p, model[n]) for n, p in shared.model.named_parameters())
    assert not any(p.requires_grad for p in shared.model.parameters())
    assert same(recalled(visitor), memory)  # until they are kept
    [folder] = folders(visitor)
    assert [path.name for path in folder.iterdir()] == ["memory.safetensors"]
    weights = load_file(folder / "memory.safetensors")
    plain = dict(shared.weights.named_parameters())
    assert weights.keys() == plain.keys()
    assert any(not torch.equal(weights[n].float(), plain[n].bfloat16().float()) for n in plain)


def test_keeping_is_for_this_visitor_alone_and_throwing_away_restores_every_bit(visitor, visitors):  # noqa: F811
    other = visitors("two")
    other.put(("mill.txt", TEXT))
    before, said, others = recalled(visitor), answers(visitor), recalled(other)
    visitor.visit.board = None
    train(visitor, steps=3)
    assert "with your own weights" in then(visitor, "keep_weights")
    session = visitor.visit.session
    assert isinstance(session.rag.models, Reweighted) and other.visit.session.rag.models is visitor.app.sessions.models
    kept = recalled(visitor)
    assert not any(torch.equal(a, b) for a, b in zip(kept[0], before[0], strict=True))
    assert same(recalled(other), others)
    assert all(error is None for error, _ in answers(visitor).values())
    visitor.put(("more.txt", "Anna Okafor bought the mill in 1887. " * 3))  # memorized with the kept weights
    assert len(session.rag.library.documents) == 2 and all(error is None for error, _ in answers(visitor).values())
    key = next(key for key, row in visitor.visit.rows.items() if row.name == "more.txt")
    visitor.call("change_document", event={"delete": key})
    visitor.watch("watch_weights")
    if visitor.visit.training.weights:  # it had not learnt that one
        then(visitor, "drop_weights")
    assert session.rag.models is visitor.app.sessions.models and not folders(visitor)
    assert same(recalled(visitor), before) and answers(visitor) == said


def test_the_kept_weights_are_trained_on_and_replaced(visitor):
    train(visitor)
    then(visitor, "keep_weights")
    first = visitor.visit.session.rag.models.memory_model()
    visitor.visit.training.pairs = [Question(QUESTION, ("nine",)), Question("Who bought it in 1887?", ("Anna Okafor",))]
    train(visitor, "sft")
    made = visitor.visit.training
    assert made.taught >= 2 and made.weights != made.kept and made.error is None
    assert visitor.visit.session.rag.models.memory_model() is first
    then(visitor, "keep_weights")
    reader = visitor.visit.session.rag.models.memory_model()
    assert reader is not first and reader.weights.adapter is not None and made.kept == made.weights
    assert recalled(visitor) and len(folders(visitor)) == 2  # the weights, and the shipped memories
    then(visitor, "drop_weights")
    assert not folders(visitor) and recalled(visitor)


def test_stopping_keeps_what_was_learnt_so_far(visitor, monkeypatch):
    told = Training._told

    def stopping(self, line):
        if line["step"] == 3:
            visitor.call("stop_weights")
        told(self, line)

    monkeypatch.setattr(Training, "_told", stopping)
    shown = train(visitor, steps=300)
    made = visitor.visit.training
    assert "training is done" in shown and made.weights.exists() and len(made.lines) == 3
    assert [step for step, _ in made.held] == [0, 3] and not made.running


@pytest.mark.parametrize("how", ["stop", "delete", "leave"])
def test_ended_before_anything_is_learnt_it_leaves_nothing(visitor, monkeypatch, how):
    visit, at, told = visitor.visit, Training._at, []
    [key], root = visit.rows, visit.session.rag.library.root

    def ending(self, stage, done, of):
        at(self, stage, done, of)
        if stage == "training" and not told:
            told.append(stage)
            if how == "leave":
                threading.Thread(target=visitor.app.sessions.close, args=[visitor.token]).start()
                while not visit.session.closed:
                    time.sleep(0.01)
            else:
                visitor.call("stop_weights") if how == "stop" else visit.delete(key)

    monkeypatch.setattr(Training, "_at", ending)
    visitor.call("train_weights", "pretrain", 400, 1e-3)
    until(lambda: told and not visit.training.running)
    assert visit.training.weights is None and not list(root.glob("weights-*"))
    if how == "leave":
        until(lambda: not root.exists())


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_leaving_deletes_what_was_trained_and_kept(visitor):
    train(visitor)
    then(visitor, "keep_weights")
    root, key = visitor.visit.session.rag.library.root, visitor.visit.training.key
    assert httpx.get(f"{visitor.app.url}weights/{key}").status_code == 200
    visitor.app.sessions.close(visitor.token)
    assert not root.exists() and httpx.get(f"{visitor.app.url}weights/{key}").status_code == 404


def test_weights_go_with_a_document_they_learnt(visitor):
    train(visitor)
    then(visitor, "keep_weights")
    visit, [key] = visitor.visit, visitor.visit.rows
    visitor.call("change_document", event={"delete": key})
    until(lambda: not visit.training.running)
    assert visit.session.rag.models is visitor.app.sessions.models and not folders(visitor)
    assert visit.training.weights is None and not visit.training.lines and visit.training.error is None


def test_the_download_is_what_memo_reads_with(visitor, tmp_path):
    from memo.attention import MemoryWeights

    assert "weights/" not in visitor.call("hand_weights")
    train(visitor)
    key = visitor.visit.training.key
    assert f"weights/{key}" in visitor.call("hand_weights")
    reply = httpx.get(f"{visitor.app.url}weights/{key}")
    assert reply.status_code == 200 and "attachment" in reply.headers["content-disposition"]
    (tmp_path / "w.safetensors").write_bytes(reply.content)
    model = visitor.app.sessions.models.memory_model().model
    loaded = MemoryWeights.load(tmp_path / "w.safetensors", model)
    assert fingerprint(loaded) != visitor.app.sessions.models.memory_model().weights_fingerprint
    for wrong in ("", "x" * 32, key[:-1], "../" + key, key + "/x", "%00"):
        assert httpx.get(f"{visitor.app.url}weights/{wrong}").status_code == 404
    assert httpx.post(f"{visitor.app.url}weights/{key}").status_code == 404


def test_questions_are_compared_side_by_side(visitor):
    assert "Train first" in visitor.call("compare_weights", " ")
    train(visitor)
    assert "Type a question first" in visitor.call("compare_weights", "  \n ")
    before = recalled(visitor)
    shown = then(visitor, "compare_weights", f"{QUESTION} | nine\nWho knows?")
    [one, two] = visitor.visit.training.compared
    assert "trained here" in shown and "Evidence recalled" in shown and visitor.visit.training.error is None
    assert one.before != one.after and one.before.answer == before[1]
    assert all(0 <= v <= 1 for v in (one.before.answer_tokens, one.before.evidence_tokens, one.after.f1))
    assert two.before.f1 is None and two.before.answer_tokens is None
    assert same(recalled(visitor), before)
    after = {one.question: one.after for one in visitor.visit.training.compared}
    then(visitor, "keep_weights")
    assert recalled(visitor)[1] == after[QUESTION].answer  # the same weights, the same memories
    then(visitor, "compare_weights", f"{QUESTION} | nine\nWho knows?")
    assert visitor.visit.training.compared[0] == one
    bring(visitor, "take_checks", "q.csv", CSV)
    assert len(visitor.visit.training.questions) == 3 and not visitor.visit.training.compared


def test_lessons_are_brought_or_written(visitor, monkeypatch):
    shown = train(visitor, "sft")  # a random model writes none
    assert "too few lessons" in shown and "Thrown away" in shown and visitor.visit.training.weights is None
    shown = bring(visitor, "take_lessons", "mine.jsonl", (json.dumps(LESSON) + "\n") * 3)
    assert "3 lessons of your file" in shown
    assert "training is done" in train(visitor, "sft") and visitor.visit.training.taught == 3
    assert {"span", "draft", "answer"} <= visitor.visit.training.lines[0].keys()
    shown = bring(visitor, "take_lessons", "mine.csv", CSV)
    assert "3 questions with answers" in shown and not visitor.visit.training.lessons
    assert "training is done" in train(visitor, "sft") and visitor.visit.training.taught == 2
    visitor.visit.training.pairs = []
    written = tiny.Says(lambda prompt: json.dumps(
        [{"question": "What is the oak for?", "answer": "blades of oak"}]
        if "Write a JSON list" in prompt.messages[-1][1]
        else {"quotations": ["The mill has nine blades of oak and one of ash."], "questions": ["What is of oak?"]}
    ))  # fmt: skip
    monkeypatch.setattr(visitor.visit.session.rag.models, "_generator", written)
    monkeypatch.setattr("memo.train.own.STRETCH", 120)
    assert "training is done" in train(visitor, "sft") and visitor.visit.training.taught >= 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{not json}", "Line 1 is no lesson"), (b'{"documents": [], "questions": []}', "no lesson"),
        (b"{" * 100_000, "no lesson"), (json.dumps({**LESSON, "documents": ["x" * 2000]}).encode(), "tokens"),
        (json.dumps(LESSON).encode() + b"\n" + b" " * 1_000_001, "larger than"), (b"question\nWhy?\n", "has an answer"),
        (b"\xff\xfe", "not text"), (HOSTILE.encode(), "no column named question"),
    ],
)  # fmt: skip
def test_files_that_are_no_lessons_are_refused(visitor, content, told):
    shown = bring(visitor, "take_lessons", "mine.jsonl", content)
    assert told in shown and "Traceback" not in shown and not visitor.visit.training.lessons


def test_what_cannot_be_begun_is_told(visitor, visitors):  # noqa: F811
    for handler in ("keep_weights", "drop_weights"):
        assert "no trained weights yet" in visitor.call(handler)
    visitor.visit.training.begin("pretrain", 10**6, 1e-3)
    assert "10 to 400 steps" in visitor.call("look_at_training", "pretrain")
    visitor.visit.training.begin("rlgf", 10, 1e-3)
    visitor.visit.training.begin("pretrain", 10, 5.0)
    assert not visitor.visit.training.running
    empty = visitors("empty")
    assert "Put a document in under Ask first" in empty.call("look_at_training", "pretrain")
    assert "too little text" in train(empty)
    empty.put(("short.txt", "The mill."))
    assert "too little text" in train(empty)


def test_others_wait_in_a_line_and_are_told_their_place(visitor, visitors):  # noqa: F811
    others = [visitors("two"), visitors("three")]
    for other in others:
        other.put(("mill.txt", TEXT))
    with training.LINE.turn(lambda place: None):
        for other in (visitor, *others):
            other.visit.training.begin("pretrain", 2, 1e-3)
            until(lambda other=other: other.visit.training.place)
        shown = others[1].call("look_at_training", "pretrain")
        assert "you are number 3 in the line" in shown
        assert "Something is under way" in others[0].call("train_weights", "pretrain", 10, 1e-3)
        others[0].call("stop_weights")
        until(lambda: others[1].visit.training.place == 2)
        assert all(error is None for error, _ in answers(visitor).values())  # asking goes on
    until(lambda: not any(other.visit.training.running for other in (visitor, *others)))
    made = [other.visit.training.weights is not None for other in (visitor, *others)]
    assert made == [True, False, True] and not len(training.LINE)


def test_only_so_many_visitors_keep_weights(visitor, visitors, monkeypatch):  # noqa: F811
    monkeypatch.setattr(training, "KEPT", 1)
    other = visitors("two")
    other.put(("mill.txt", TEXT))
    for one in (visitor, other):
        train(one)
    then(visitor, "keep_weights")
    assert "Others keep weights" in then(other, "keep_weights") and other.visit.training.kept is None
    then(visitor, "drop_weights")
    assert "with your own weights" in then(other, "keep_weights")


def test_a_studied_memory_comes_back_as_studied(visitor):
    [row] = visitor.visit.rows.values()
    row.studied = True  # as if: its memory is what it was
    train(visitor)
    then(visitor, "keep_weights")
    assert not row.studied
    then(visitor, "drop_weights")
    assert row.studied


def test_a_decoder_is_mixed_beside_whichever_weights_are_in_place(visitor):
    visit = visitor.visit
    base = visit.session.rag.models.memory_model()
    visit.session.rag.mixing = Mixing(base, first_layers(base.model, 1), 0.4)
    train(visitor)
    then(visitor, "keep_weights")
    reader = visit.session.rag.models.memory_model()
    assert visit.session.rag.mixing.llm is reader is visit.session.rag.models.generator().model
    visit.mix(0.5)
    assert all(error is None for error, _ in answers(visitor).values())
    then(visitor, "drop_weights")
    assert visit.session.rag.mixing.llm is base


def test_the_shipped_run_is_shown_beside(visitor, tmp_path, monkeypatch):
    assert "No log of this stage" in visitor.call("look_at_training", "pretrain")
    run = {"stage": "sft", "plan": {"steps": 2, "batch": 32, "learning_rate": 0.0007}, "tokens": 7049216,
           "log": [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.7}]}  # fmt: skip
    (tmp_path / "training.json").write_text(json.dumps([run]))
    monkeypatch.setattr(training_html, "trained_weights", lambda settings: tmp_path)
    shown = visitor.call("choose_kind", "sft")
    assert "2 steps of 32 examples, 7,049,216 tokens of other texts" in shown and "3.500" in shown and "plotly" in shown
    assert "No log of this stage" in visitor.call("choose_kind", "pretrain")
    (tmp_path / "training.json").write_text("[1]")
    training_html.runs.cache_clear()
    assert "No log of this stage" in visitor.call("choose_kind", "sft")
    training_html.runs.cache_clear()


def test_nothing_of_a_person_becomes_html():
    visit = visit_with()
    told = Told(HOSTILE, 0.5, 0.5, 0.5)
    visit.training.compared = [Compared(HOSTILE, told, told)]
    visit.training.error = LessonsError(HOSTILE)
    for piece in (training_html.table(visit), training_html.status(visit), training_html.outcome(visit)):
        seen = Tags(piece)
        assert not {"script", "img"} & set(seen.tags) and not [a for a in seen.attributes if a.startswith("on")]
    assert "alert(" in Tags(training_html.table(visit)).text


def test_a_stranger_has_no_tab(visitor, app):  # noqa: F811
    train(visitor)
    stranger = Visitor(app, "made-up", open_it=False)
    for handler, data in (("keep_weights", ()), ("drop_weights", ()), ("hand_weights", ()), ("stop_weights", ()),
                          ("compare_weights", (QUESTION,)), ("train_weights", ("pretrain", 10, 1e-3))):  # fmt: skip
        shown = stranger.call(handler, *data)
        assert visitor.visit.training.key not in shown and "weights-" not in shown
    assert visitor.visit.training.weights.exists() and visitor.visit.training.kept is None


def test_a_line_is_first_come_first_served():
    line, order, places = Line(), [], []

    def work(number):
        with line.turn(lambda place: places.append((number, place))):
            order.append(number)

    threads = []
    with line.turn(lambda place: None):
        for number in range(3):
            threads.append(threading.Thread(target=work, args=[number]))
            threads[-1].start()
            until(lambda number=number: len(line) == number + 2)
        until(lambda: {(0, 1), (1, 2), (2, 3)} <= set(places))
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2] and not len(line)


def test_an_answer_is_placed_where_the_sentence_is_about_the_question():
    document = tiny.document(text="Nine geese sat there. The mill has nine blades. Nine years went by.")
    found = own.placed("How many blades has the mill?", ["nine"], [document])
    [[(_, start, end)]] = found.evidence
    assert document.text[start:end] == "nine" and start > 20
    assert own.placed("Where?", ["nowhere"], [document]) is None
    reader = tiny.memory_model()
    with pytest.raises(TooLittleText):
        own.tuning(reader, [], 10, 1e-3, 64, 4)


def test_the_tab_is_drawn_without_waiting_for_the_models_libraries(tmp_path):
    assert imported_by_drawing(tmp_path, "TrainingTab", "tab.draw(visit)") == "[]"
