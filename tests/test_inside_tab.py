"""The tab Inside the memory over HTTP with tiny models: what it shows, what it refuses, that visitors are apart."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_app import (  # noqa: F401 (fixtures)
    HARMLESS,
    HOSTILE,
    SECRET,
    Tags,
    Visitor,
    app,
    imported_by_drawing,
    visit_with,
    visitors,
)

from memo import inside
from memo.errors import EmptyDocument
from memo.events import Clue
from memo.ui import inside_html
from memo.ui.looking import Looking

QUESTION = "How many blades has the mill?"


@pytest.fixture
def visitor(visitors):  # noqa: F811
    """One with a document, whose tab is open."""
    made = visitors("one")
    made.put(("mill.txt", HARMLESS * 2))
    made.call("look_inside")
    return made


def recall(visitor, question=QUESTION):
    visitor.call("recall_inside", question)
    return visitor.watch("watch_inside")


def pick(visitor, **event):
    return visitor.call("pick_inside", event=event)


def test_without_a_document_the_tab_says_what_to_do(visitors):  # noqa: F811
    visitor = visitors("one")
    assert "Put a document in under Ask" in visitor.call("look_inside")
    for begin, data in (("recall_inside", [QUESTION]), ("measure_inside", []), ("remember_inside", [])):
        assert "no memory to look into yet" in visitor.call(begin, *data)
        assert "no memory to look into yet" in visitor.watch("watch_inside")
    assert "no memory to look into yet" in pick(visitor, pick="slot", number=0)


def test_a_document_is_shown_with_its_slots_and_what_they_take(visitor):
    shown, looking = visitor.call("look_inside"), visitor.visit.looking
    [entry] = visitor.visit.session.rag.library.documents.values()
    assert f"{entry.tokens:,} tokens → {entry.slots:,} memory slots" in shown and "the full cache would take" in shown
    html = Tags(inside_html.text(visitor.visit))
    assert looking.text[:100].replace(" ", "") in html.text.replace("·", "").replace(" ", "")
    known = sum(slot.token is not None for slot in looking.slots)
    assert html.tags.count("button") == known + 1 and len(looking.slots) == entry.slots  # one is the document's


def test_a_clue_is_recalled_and_a_token_a_cell_and_a_slot_are_chosen(visitor):
    shown, looking = recall(visitor), visitor.visit.looking
    assert "data-pick" in shown and looking.coming and looking.recalled
    assert not looking.running and looking.error is None
    clue = next(i for i, one in enumerate(looking.recalled) if len(one.tokens) > 2)
    token = inside_html.STRIDE * clue + 2
    assert "plotly" in pick(visitor, pick="token", number=token) and (looking.clue, looking.token) == (clue, 2)
    whole = looking.mass()
    assert whole.shape == (3, len(looking.slots)) and whole.sum(dim=1).max() <= 1.01
    shown = pick(visitor, pick="cell", number=5, layer=1)
    assert looking.slot >= 0 and "Layer" in shown and f"Slot {looking.slot + 1} of" in shown
    slot = looking.slot
    assert "plotly" in pick(visitor, pick="slot", number=slot) and looking.slot == -1  # again: none
    pick(visitor, pick="place", number=7)
    pick(visitor, pick="place", number=7)
    assert looking.slot == 7 and "stretch chosen" in inside_html.text(visitor.visit)
    pick(visitor, pick="clue", number=clue)
    assert looking.token == -1


def test_an_empty_question_is_the_last_one_asked(visitor):
    assert "Type a question first" in visitor.call("recall_inside", "  ")
    visitor.call("ask", "Who made the wheel?", ["rag"], False)
    visitor.watch("watch_answers")
    recall(visitor, "")
    assert visitor.visit.looking.question == "Who made the wheel?"


def test_losses_are_measured_window_by_window(visitor):
    visitor.call("measure_inside")
    shown, looking = visitor.watch("watch_inside"), visitor.visit.looking
    assert looking.read == 1 and "plotly" in shown and "with the full text" in shown and "Lower is better" in shown
    assert sum(len(one.memory) + 1 for one in looking.losses) == len(looking.text)  # a byte is a token


def test_a_part_is_recalled_beside_what_it_is(visitor):
    visitor.call("remember_inside")
    shown, looking = visitor.watch("watch_inside"), visitor.visit.looking
    assert "recalled words are the text" in shown and looking.said
    assert looking.given + looking.real == looking.text[: looking.parts[0].end]


def test_nonsense_changes_nothing(visitor):
    recall(visitor)
    looking = visitor.visit.looking
    before = (looking.part, looking.slot, looking.clue, looking.token, looking.document)
    for event in (
        {"pick": "slot", "number": 10**6}, {"pick": "slot", "number": -1}, {"pick": "slot", "number": "1"},
        {"pick": "part", "number": 99}, {"pick": "token", "number": 10**9}, {"pick": "clue", "number": -4},
        {"pick": "cell", "number": 10**6, "layer": 0}, {"pick": "cell", "number": 0, "layer": 99},
        {"pick": "cell", "number": 0}, {"pick": "document", "id": "../../etc"}, {"pick": "nothing", "number": 1},
        {"number": None}, {"pick": None},
    ):  # fmt: skip
        assert "Traceback" not in pick(visitor, **event) and "error" not in pick(visitor, **event)
    assert (looking.part, looking.slot, looking.clue, looking.token, looking.document) == before


def test_stopping_keeps_what_came(visitor, monkeypatch):
    whole, told = inside.losses, []

    def stopping(*args):
        for found in whole(*args):
            told.append(found)
            visitor.call("stop_inside")
            yield found

    monkeypatch.setattr(inside, "losses", stopping)
    visitor.call("measure_inside")
    visitor.watch("watch_inside")
    assert len(told) == 1 and not visitor.visit.looking.running


def test_what_goes_wrong_is_told(visitor, monkeypatch):
    def broken(*args):
        raise EmptyDocument("It is empty.", "Try another.")

    monkeypatch.setattr(inside, "losses", broken)
    visitor.call("measure_inside")
    assert "It is empty. Try another." in visitor.watch("watch_inside")
    monkeypatch.undo()
    visitor.call("measure_inside")
    assert "It is empty" not in visitor.watch("watch_inside")


def test_a_deleted_document_and_a_new_ratio_are_forgotten(visitor):
    recall(visitor)
    visit, looking = visitor.visit, visitor.visit.looking
    slots = len(looking.slots)
    visitor.call("change_ratio", 8)
    visitor.watch("watch_documents")
    shown = visitor.call("look_inside")
    assert len(looking.slots) < slots and not looking.recalled and "1 : 8" in shown
    recall(visitor)
    [key] = visit.rows
    visitor.call("change_document", event={"delete": key})
    assert not looking.recalled and not looking.text and not looking.document
    assert "no memory to look into yet" in visitor.call("look_inside")


def test_another_document_is_opened(visitor):
    visitor.put(("vault.txt", SECRET))
    ids = {entry.name: entry.id for entry in visitor.visit.session.rag.library.documents.values()}
    assert "vault" in pick(visitor, pick="document", id=ids["vault.txt"])
    assert "vault code" in visitor.visit.looking.text and visitor.visit.looking.slots


def test_a_stranger_sees_nothing(visitor, app):  # noqa: F811
    recall(visitor)
    stranger = Visitor(app, "made-up-page", open_it=False)
    calls = {"look_inside": [], "recall_inside": [QUESTION], "measure_inside": [], "remember_inside": []}
    for name, data in calls.items():
        assert "blades" not in stranger.call(name, *data)
    assert "blades" not in stranger.watch("watch_inside") and visitor.visit.looking.recalled


def test_nothing_of_a_document_or_a_model_becomes_html():
    visit = visit_with()
    entry = SimpleNamespace(
        id="d", name=HOSTILE, tokens=9, slots=2, ratio=4, bytes=10, full_bytes=40, pages=0, characters=3
    )
    visit.session.rag = SimpleNamespace(library=SimpleNamespace(documents={"d": entry}))
    looking, half = visit.looking, len(HOSTILE)
    looking.document, looking.text, looking.question = "d", HOSTILE * 2, HOSTILE
    looking.slots = [inside.Slot(0, half, (0, 3)), inside.Slot(half, 2 * half, None)]
    looking.parts, looking.slot = [inside.Part(1, 0, half), inside.Part(2, half, 2 * half)], 1
    said = tuple(inside.Said(HOSTILE, torch.rand(3, 2)) for _ in range(2))
    looking.recalled = [inside.Recalled(Clue(HOSTILE, "draft"), said)]
    looking.composed = SimpleNamespace(documents=("d",), owners=torch.tensor([0, 0]))
    looking.given = looking.said = looking.real = HOSTILE
    looking.asked, looking.error = 0, EmptyDocument(HOSTILE)
    coming = Looking(visit.session)
    coming.running, coming.coming = "recall", (Clue(HOSTILE, "span"),)
    html = Tags(inside_html.clues(SimpleNamespace(looking=coming, language="en")))
    assert html.text == "quote " + HOSTILE and not {"script", "img"} & set(html.tags)
    for draw in (
        inside_html.text, inside_html.clues, inside_html.slot, inside_html.page, inside_html.status,
        inside_html.losses_note,
    ):  # fmt: skip
        html = Tags(draw(visit))
        assert not {"script", "img"} & set(html.tags) and "onerror" not in html.attributes, draw.__name__


def test_the_empty_tab_is_drawn_without_the_models_libraries(tmp_path):
    draw = "from memo.ui.looking import PARTS\ntab.draw(visit, PARTS)"
    assert imported_by_drawing(tmp_path, "InsideTab", draw) == "[]"


def test_what_was_begun_before_everything_was_forgotten_leaves_nothing(tiny_rag):
    list(tiny_rag.memorize([tiny.document()]))
    looking = Looking(SimpleNamespace(rag=tiny_rag, closed=False, used=0.0))
    [document] = tiny_rag.library.documents
    looking.open(document, ())
    stop = looking._stop
    looking.question = QUESTION
    looking.clear()
    looking._work(lambda stop: (_ for _ in ()).throw(RuntimeError), stop)
    assert looking.error is None and not looking.recalled and looking.memory is None
