"""The tab Results: what is measured, filtered and missing; a visitor's own questions, from a CSV to a CSV."""

import csv
import io
import re
import threading
import time
from types import SimpleNamespace

import pytest
import tiny

from memo.errors import EmptyQuestions, NoQuestionColumn, QuestionsNotText, QuestionsTooLarge
from memo.events import Answer, Found
from memo.ui import measured, questions, testing_tab
from memo.ui.questions import Evaluation, Question, Result
from memo.ui.results_layout import FOLDER, PLOTS
from memo.ui.visits import Visit


def write(tmp_path, content):
    path = tmp_path / "q.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", [
    "question,answers\nWho?,Anna|Ann\n", "\ufeffQuestion;answer\r\nWho?;Anna | Ann\r\n",
    "answers,question\nAnna|Ann,Who?\n",
])  # fmt: skip
def test_questions_are_read(tmp_path, content):
    assert questions.read_questions(write(tmp_path, content)) == [Question("Who?", ("Anna", "Ann"))]


def test_answers_are_optional(tmp_path):
    assert questions.read_questions(write(tmp_path, "question\nWho?\n\n")) == [Question("Who?")]


@pytest.mark.parametrize(("content", "error"), [
    (b"", EmptyQuestions), ("\ufeff \n", EmptyQuestions), ("question\n\n", EmptyQuestions),
    (b"\xff\xfe\x00", QuestionsNotText), (b"PK\x03\x04\x00", QuestionsNotText), ("a,b\n1,2\n", NoQuestionColumn),
    ("question\n" + "Who?\n" * 51, QuestionsTooLarge), (b"x" * 200_001, QuestionsTooLarge),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_by_kind(tmp_path, content, error):
    with pytest.raises(error):
        questions.read_questions(write(tmp_path, content))


def test_an_answer_is_measured_where_it_can_be():
    found = Found("d", 0, 9, None, "It was Anna.", 0.5)
    answer = Answer("Who?", "rag", "Anna", passages=(found,))
    result = questions.measured(Question("Who?", ("Anna",)), answer)
    assert (result.f1, result.exact_match, result.in_passages) == (1, 1, 1)
    assert questions.measured(Question("Who?"), answer).f1 is None
    assert questions.means([result, Result("What?", "rag", "no")])["rag"]["f1"] == 1


def test_nothing_in_the_csv_is_a_formula():
    rows = list(csv.reader(io.StringIO(questions.as_csv([Result("=1+1", "rag", " @SUM(A1)", 0.5)]).lstrip("\ufeff"))))
    assert rows[1][:4] == ["'=1+1", "rag", "' @SUM(A1)", "0.5"]


def test_every_section_has_tables_and_no_more_figures_than_places():
    for section in measured.SECTIONS:
        found = measured.chosen({}, [], [])
        if section != "questions":
            found = {name: one["results"] for name, one in measured.contents(FOLDER, section).items()}
        assert len(measured.figures(section, found)) <= PLOTS
        assert not found or "|" in measured.tables(section, found)


def test_all_figures_are_those_of_every_section_and_have_places():
    each = {
        section: {name: one["results"] for name, one in measured.contents(FOLDER, section).items()}
        for section in measured.SECTIONS
    }
    every = measured.every_figure(FOLDER)
    assert len(every) == sum(len(measured.figures(*one)) for one in each.items()) <= PLOTS and len(every) > 20
    assert measured.every_figure(FOLDER / "no") == []


def test_files_of_a_memory_have_names_and_one_with_a_single_ratio_no_figure_over_ratios():
    found = {name: one["results"] for name, one in measured.contents(FOLDER, "memory").items()}
    assert list(found) == list(measured.SINGLE["memory"])
    told = measured.tables("memory", found, "ko")
    assert told.startswith("# 학습하지 않은") and "\n# memory" not in told
    assert not any(len(figure.data) == 0 for figure in measured.figures("memory", found))
    assert measured.figures("memory", {"memory-8k": found["memory-8k"]}) == []


def test_filters_leave_what_was_chosen():
    found = measured.chosen(measured.contents(FOLDER, "questions"), ["squad"], ["rag"])
    assert list(found) == ["squad"] and list(found["squad"]["strategies"]) == ["rag"]
    told = measured.tables("questions", found)
    assert "squad" in told and "memorag" not in told and "hotpotqa" not in told
    measured.figures("questions", found)


def test_every_metric_has_a_name_in_both_languages():
    found = measured.chosen(measured.contents(FOLDER, "questions"), [], [])
    english, korean = (measured.tables("questions", found, language) for language in ("en", "ko"))
    assert "### Recall@3: share of the evidence" in english and "### Recall@3: 처음 3개" in korean
    headings = re.findall(r"^### (.*)", korean, re.MULTILINE)
    assert len(headings) == english.count("### ") > 10 and all(re.search("[가-힣]", heading) for heading in headings)


def test_a_missing_folder_has_nothing(tmp_path):
    assert measured.contents(tmp_path, "memory") == {} and measured.names(tmp_path) == ([], [])


def session_of(rag):
    return SimpleNamespace(rag=rag, closed=False, settings=rag.settings, used=0.0, history=[])


def test_questions_are_answered_row_by_row(tiny_rag):
    list(tiny_rag.memorize([tiny.document("mill.txt", "The mill has nine blades of oak. " * 8)]))
    visit = Visit(session_of(tiny_rag), "en")
    visit.testing.questions = [Question("How many blades?", ("nine",)), Question("<b>Of what?</b>")]
    visit.testing.begin(["rag", "closed_book"])
    wait(visit.testing)
    assert visit.testing.error is None and visit.testing.done == 2 and len(visit.testing.results) == 4
    html = testing_tab.table(visit)
    assert "&lt;b&gt;" in html and "<b>" not in html and "Mean" in html


def test_a_closed_session_ends_it(tiny_rag):
    list(tiny_rag.memorize([tiny.document("mill.txt", "The mill has nine blades of oak. " * 8)]))
    session = session_of(tiny_rag)
    session.closed = True
    testing = Evaluation(session)
    testing.questions = [Question("How many blades?")] * 50
    testing.begin(["rag"])
    wait(testing)
    assert testing.done == 0 and not testing.results


def wait(testing):
    end = time.monotonic() + 60
    while testing.running and time.monotonic() < end:
        time.sleep(0.05)
    assert not testing.running


def test_few_are_answered_at_once_and_the_others_wait_their_turn(tiny_rag, monkeypatch):
    list(tiny_rag.memorize([tiny.document("mill.txt", "The mill has nine blades of oak. " * 8)]))
    turns = threading.Semaphore(1)
    monkeypatch.setattr(questions, "AT_ONCE", turns)
    turns.acquire()  # somebody else's
    visits = [Visit(session_of(tiny_rag), "en") for _ in range(2)]
    for visit in visits:
        visit.testing.questions = [Question("How many blades?", ("nine",))]
        visit.testing.begin(["closed_book"])
    assert "come next" in testing_tab.status(visits[0]) and not visits[0].testing.results
    visits[1].testing.stop()  # whoever waits can stop
    wait(visits[1].testing)
    assert not visits[1].testing.results and not visits[1].testing.waiting
    turns.release()
    wait(visits[0].testing)
    assert len(visits[0].testing.results) == 1 and turns.acquire(blocking=False)
