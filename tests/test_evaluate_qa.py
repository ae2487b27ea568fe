"""evaluate qa: what strategies find and say, from batches to means; and the command line of all measurements."""

import dataclasses

import pytest
import tiny

from memo import clues as recall
from memo.answers import Ask
from memo.errors import BackendError
from memo.evaluate import qa, strategies, summary
from memo.evaluate.data import Question, QuestionSet, Shelf
from memo.evaluate.rows import Rows
from memo.evaluate.strategies import EVERY, PARTS, WITH_PASSAGES, Part, recalled
from memo.events import Clue, Source

MILL = tiny.document("mill.txt", tiny.TEXT)
RIVER = tiny.document("river.txt", "The river rose on the fifth of May. The ferryman Tomas drowned. " * 4)


def question(number, text="Who bought the mill?", document=MILL, needle="Anna Okafor", answerable=True):
    start = document.text.find(needle)
    span = (document.id, start, start + len(needle))
    shelf = Shelf(document.id, (document,))
    return Question(f"q{number}", text, (needle,) if answerable else (), answerable, ((span,),), shelf)


@pytest.fixture
def asked():
    few = [question(i, f"Who bought the mill {i} years ago?") for i in range(6)]
    few += [question(i, f"Who drowned {i} times?", RIVER, "Tomas") for i in range(6, 11)]
    few.append(question(11, "What is the mayor's name?", RIVER, "May", answerable=False))
    return QuestionSet("tiny", "dev", "en", True, tuple(few))


def evaluate(asked, models, settings, rows=None, names=EVERY, **more):
    return qa.evaluate(asked, models, settings, names, rows or Rows(None, {}), **more)


def test_every_strategy_is_measured_on_every_question(asked, tiny_models, tiny_settings):
    told = []
    results = evaluate(asked, tiny_models, tiny_settings, timed=1, tell=told.append)
    assert list(results["strategies"]) and set(results["strategies"]) == set(EVERY)
    assert told == ["6 of 12 questions", "12 of 12 questions"]
    assert results["failed"] == {}
    for name, found in results["strategies"].items():
        assert ("recall@3" in found) == (name in WITH_PASSAGES)
        assert found["f1"]["n"] == 11 and found["answered_anyway"]["n"] == 1
        assert found.get("prompt_tokens", {}).get("n") == (None if name in PARTS else 12)
        assert ("seconds" in found) == (name not in PARTS)
        assert found.get("recall@3", {"n": 11})["n"] == 11  # the unanswerable one has no evidence
    assert set(results["against_rag"]) == set(EVERY) - {"rag"}
    assert results["what"]["strategies"]["bm25"] == strategies.TOLD["bm25"]
    assert results["libraries"] == 2 and results["questions"] == results["answered"] == 12


def test_a_killed_run_goes_on_to_the_same_file(asked, tiny_models, tiny_settings, tmp_path):
    whole = evaluate(asked, tiny_models, tiny_settings, Rows(tmp_path / "whole", {}))

    def kill(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, tiny_models, tiny_settings, Rows(tmp_path / "cut", {}), tell=kill)
    assert len(Rows(tmp_path / "cut", {}).done) == 1
    resumed = evaluate(asked, tiny_models, tiny_settings, Rows(tmp_path / "cut", {}))
    assert resumed == whole
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_more_questions_use_the_rows_of_fewer(asked, tiny_models, tiny_settings):
    rows, few = Rows(None, {}), dataclasses.replace(asked, questions=asked.questions[:6])
    evaluate(few, tiny_models, tiny_settings, rows, ["rag", "memorag"], answer_every=3)
    told = []
    more = evaluate(asked, tiny_models, tiny_settings, rows, ["rag", "memorag"], answer_every=3, tell=told.append)
    assert told == ["1 units of work are there from before.", "12 of 12 questions"]
    assert more["questions"] == 12 and more["answered"] == 4
    assert more == evaluate(asked, tiny_models, tiny_settings, None, ["rag", "memorag"], answer_every=3)


def test_answers_are_those_of_the_product(asked, tiny_models, tiny_settings, tiny_rag):
    """Batches, shared prompts and measuring change nothing of what a strategy says."""
    from memo.pipeline import finish

    some = dataclasses.replace(asked, questions=asked.questions[:2])
    rows = Rows(None, {})
    names = ["memorag", "rag", "hyde", "rq_rag", "full_context", "memory_only", "closed_book"]
    evaluate(some, tiny_models, tiny_settings, rows, names)
    list(tiny_rag.memorize([MILL]))
    finish(tiny_rag.ask("What is this about?"))  # a set of documents' first question reads one prompt more
    for one in some.questions:
        for name in names:
            [answer] = finish(tiny_rag.ask(one.text, name)).values()
            [row] = [r for some in rows.done.values() for r in some if (r["question"], r["strategy"]) == (one.id, name)]
            assert row["answer"] == answer.text
            assert row["prompt_tokens"] == answer.prompt_tokens


