"""Studying one document: exercises, divergence, and a memory that answers more like the text itself."""

import dataclasses
import math
import random

import pytest
import tiny
import torch

from memo import memory_file
from memo.attention import Row, run
from memo.errors import EmptyDocument, WrongModel
from memo.memory import read_all
from memo.train import study
from memo.train.recipe import Studying
from memo.train.study import Exercise, Lap

PLAN = Studying(
    steps=25, learning_rate=0.05, part=64, span=24, given=4, stretches=3, questions=2, answers=1, asked=12, answered=12,
)  # fmt: skip
TEXT = tiny.TEXT[:180]


@pytest.fixture
def reader():
    return tiny.memory_model()


def memorize(reader, text=TEXT, ratio=4):
    return read_all(reader.memorize(text, "mill", ratio, 64))


def test_parts_overlap_and_hold_every_stretch():
    parts = study.parts_of(list(range(100)), 40)
    assert [part[0] for part in parts] == [0, 20, 40, 60] and parts[-1][-1] == 99
    assert all(any(set(range(start, start + 20)) <= set(part) for part in parts) for start in range(81))
    assert study.parts_of([1, 2, 3], 40) == [[1, 2, 3]]


def test_the_teacher_has_the_plain_cache_of_its_part(reader):
    ids = reader.encode(TEXT[:80])[0]
    slots = study.plain_slots(reader, ids[:50])
    embed = reader.model.get_input_embeddings()
    with torch.no_grad():
        whole = run(reader.model, embed(torch.tensor([ids])), [Row()])[0, 50:]
        behind = run(reader.model, embed(torch.tensor([ids[50:]])), [Row(slots)])[0]
    assert torch.allclose(whole, behind, atol=1e-4)


def test_a_stretch_is_a_piece_of_the_part_behind_its_cue(reader):
    ids, cue = reader.encode(TEXT)[0], reader.encode("Repeat:", start=False)[0]
    for seed in range(5):
        made = study.stretch(reader, ids, 3, PLAN, random.Random(seed))
        told = reader.tokenizer.decode(list(made.ids[len(cue) :]))
        assert made.part == 3 and list(made.ids[: len(cue)]) == cue and told in TEXT and len(told) == PLAN.span
        assert made.first == len(cue) + PLAN.given


def test_questions_are_asked_and_answered_as_from_memory(reader):
    teacher = study.plain_slots(reader, reader.encode(TEXT)[0])
    made = study.questions(reader, teacher, 0, PLAN, torch.Generator().manual_seed(0))
    assert made
    for exercise in made:
        before = reader.tokenizer.decode(list(exercise.ids[: exercise.first]))
        assert "Answer from the document above" in before and before.endswith("assistant\n")
        assert len(exercise.ids) - exercise.first <= PLAN.answered + 1


def test_divergence_by_hand():
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert study.divergence(teacher, student).item() == pytest.approx(expected, abs=1e-6)
    assert study.divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_the_logits_are_those_that_predict_what_is_to_be_learnt(reader):
    slots = study.plain_slots(reader, reader.encode(TEXT[:40])[0])
    exercises = [Exercise(0, tuple(reader.encode(TEXT[start : start + 12])[0]), 5) for start in (40, 70)]
    with torch.no_grad():
        found = study.logits(reader, slots, exercises)
        embed = reader.model.get_input_embeddings()
        alone = [
            reader.logits(run(reader.model, embed(torch.tensor([one.ids[:-1]])), [Row(slots)])[0, 4:])
            for one in exercises
        ]
    assert torch.allclose(found, torch.cat(alone), atol=1e-3)


def test_studying_brings_a_memory_nearer_to_the_text_and_changes_nothing_else(reader):
    memory = memorize(reader)
    keys, values = memory.keys.clone(), memory.values.clone()
    frozen = {name: weight.clone() for name, weight in reader.model.named_parameters()}
    *laps, studied = study.study(reader, memory, TEXT, PLAN)
    assert [lap.step for lap in laps] == list(range(1, 26)) and all(isinstance(lap, Lap) for lap in laps)
    assert sum(lap.loss for lap in laps[-8:]) < 0.9 * sum(lap.loss for lap in laps[:8])
    assert torch.equal(memory.keys, keys) and torch.equal(memory.values, values)
    assert all(torch.equal(weight, frozen[name]) for name, weight in reader.model.named_parameters())
    assert not torch.equal(studied.keys, keys) and not torch.equal(studied.values, values)
    same = {"keys", "values"}
    for one in dataclasses.fields(memory):
        if one.name not in same:
            before, after = getattr(memory, one.name), getattr(studied, one.name)
            assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def test_a_studied_memory_is_saved_and_loaded_like_any_other(reader, tmp_path):
    *_, studied = study.study(reader, memorize(reader), TEXT, dataclasses.replace(PLAN, steps=2))
    memory_file.save(studied, tmp_path / "m.safetensors")
    loaded = memory_file.load(tmp_path / "m.safetensors", reader)
    assert torch.equal(loaded.keys, studied.keys) and torch.equal(loaded.values, studied.values)


def test_the_same_seed_studies_the_same(reader):
    plan = dataclasses.replace(PLAN, steps=3)
    one, two = ([*study.study(reader, memorize(reader), TEXT, plan)][-1] for _ in range(2))
    assert torch.equal(one.keys, two.keys)


def test_memories_of_others_and_empty_texts_are_refused(reader):
    other = tiny.memory_model(seed=5)
    with pytest.raises(WrongModel):
        next(study.study(other, memorize(reader), TEXT, PLAN))
    with pytest.raises(EmptyDocument):
        next(study.study(reader, memorize(reader), "", PLAN))
