"""What several weights recall for the same questions: each value by hand, differences in pairs, resuming, wrong use."""

import dataclasses
import json

import pytest
import tiny
import torch
from rlgf_case import ASKED, LESSON, MILL, SON, ids_of, judge_of, memory_model

from memo import answers
from memo.cli import main
from memo.clues import KINDS, collect, prompt
from memo.evaluate import clues
from memo.evaluate.metrics import f1
from memo.evaluate.rows import Rows
from memo.generate import LocalGenerator, write
from memo.memory import inference
from memo.settings import Settings
from memo.train import lessons, sft
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import Tuning

SETTINGS = Settings(window=24, ratio=4, passage_tokens=50, context_tokens=120, answer_tokens=8, clue_tokens=12)
TAUGHT = dataclasses.replace(ASKED, clues={"span": ("The lake froze.", "A flood took it."), "draft": ("Anna",)})
SECOND = Asked("Who rebuilt the wall?", ("Piet",), ((1, 0, 35),), {"draft": ("Piet",)})
TWO = Lesson((MILL, SON), (SECOND, dataclasses.replace(ASKED, evidence=((0, 0, 36),), clues={})))
UNANSWERED = Lesson((SON,), (Asked("Nothing?", (), ()),))


@pytest.fixture(scope="module")
def reader():
    return memory_model()


def alone(reader, judge, lesson, asked):
    """The values of one question, prompt by prompt."""
    with inference(reader):
        slots = sft.memorize(reader, ids_of(reader, *lesson.documents), 24, 4)
    generator = LocalGenerator(reader, "")
    said = {kind: write(generator, prompt(kind, asked.question, 12, slots=slots, stop_at=6)) for kind in KINDS}
    recalled = collect(said, asked.question, None)
    passages = judge.passages(lesson)
    vectors = torch.tensor(judge.embedder.encode([passage.text for passage in passages]))

    def found(clue_weight, recalled=recalled):
        by = judge_of()
        by.clue_weight = clue_weight
        return by.reward("recall", lesson, asked, by.ranked(asked.question, recalled, passages, vectors))

    answer = write(generator, answers.memory_prompt(asked.question, 8, slots)).text
    targets = sft.Encoder(reader, Tuning.most).targets(Lesson(lesson.documents, (asked,)))
    with inference(reader):
        losses = [-float(one.mean()) for one in sft.log_probs(reader, slots, targets)]
    return {"question": found(0, ()), "recall": found(1), "in_use": found(0.1), "f1": f1(answer, asked.answers),
            "loss": sum(losses) / len(losses)}  # fmt: skip


@pytest.mark.parametrize("lesson", [Lesson(LESSON.documents, (TAUGHT,)), TWO])
def test_a_batch_of_questions_measures_what_each_question_alone_would(reader, lesson):
    judge = judge_of()
    rows = clues.measure(reader, judge, lesson, SETTINGS)
    assert len(rows) == len(lesson.questions)
    for row, asked in zip(rows, lesson.questions, strict=True):
        for metric, value in alone(reader, judge, lesson, asked).items():
            assert row[metric] == pytest.approx(value, abs=1e-4), metric


def test_questions_without_answer_or_evidence_are_not_measured(reader):
    assert clues.measure(reader, judge_of(), UNANSWERED, SETTINGS) == []


def test_weights_are_compared_on_the_same_questions_and_measured_once(reader, monkeypatch):
    other = memory_model()
    with torch.no_grad():
        other.weights.layers[0]["v_proj"].weight.mul_(1.5)
    sets = {"a": [Lesson(LESSON.documents, (TAUGHT,)), UNANSWERED], "b": [TWO]}
    rows = Rows(None, {})
    readers = {"sft": reader, "rlgf": other}
    found = clues.evaluate(sets, readers, judge_of(), SETTINGS, rows, tell=lambda line: None)
    assert found["sets"] == {"a": 1, "b": 2} and list(found["weights"]) == ["sft", "rlgf"]
    assert found["against"].keys() == {"rlgf"} and found["against"]["rlgf"].keys() == {"sft"}
    every = {name: [row for key, rows in rows.done.items() if key.startswith(one.weights_fingerprint) for row in rows]
             for name, one in readers.items()}  # fmt: skip
    for metric in clues.METRICS:
        change = found["against"]["rlgf"]["sft"]["all"][metric]
        by_hand = sum(b[metric] - a[metric] for a, b in zip(every["sft"], every["rlgf"], strict=True)) / 3
        assert change["mean"] == pytest.approx(by_hand, abs=1e-4) and change["n"] == 3
    assert found["against"]["rlgf"]["sft"]["all"]["loss"]["mean"] != 0
    assert found["weights"]["sft"]["all"]["question"] == found["weights"]["rlgf"]["all"]["question"]
    monkeypatch.setattr(clues, "measure", None)
    assert clues.evaluate(sets, readers, judge_of(), SETTINGS, rows, tell=lambda line: None) == found


def test_the_command_compares_weights(tmp_path, capsys, monkeypatch, tiny_folder):
    for name, value in {"MEMORY_MODEL": str(tiny_folder), "WINDOW": "64", "RATIO": "4", "ANSWER_TOKENS": "4",
                        "CLUE_TOKENS": "4", "PASSAGE_TOKENS": "40"}.items():  # fmt: skip
        monkeypatch.setenv(f"MEMO_{name}", value)
    monkeypatch.setattr("memo.models.Models.embedder", lambda self: tiny.Embedder())
    lessons.write(tmp_path / "dev" / "mill.jsonl", [Lesson(LESSON.documents, (TAUGHT,)), TWO])
    trained = memory_model()
    trained.weights.save(tmp_path / "trained.safetensors")
    command = ["evaluate", "clues", "--data", str(tmp_path / "dev" / "mill.jsonl"), "--out",
               str(tmp_path / "clues.json"), "--weights", "untrained=untrained",
               f"trained={tmp_path / 'trained.safetensors'}"]  # fmt: skip
    assert main(command) == 0
    told = json.loads((tmp_path / "clues.json").read_text())["results"]
    assert told["sets"] == {"mill": 3} and told["what"]["weights"].keys() == {"untrained", "trained"}
    assert told["against"]["trained"]["untrained"]["mill"]["loss"]["n"] == 3
    assert '"weights": "trained"' in capsys.readouterr().out
    for words, reason in (
        (["--weights", "trained"], "NAME=PATH"),
        (["--weights", "a=untrained", "a=untrained"], "twice"),
        (["--weights", "a=untrained", "--data", tmp_path / "dev" / "mill.jsonl", tmp_path / "mill.jsonl"], "twice"),
        (["--weights", "a=nowhere"], "memory weights"),
    ):
        assert main([*command, *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert reason in said and "Traceback" not in said
