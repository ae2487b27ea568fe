"""RLGF: losses by hand, training on pairs, files of them, and the command line."""

import copy
import dataclasses
import json
import math
from functools import partial

import pytest
import tiny
import torch
from accelerate import Accelerator
from rlgf_case import ASKED, LAKE, LESSON, MILL, PLAN, SON, ids_of, memory_model, slots_of

from memo import clues
from memo.adapter import Adapter
from memo.attention import MemoryWeights
from memo.cli import main
from memo.errors import SettingsError
from memo.memory import MemoryModel
from memo.models import Models
from memo.train import lessons, loop, rlgf, sft
from memo.train.lessons import Asked, Lesson
from memo.train.rlgf import Group, Pair


@pytest.fixture(scope="module")
def reader():
    return memory_model()


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "worst", "margin", "loss"),
    [(-1.0, -2.5, 1.0, 0.0), (-2.0, -1.5, 1.0, 1.5), (-2.0, -2.0, 1.0, 1.0), (-1.0, -1.5, 2.0, 1.5)],
)
def test_hinge_by_hand(best, worst, margin, loss):
    a, b = (torch.tensor(value, requires_grad=True) for value in (best, worst))
    found = rlgf.hinge(a, b, margin)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert (float(a.grad), float(b.grad)) == ((-1.0, 1.0) if loss else (0.0, 0.0))


def test_dpo_by_hand():
    values = [torch.tensor(value, requires_grad=True) for value in (-3.0, -5.0, -4.0, -4.5)]
    found = rlgf.dpo(*values, beta=0.1)
    found.backward()
    z = 0.1 * ((-3 + 4) - (-5 + 4.5))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-z)))
    slope = 0.1 / (1 + math.exp(z))
    assert [float(value.grad) for value in values] == pytest.approx([-slope, slope, slope, -slope])


def group_of(reader, best=None, worst=None):
    encoder = sft.Encoder(reader, PLAN.most)
    best, worst = best or {"span": 'Anna"', "draft": "Anna Okafor."}, worst or {"span": "No", "draft": "Not at all."}
    return Group(ids_of(reader, MILL, LAKE), *(encoder.written(ASKED.question, one) for one in (best, worst)))


def log_p(reader, group):
    """Of every token of the best and of the worst, as numbers."""
    with torch.no_grad():
        slots = slots_of(reader, MILL, LAKE)
        return [
            [float(value) for one in sft.log_probs(reader, slots, targets) for value in one]
            for targets in (group.best, group.worst)
        ]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("anchor", [0.0, 0.25])
@pytest.mark.parametrize("margin", [0.01, 3.0])
def test_the_hinge_is_of_means_over_all_tokens_of_a_set(reader, margin, anchor):
    group = group_of(reader)
    best, worst = log_p(reader, group)
    assert len(best) == 6 + 12 and len(worst) == 3 + 12  # cut at the most; the shorter ones have an end
    with torch.no_grad():
        found = rlgf.losses(reader, group, dataclasses.replace(PLAN, margin=margin, anchor=anchor))
    expected = max(0, margin - mean(best) + mean(worst)) - anchor * mean(best)
    assert found["loss"].tolist() == pytest.approx([expected], abs=1e-4)
    assert found["gain"].tolist() == pytest.approx([mean(best) - mean(worst)], abs=1e-4)
    assert found.keys() == {"loss", "gain"}


def before_of(reader):
    return MemoryModel(reader.model, reader.tokenizer, copy.deepcopy(reader.weights).requires_grad_(False))


@pytest.mark.parametrize("anchor", [0.0, 0.25])
def test_dpo_is_of_sums_and_compares_with_the_weights_of_the_start(anchor):
    reader = memory_model()
    group, before = group_of(reader), before_of(reader)
    with torch.no_grad():
        reader.weights.vector += 0.3
    (best, worst), (best_before, worst_before) = log_p(reader, group), log_p(before, group)
    plan = dataclasses.replace(PLAN, dpo=1, beta=0.3, anchor=anchor)
    with torch.no_grad():
        found = rlgf.losses(reader, group, plan, before)
    z = 0.3 * (sum(best) - sum(best_before) - sum(worst) + sum(worst_before))
    assert abs(z) > 0.01
    assert found["loss"].tolist() == pytest.approx([math.log(1 + math.exp(-z)) - anchor * mean(best)], abs=1e-3)
    assert found["gain"].tolist() == pytest.approx([mean(best) - mean(worst)], abs=1e-4)


