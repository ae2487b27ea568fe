"""Lessons packed into streams: the losses of each lesson alone, however they are grouped; replay beside them."""

import dataclasses
import random
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator

from memo.cli import main
from memo.errors import SettingsError
from memo.memory import MemoryModel
from memo.train import loop, packed, pretrain, sft
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import Tuning
from memo.train.setup import trainable
from memo.train.texts import TokenFile

PLAN = Tuning(
    steps=2, batch=2, micro=2, learning_rate=3e-3, window=64, windows=3, ratios=(4,), most=24, nothing=0.0, targets=3,
    parted=1.0,
)  # fmt: skip


def lesson(number):
    text = tiny.TEXT[number * 40 : number * 40 + 70]
    asked = Asked(f"What is it, {number}?", ("a mill",), ((0, 0, 9),), {"draft": ("a mill",), "key": ("mill", "river")})
    return Lesson((text,), (asked,))


LESSONS = [lesson(number) for number in range(4)]


@pytest.fixture
def reader() -> MemoryModel:
    found = tiny.memory_model("llama")
    found.weights = trainable(tiny.perturbed(found.model))
    return found


def test_a_stream_holds_the_documents_whole_and_is_full():
    places = set()
    for seed in range(20):
        found = packed.stream([[1, 2], [3]], [9] * 20, 10, random.Random(seed))
        at = found.index(1)
        places.add(at)
        assert len(found) == 10 and found[at : at + 3] == [1, 2, 3] and found.count(9) == 7
    assert len(places) > 3


def test_of_documents_that_are_too_long_the_end_is_lost():
    assert packed.stream([[1, 2, 3], [4, 5]], [], 4, random.Random(0)) == [1, 2, 3, 4]


def test_what_counts_of_padded_targets_is_what_is_said():
    targets = [[sft.Target("key", (5, 6), (7,))], [sft.Target("span", (1,), (2, 3)), sft.Target("key", (4,), (8,))]]
    rows, scored = packed.padded(targets, 3)
    assert rows.shape == (2, 3, 3)
    assert rows[scored].tolist() == [7, 2, 3, 8]
    assert not scored[0, 1:].any() and not scored[1, 2].any()


def test_each_lesson_has_the_loss_it_has_alone(reader):
    [batch] = packed.groups(reader, LESSONS, PLAN)(0)
    with torch.no_grad():
        found = packed.losses(reader, batch)
        for number, ids in enumerate(batch.ids):
            windows = ids[None].split(PLAN.window, dim=1)
            slots, _ = pretrain.read(reader, windows, batch.ratios, batch.begins)
            each = []
            for row, scored in zip(batch.rows[number], batch.scored[number], strict=True):
                if scored.any():
                    first, end = scored.nonzero()[0].item(), scored.nonzero()[-1].item() + 1
                    target = sft.Target("", tuple(row[:first].tolist()), tuple(row[first:end].tolist()))
                    each.append(-sft.log_probs(reader, slots, [target])[0].mean())
            assert len(each) == len(batch.kinds[number])
            torch.testing.assert_close(found["loss"][number], torch.stack(each).mean(), atol=1e-4, rtol=1e-4)
    assert sum(len(values) for name, values in found.items() if name != "loss") == sum(map(len, batch.kinds))


def test_gradients_do_not_depend_on_how_many_are_read_together(reader):
    parameters = [one for one in reader.weights.parameters() if one.requires_grad]
    found = []
    for micro in (1, 2):
        groups = packed.groups(reader, LESSONS, dataclasses.replace(PLAN, micro=micro))(0)
        assert len(groups) == 2 // micro
        loop.gradients(Accelerator(cpu=True), parameters, groups, partial(packed.losses, reader))
        found.append([one.grad.clone() for one in parameters])
        reader.weights.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_the_same_step_is_the_same_lessons(reader):
    one, other = (packed.groups(reader, LESSONS, PLAN)(1)[0] for _ in range(2))
    assert torch.equal(one.ids, other.ids) and torch.equal(one.rows, other.rows) and one.begins == other.begins


def test_too_few_lessons_are_refused(reader):
    with pytest.raises(SettingsError, match="do not fill"):
        packed.groups(reader, LESSONS[:1], PLAN)


def test_replay_reads_pieces_of_text_beside_the_lessons(reader):
    plan = dataclasses.replace(PLAN, replay=2)
    ids = np.frombuffer((tiny.TEXT * 40).encode(), dtype=np.uint8).astype("<u4")
    groups, losses = packed.groups(reader, LESSONS, plan), partial(packed.losses, reader)
    groups, losses = packed.with_replay(reader, groups, losses, TokenFile(ids, (0, len(ids)), (len(ids),)), plan)
    lessons, pieces = groups(0)
    assert isinstance(lessons, packed.Packed) and isinstance(pieces, pretrain.Batch) and len(pieces) == 2
    assert {"loss", "repeat"} <= losses(pieces).keys() and "repeat" not in losses(lessons)


@pytest.mark.parametrize("more", [["--set", "replay=2"], ["--texts", "book.txt"]])
def test_replay_and_texts_go_together(tmp_path, more):
    assert main(["train", "sft", "--data", "x.jsonl", "--out", str(tmp_path / "out"), *more]) == 2
