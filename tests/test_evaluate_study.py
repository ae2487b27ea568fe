"""What studying gains: a row for each number of steps, gains a minute by hand, resuming, wrong use."""

import dataclasses
import json

import pytest
import tiny

from memo.cli import main
from memo.errors import SettingsError
from memo.evaluate import studying
from memo.evaluate.metrics import f1
from memo.evaluate.rows import Rows
from memo.settings import Settings
from memo.train.recipe import Studying

SETTINGS = Settings(window=64, ratio=4, answer_tokens=6)
PLAN = Studying(part=128, stretches=1, span=12, given=4, questions=1, answers=1, asked=4, answered=4)
QUESTIONS = [
    {"question": "Who bought the mill?", "answer": "Anna Okafor", "evidence": ["Anna  Okafor bought the\nmill"]},
    {"question": "Who?", "answer": "nobody", "evidence": ["It stands nowhere."]},
    {"question": "What is not said?", "answer": "", "evidence": []},
]


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "mill.txt"
    path.write_text(5 * "Anna Okafor bought the mill in 1887. Its wheel had nine blades of oak. " + 6 * tiny.TEXT)
    (tmp_path / "mill.questions.json").write_text(json.dumps({"questions": QUESTIONS}))
    return path


def test_each_number_of_steps_is_measured_and_its_gain_told_by_the_minute(example, monkeypatch):
    rows, reader = Rows(None, {}), tiny.memory_model()
    told = []
    found = studying.evaluate([studying.load(example)], reader, SETTINGS, PLAN, [1, 2], rows, told.append)
    assert [row["steps"] for row in found][:3] == [0, 1, 2]
    assert len(rows.done) == len(told) == 3
    before, _, after = (one for [one] in rows.done.values())
    assert before["questions"] == 1 and before["seconds"] == 0 < after["seconds"]  # one whose evidence was read
    by_hand = 60 * (after["copy"] - before["copy"]) / after["seconds"]
    assert found[2]["per_minute"]["copy"]["mean"] == pytest.approx(by_hand, abs=1e-3)
    assert "per_minute" not in found[0] and found[3]["steps"] is None and found[3]["copy"]["n"] == 1
    monkeypatch.setattr(studying, "measured", lambda *arguments: dict.fromkeys(studying.METRICS, 0.5))
    assert studying.evaluate([studying.load(example)], reader, SETTINGS, PLAN, [1, 2], rows, told.append) == found
    fewer = studying.evaluate([studying.load(example)], reader, SETTINGS, PLAN, [2], rows, told.append)
    assert [row["steps"] for row in fewer] == [0, 2, None] and fewer[1] == found[2]
    example.write_text(example.read_text() + "More.")  # another text: nothing of it is measured yet
    anew = studying.evaluate([studying.load(example)], reader, SETTINGS, PLAN, [1], rows, told.append)
    assert anew[1]["copy"]["mean"] == 0.5


def test_answers_are_those_from_the_memory_alone(example):
    reader, text = tiny.memory_model(), example.read_text()
    case = studying.Case(reader, "mill", text, 500, 0)
    memory = studying.read_all(reader.memorize(case.text, "mill", 4, 64))
    asked = [("Who bought the mill?", "Anna Okafor"), ("Who?", "nobody")]
    found = studying.measured(reader, case, memory, asked, 6)
    generator = studying.LocalGenerator(reader, "")
    slots = studying.remembered_alone(reader, memory).slots
    said = [studying.memory_prompt(question, 6, slots) for question, _ in asked]
    texts = []
    for prompt in said:
        run = generator.open()
        stream = run.add(prompt)
        while run.step():
            pass
        texts.append(stream.text)
    expected = sum(f1(text, [answer]) for text, (_, answer) in zip(texts, asked, strict=True)) / 2
    assert found["f1"] == pytest.approx(expected) and 0 <= found["copy"] <= 1


@pytest.mark.parametrize("questions", ["[]", "{", '{"questions": [{}]}'])
def test_wrong_questions_are_told(example, questions):
    example.with_name("mill.questions.json").write_text(questions)
    with pytest.raises(SettingsError, match="holds no questions"):
        studying.evaluate([studying.load(example)], tiny.memory_model(), SETTINGS, PLAN, [1], Rows(None, {}))


@pytest.mark.parametrize(("text", "told"), [("Short.", "too short"), (9 * tiny.TEXT, "No evidence")])
def test_a_text_that_is_short_or_without_evidence_is_refused(example, text, told):
    example.write_text(text)
    with pytest.raises(SettingsError, match=told):
        studying.evaluate([studying.load(example)], tiny.memory_model(), SETTINGS, PLAN, [1], Rows(None, {}))


def test_the_command_writes_what_it_measured(example, tmp_path, monkeypatch, tiny_folder, capsys):
    for name, value in {"MEMORY_MODEL": str(tiny_folder), "WINDOW": "64", "RATIO": "4", "ANSWER_TOKENS": "4"}.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    monkeypatch.setattr("memo.train.recipe.Studying", lambda: dataclasses.replace(PLAN))
    out = tmp_path / "study.json"
    assert main(["evaluate", "study", "--texts", str(example), "--steps", "1", "--out", str(out)]) == 0
    told = json.loads(out.read_text())["results"]
    assert told["what"]["models"]["memory_weights"] == "untrained" and told["rows"][1]["steps"] == 1
    assert main(["evaluate", "study", "--texts", str(example), "--steps=-1", "--out", str(out)]) == 2
    example.with_name("mill.questions.json").unlink()
    capsys.readouterr()
    assert main(["evaluate", "study", "--texts", str(example), "--steps", "1", "--out", str(out)]) == 2
    assert "mill.questions.json" in capsys.readouterr().err