def test_fewer_answers_than_questions_leave_the_retrieval_of_all(asked, tiny_models, tiny_settings):
    results = evaluate(asked, tiny_models, tiny_settings, names=["rag", "closed_book", "memorag"], answer_every=4)
    assert results["answered"] == 3
    assert results["strategies"]["rag"]["recall@3"]["n"] == 11
    found = results["strategies"]["closed_book"]
    assert found["prompt_tokens"]["n"] == 3


def test_parts_search_by_what_is_left_of_memorag(tiny_rag):
    list(tiny_rag.memorize([MILL, RIVER]))
    searched, led = [], []

    class Spy(Ask):
        def search(self, queries, pointers=False, leading=()):
            searched.append(([query.label for query in queries], pointers))
            led.append([clue.text for clue in leading])
            return super().search(queries, pointers, leading)

    place = (Source(MILL.id, 0, 40),)
    clues = tuple(Clue(f"a {kind}", kind, -1.0, place) for kind in ("span", "question", "draft", "key", "name"))
    for part in PARTS.values():
        ask = Spy("Who?", "x", tiny_rag.settings, tiny_rag.library, tiny_rag.models.generator(), None, edited=clues)
        list(recalled(ask, part))
    by_part = dict(zip(PARTS, searched, strict=True))
    without = [part for part, found in zip(PARTS, led, strict=True) if not found]
    assert without == ["memorag-names", "pointers"] and {*map(tuple, led)} == {("a name",), ()}
    every = ["question", "a span", "a question", "a draft", "a key"]
    assert by_part["memorag-spans"] == ([every[0], *every[2:]], True)
    assert by_part["memorag-questions"][0] == ["question", "a span", "a draft", "a key"]
    assert by_part["memorag-draft"][0] == ["question", "a span", "a question", "a key"]
    assert by_part["memorag-keys"][0] == every[:-1]
    assert by_part["memorag-pointers"] == (every, False)
    assert by_part["memorag-question"] == (every[1:], True)
    assert by_part["pointers"] == ([], True)


def kept(rows):
    """(question, strategy) -> its row, of those that are not for seconds."""
    every = [row for some in rows.done.values() for row in some]
    return {(row["question"], row["strategy"]): row for row in every if "seconds" not in row}


def test_parts_work_with_what_memorag_has_recalled(asked, tiny_models, tiny_settings, monkeypatch):
    asks = []

    class Spy(Ask):
        def __init__(self, *given):
            super().__init__(*given)
            asks.append(self)

    monkeypatch.setattr(qa, "Ask", Spy)
    monkeypatch.setitem(PARTS, "memorag-question", Part())  # nothing is left out
    rows, names = Rows(None, {}), ("memorag", "memorag-question", "pointers")
    evaluate(asked, tiny_models, tiny_settings, rows, names)
    told = kept(rows)
    assert len(told) == 36 and len(asks) == 36
    for one in asked.questions:
        whole, part, pointed = (told[one.id, name] for name in names)
        assert pointed["ranked"]
        for what in ("ranked", "answer", "cited"):
            assert part[what] == whole[what]
        by_name = {ask.strategy: ask for ask in asks if ask.question == one.text}
        whole, part, pointed = (by_name[name] for name in names)
        assert whole.clues and part.clues == whole.clues and part.ranked == whole.ranked  # with the same scores
        assert {label for passage in pointed.ranked for label in passage.found_by} == {"memory"}


def rows(*values):
    return [{"question": f"q{i}", **value} for i, value in values]


def test_means_and_paired_differences_by_hand(asked):
    hit, miss = [MILL.id, 0, len(MILL.text)], [MILL.id, 300, 310]
    told = rows(
        (0, {"strategy": "rag", "ranked": [miss, hit]}),
        (1, {"strategy": "rag", "ranked": [miss]}),
        (0, {"strategy": "bm25", "ranked": [hit]}),
        (1, {"strategy": "bm25", "ranked": [miss, miss, hit]}),
        (2, {"strategy": "bm25", "ranked": [hit]}),  # rag has no row for it: not in the difference
    )
    found = summary.summarise(asked, told)
    assert found["strategies"]["rag"]["recall@1"]["mean"] == 0
    assert found["strategies"]["rag"]["recall@3"]["mean"] == 0.5
    assert found["strategies"]["rag"]["reciprocal_rank"]["mean"] == 0.25
    assert found["strategies"]["bm25"]["reciprocal_rank"]["mean"] == pytest.approx((1 + 1 / 3 + 1) / 3, abs=1e-4)
    difference = found["against_rag"]["bm25"]["reciprocal_rank"]
    assert difference["mean"] == pytest.approx(((1 - 1 / 2) + (1 / 3 - 0)) / 2, abs=1e-4) and difference["n"] == 2