def test_dpo_of_untouched_weights_is_the_logarithm_of_two():
    reader = memory_model()
    found = rlgf.losses(reader, group_of(reader), dataclasses.replace(PLAN, dpo=1), before_of(reader))
    assert found["loss"].item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("dpo", [0, 1])
def test_gradients_reach_all_weights_that_are_trained_and_no_others(dpo):
    reader = memory_model()
    before = before_of(reader)
    plan = dataclasses.replace(PLAN, dpo=dpo, margin=9.0)
    rlgf.losses(reader, group_of(reader), plan, before)["loss"].sum().backward()
    unused = f"layers.{len(reader.weights.layers) - 1}.q_proj"
    for name, weight in reader.weights.named_parameters():
        if name.startswith(unused):
            assert weight.grad is None
        else:
            assert weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-8, name
    assert all(weight.grad is None for one in (reader.model, before.weights) for weight in one.parameters())


@pytest.mark.parametrize("dpo", [0, 1])
def test_training_makes_good_clues_likelier_than_bad_ones(tmp_path, dpo):
    reader, lines = memory_model(), []
    model, before = copy.deepcopy(reader.model.state_dict()), before_of(reader)
    start = copy.deepcopy(before.weights.state_dict())
    plan = dataclasses.replace(PLAN, steps=8, batch=1, learning_rate=2e-3, dpo=dpo, margin=9.0, warmup=0.0)
    known = [Pair((MILL, LAKE), ASKED.question, {"draft": "Anna Okafor."}, {"draft": "Not at all."}, (1.0, 0.0))]
    loop.train(
        reader.weights, rlgf.groups(reader, known, plan), partial(rlgf.losses, reader, plan=plan, before=before), plan,
        tmp_path, {}, Accelerator(cpu=True), lines.append,
    )  # fmt: skip
    assert lines[-1]["gain"] > lines[0]["gain"] + 0.2 and lines[-1]["loss"] < lines[0]["loss"]
    assert all(torch.equal(weight, model[name]) for name, weight in reader.model.state_dict().items())
    assert all(torch.equal(weight, start[name]) for name, weight in before.weights.state_dict().items())


# --- groups ----------------------------------------------------------------------------------------------------------


def pair_of(number):
    return Pair((f"Document {number}.", "More."), f"{number}?", {"key": f"good {number}"}, {"key": "bad"}, (1.0, 0.0))


def test_each_pair_comes_once_an_epoch_in_an_order_of_its_own(reader):
    known = [pair_of(number) for number in range(6)]
    micro_batches, encoder = rlgf.groups(reader, known, PLAN), sft.Encoder(reader, PLAN.most)
    epochs = [[group for step in range(first, first + 3) for group in micro_batches(step)] for first in (0, 3, 6)]
    expected = {
        Group(ids_of(reader, *one.documents), *(encoder.written(one.question, x) for x in (one.best, one.worst)))
        for one in known
    }
    for epoch in epochs:
        assert len(epoch) == 6 and set(epoch) == expected
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    again = rlgf.groups(reader, known, PLAN)
    assert [again(step) for step in (4, 0)] == [epochs[1][2:4], epochs[0][:2]]
    assert all(len(group) == 1 and group.tokens == len("Document 1.More.") for group in epochs[0])


def test_too_few_pairs_are_refused(reader):
    with pytest.raises(SettingsError, match="1 pairs do not fill a step of 2"):
        rlgf.groups(reader, [pair_of(1)], PLAN)


# --- files -----------------------------------------------------------------------------------------------------------


def written(path, *units):
    rows = [[dataclasses.asdict(pair) for pair in unit] for unit in units]
    lines = [{"about": {}}, *({"key": str(i), "rows": unit} for i, unit in enumerate(rows))]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_come_back_from_a_file(tmp_path):
    known = [pair_of(1), pair_of(2), dataclasses.replace(pair_of(3), question="누가\n“x”?", rewards=(0.5, -1.25))]
    assert rlgf.load(written(tmp_path / "pairs.jsonl", known[:2], [], known[2:])) == known