def test_intervals_draw_shelves_and_of_one_shelf_questions(asked):
    hit, miss = [MILL.id, 0, len(MILL.text)], [MILL.id, 300, 310]
    told = rows(*((i, {"strategy": "rag", "ranked": [hit if i % 2 else miss]}) for i in range(6)))
    one = dataclasses.replace(asked, questions=asked.questions[:6])
    low = summary.summarise(one, told)["strategies"]["rag"]["recall@1"]["low"]
    assert 0 < low < 0.5
    assert summary.summarise(asked, told)["strategies"]["rag"]["recall@1"]["low"] is None  # rows of one of two shelves


def test_citations_are_supported_by_the_evidence_or_the_answer(asked):
    at = MILL.text.find("Anna Okafor bought")
    inside, elsewhere = [MILL.id, at, at + 20], [MILL.id, 200, 230]
    row = {"question": "q0", "strategy": "rag", "answer": "Anna Okafor bought it. She did.", "prompt_tokens": 9,
           "cited": {"sentences": 2, "places": [inside]}}  # fmt: skip
    found = summary.measured(row, asked.questions[0], "en")
    assert (found["cited"], found["supported"], found["contains"]) == (0.5, 1.0, 1.0)
    row["cited"] = {"sentences": 2, "places": [inside, elsewhere]}
    found = summary.measured(row, asked.questions[0], "en")
    assert (found["cited"], found["supported"]) == (1.0, 0.5)
    row["cited"]["places"] = []
    assert "supported" not in summary.measured(row, asked.questions[0], "en")  # no citation is neither right nor wrong


def test_an_unanswerable_question_is_answered_anyway_or_refused(asked):
    row = {"question": "q11", "strategy": "closed_book", "prompt_tokens": 9, "cited": {"sentences": 1, "places": []}}
    measured = lambda text: summary.measured(row | {"answer": text}, asked.questions[11], "en")  # noqa: E731
    assert measured("It is Bob.")["answered_anyway"] == 1
    assert measured("The text does not say.")["answered_anyway"] == 0
    assert "f1" not in measured("It is Bob.")


def test_a_strategy_that_fails_is_counted_and_the_others_go_on(asked, tiny_models, tiny_settings, monkeypatch):
    def fails(ask):
        raise BackendError("The endpoint is gone.")
        yield

    monkeypatch.setitem(qa.STRATEGIES, "hyde", fails)
    results = evaluate(asked, tiny_models, tiny_settings, names=["rag", "hyde"])
    assert results["failed"] == {"hyde": 12}
    assert results["strategies"]["rag"]["recall@3"]["n"] == 11


def fail_recalling(monkeypatch, text):
    """Nothing can be recalled for that question."""
    whole = recall.prompts

    def prompts(question, *more):
        if question == text:
            raise BackendError("The endpoint is gone.")
        return whole(question, *more)

    monkeypatch.setattr(recall, "prompts", prompts)


@pytest.mark.parametrize("names", [("rag", "memorag", *PARTS), ("rag", "pointers", "memorag-question")])
def test_where_memorag_fails_its_parts_fail_too(asked, tiny_models, tiny_settings, monkeypatch, names):
    """They would else be told as what they are not: rag without anything recalled."""
    fail_recalling(monkeypatch, asked.questions[1].text)
    rows = Rows(None, {})
    results = evaluate(asked, tiny_models, tiny_settings, rows, names)
    parts = [name for name in names if name != "rag"]
    assert results["failed"] == dict.fromkeys(parts, 1)
    told = kept(rows)
    assert len(told) == 12 * len(names)
    for (number, strategy), row in told.items():
        assert ("error" in row) == (number == "q1" and strategy in parts)
    assert len({told["q1", name]["error"] for name in parts}) == 1 and "endpoint" in told["q1", parts[0]]["error"]
    assert results["strategies"]["rag"]["recall@3"]["n"] == 11
    assert {results["strategies"][name]["recall@3"]["n"] for name in parts} == {10}


@pytest.mark.parametrize("timed", [0, 5])
def test_a_document_that_cannot_be_memorized_fails_its_own_questions_only(asked, tiny_models, tiny_settings, timed):
    long = tiny.document("long.txt", tiny.TEXT * 330)  # more than the model's positions hold at any ratio
    of_it = [question(20 + i, f"Who bought it {i} times?", long) for i in range(2)]
    mixed = dataclasses.replace(asked, questions=(*asked.questions[:3], *of_it, *asked.questions[6:]))
    rows, names = Rows(None, {}), ("rag", "bm25", "memorag", "pointers")
    results = evaluate(mixed, tiny_models, tiny_settings, rows, names, timed=timed)
    assert results["failed"] == dict.fromkeys(names, 2) and results["questions"] == 11
    told = kept(rows)
    assert len(told) == 11 * len(names)
    for (number, _), row in told.items():
        assert ("error" in row) == (number in ("q20", "q21"))
    assert "Split it into parts" in told["q20", "rag"]["error"]
    without = dataclasses.replace(asked, questions=(*asked.questions[:3], *asked.questions[6:]))
    expected = evaluate(without, tiny_models, tiny_settings, names=names)
    for name in names:
        found = {metric: value for metric, value in results["strategies"][name].items() if metric != "seconds"}
        assert found == expected["strategies"][name]