@pytest.mark.parametrize("character", ["\u2028", "\x85"])
def test_a_text_with_another_kind_of_line_end_comes_back(tmp_path, character):
    known = [dataclasses.replace(pair_of(1), documents=(f"One line.{character}Another.",))]
    assert rlgf.load(written(tmp_path / "pairs.jsonl", known)) == known


@pytest.mark.parametrize(
    "held",
    [None, b"", b"{", b"\xff\xfe\n", b'{"about": {}}\n[]\n', b'{"about": {}}\n{"key": "0", "rows": [{"f1": 0.5}]}\n',
     b'{"documents": ["a"], "questions": []}\n{"documents": ["a"], "questions": []}\n',
     b'{"about": {}}\n{"key": "0", "rows": [{"documents": ["a"]',
     b'{"documents": ["a"], "questions": []}\n'],
    ids=["missing", "empty", "cut", "no text", "no units", "other rows", "lessons", "a unit that is cut", "a lesson"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, held):
    path = tmp_path / "pairs.jsonl"
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(SettingsError, match=r"pairs\.jsonl is no file of pairs"):
        rlgf.load(path)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, tiny_folder):
    """A function: runs a stage with numbers of its plan, a tiny model and an embedder of word counts."""
    settings = {"MEMORY_MODEL": str(tiny_folder), "DEVICE": "cpu", "DTYPE": "float32", "CACHE": str(tmp_path / "cache"),
                "PASSAGE_TOKENS": "40", "CONTEXT_TOKENS": "40", "ANSWER_TOKENS": "8"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    monkeypatch.setattr(Models, "embedder", lambda self: tiny.Embedder())

    def call(stage, data, out, *numbers, more=()):
        changes = [word for number in numbers for word in ("--set", number)]
        return main(["train", stage, "--data", str(tmp_path / data), "--out", str(tmp_path / out), *changes, *more])

    return call


SAMPLING = ("clue_weight=100", "samples=6", "most=12", "window=64", "ratio=4", "least_gain=1e-6")


@pytest.fixture
def three_lessons(tmp_path):
    """With four questions; the last has neither evidence nor an answer."""
    known = [LESSON, Lesson((tiny.TEXT, SON), (dataclasses.replace(ASKED, evidence=((0, 0, 9),)),) * 2),
             Lesson((MILL,), (Asked("Nothing?", (), ()),))]  # fmt: skip
    lessons.write(tmp_path / "lessons.jsonl", known)
    return known


def test_sampling_goes_on_after_a_kill(tmp_path, command, three_lessons, capsys):
    more = ("--reward", "likelihood")
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
    assert f"3 pairs: {tmp_path / 'pairs.jsonl'}" in capsys.readouterr().out
    path = tmp_path / "pairs.jsonl"
    whole = path.read_bytes()
    known = rlgf.load(path)
    assert [pair.documents for pair in known] == [LESSON.documents, (tiny.TEXT, SON), (tiny.TEXT, SON)]
    assert all(len(pair.rewards) == 6 and min(pair.rewards) < max(pair.rewards) < 0 for pair in known)
    assert all(pair.best.keys() == pair.worst.keys() == clues.KINDS.keys() for pair in known)
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    for cut in (b"".join(lines[:2]), b"".join(lines[:1]) + lines[1][:40], b"".join(lines[:3]) + lines[3][:-1]):
        path.write_bytes(cut)
        assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
        assert path.read_bytes() == whole
    held = path.stat().st_mtime_ns
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
    assert path.stat().st_mtime_ns == held


def test_another_way_of_sampling_is_refused(tmp_path, command, three_lessons, capsys):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--limit", "1")) == 0
    whole = (tmp_path / "pairs.jsonl").read_bytes()
    for numbers, more, told in (
        ((*SAMPLING, "temperature=2.0"), (), "plan differ"), (SAMPLING, ("--reward", "f1"), "reward differ"),
    ):  # fmt: skip
        capsys.readouterr()
        assert command("pairs", "lessons.jsonl", "pairs.jsonl", *numbers, more=more) == 2
        assert told in capsys.readouterr().err
    lessons.write(tmp_path / "lessons.jsonl", three_lessons[:1])
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING) == 2
    assert "lessons differ" in capsys.readouterr().err
    assert (tmp_path / "pairs.jsonl").read_bytes() == whole


@pytest.mark.parametrize("dpo", [0, 1])
def test_the_command_trains_on_pairs(tmp_path, command, three_lessons, dpo):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--reward", "likelihood")) == 0
    plan = ("steps=3", "batch=2", "most=12", "window=64", "ratio=4", "save_every=2", f"dpo={dpo}", "anchor=0")
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    out = tmp_path / "run"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(math.isfinite(line["gain"]) for line in lines)
    if dpo:
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert lines[1]["loss"] != lines[0]["loss"]
    plain = tiny.memory_model().model
    assert MemoryWeights.load(out / "weights.safetensors", plain).vector.abs().max() > 0
    # weights to go on from recall other clues
    start = ("--reward", "likelihood", "--start", str(out / "weights.safetensors"))
    assert command("pairs", "lessons.jsonl", "more.jsonl", *SAMPLING, more=start) == 0
    heads = [(tmp_path / name).read_text().splitlines()[0] for name in ("pairs.jsonl", "more.jsonl")]
    assert len({json.loads(head)["about"]["weights"] for head in heads}) == 2
    # and a run that goes on compares with the weights of its start
    assert command("rlgf", "pairs.jsonl", "again", *plan, more=start[2:]) == 0
    first = json.loads((tmp_path / "again" / "log.jsonl").read_text().splitlines()[0])
    assert not dpo or first["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("dpo", [0, 1])
def test_the_readers_adapter_is_trained_on(tmp_path, command, three_lessons, dpo):
    start = MemoryWeights(tiny.memory_model().model)
    start.adapter = Adapter(tiny.memory_model().model, 4)
    start.save(tmp_path / "start.safetensors")
    given = ("--start", str(tmp_path / "start.safetensors"))
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--reward", "likelihood", *given)) == 0
    plan = ("steps=2", "batch=2", "most=12", "window=64", "ratio=4", f"dpo={dpo}", "anchor=0", "learning_rate=1e-2")
    assert command("rlgf", "pairs.jsonl", "run", *plan, more=given) == 0
    trained = MemoryWeights.load(tmp_path / "run" / "weights.safetensors", tiny.memory_model().model)
    assert all(low.up.abs().max() > 0 for own in trained.adapter.layers for low in own.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    if dpo:  # what it is compared with has not moved
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) != lines[1]["loss"]


def test_pairs_are_made_in_one_process(tmp_path, command, three_lessons, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING) == 2
    assert "pairs runs in one process" in capsys.readouterr().err
    assert main(["train", "all", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


def test_a_run_of_dpo_that_was_killed_goes_on_as_if_it_never_was(tmp_path, command, three_lessons):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--reward", "likelihood")) == 0
    plan = ("steps=3", "batch=1", "most=12", "window=64", "ratio=4", "save_every=2", "dpo=1", "learning_rate=1e-3")
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    log, whole = tmp_path / "run" / "log.jsonl", (tmp_path / "run" / "weights.safetensors").read_bytes()
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    (tmp_path / "run" / "weights.safetensors").unlink()
    last = tmp_path / "run" / "checkpoint-000003"
    last.rename(tmp_path / "gone")  # as if killed after the second step
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    assert [json.loads(line)["loss"] for line in log.read_text().splitlines()] == pytest.approx(losses, abs=1e-6)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == whole


def test_wrong_use_is_told_in_one_line(tmp_path, command, three_lessons, capsys):
    for stage, data, numbers, told in (
        ("pairs", "nowhere.jsonl", (), "nowhere.jsonl cannot be read"),
        ("pairs", "lessons.jsonl", ("sample=3",), "no 'sample'"),
        ("rlgf", "lessons.jsonl", (), "lessons.jsonl is no file of pairs"),
        ("rlgf", "nowhere.jsonl", (), "nowhere.jsonl is no file of pairs"),
    ):
        capsys.readouterr()
        assert command(stage, data, "out", *numbers) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
