"""The training loop: a step's gradient however it is grouped, going on after a kill, gradients that are not finite."""

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from memo.errors import SettingsError, TrainingFailed
from memo.train import loop
from memo.train.recipe import Plan
from memo.train.setup import trainable

PLAN = Plan(steps=6, batch=4, micro=2, learning_rate=0.01, warmup=0.3, save_every=2, weight_decay=0.1)
ABOUT = {"model": "line", "data": ["a", "b"]}


class Line(nn.Module):
    """y = x w + b, with a scale that is not trained."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(3, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.scale = nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, x):
        return self.scale * self.linear(x)[:, 0]


class Points(list):
    """Pairs of x (3,) and y."""

    tokens = property(lambda self: 3 * len(self))


def squares(line):
    def losses(points):
        found = {"loss": (line(torch.stack([x for x, _ in points])) - torch.stack([y for _, y in points])) ** 2}
        if points[0][1] > 0:
            found["above"] = found["loss"].detach() + 1
        return found

    return losses


def points_of(step, count=4):
    generator = torch.Generator().manual_seed(step)
    return [(torch.randn(3, generator=generator), torch.randn((), generator=generator)) for _ in range(count)]


def in_groups(points, *sizes):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [Points(points[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def trains(accelerator):
    """A function: trains a line in a folder; the weights and the log, and what `told` heard."""

    def run(folder, line=None, plan=PLAN, about=ABOUT, losses=None, until=None):
        line, heard = line or Line(), []

        def told(said):
            heard.append((said, copy.deepcopy(line.state_dict())))

        chosen = (losses or squares)(line)
        loop.train(
            line, lambda step: in_groups(points_of(step), 2, 2), chosen, plan, folder, about, accelerator, told, until
        )
        return line.state_dict(), heard

    return run


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def log(folder):
    """Its lines, without the time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds") >= 0 for line in lines)
    return lines


def held(folder):
    """All that is in a folder, and when it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# --- learning rate and gradient --------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls():
    plan = Plan(steps=12, batch=1, micro=1, learning_rate=0.8, warmup=0.34, final=0.1)  # 4 steps of warm-up
    rates = [loop.learning_rate(plan, step) for step in range(12)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[8] == pytest.approx(0.8 * 0.55)  # half way down: cos(pi / 2) = 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[11] == pytest.approx(0.8 * (0.1 + 0.9 * 0.5 * (1 - 0.9238795)))  # cos(7 pi / 8)
    assert loop.learning_rate(plan, 12) == pytest.approx(0.08)


def test_there_is_a_step_of_warm_up_at_least():
    plan = Plan(steps=2, batch=1, micro=1, learning_rate=0.8, warmup=0.0)
    assert loop.learning_rate(plan, 0) == pytest.approx(0.8)


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (3, 1), (1, 3), (2, 2)])
def test_the_gradient_is_that_of_the_mean_however_examples_are_grouped(accelerator, sizes):
    line, points = Line(), points_of(1)
    x, y = torch.stack([x for x, _ in points]), torch.stack([y for _, y in points])
    expected = torch.autograd.grad(((line(x) - y) ** 2).mean(), list(line.linear.parameters()))
    means = loop.gradients(accelerator, list(line.linear.parameters()), in_groups(points, *sizes), squares(line))
    for parameter, gradient in zip(line.linear.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert means["loss"] == pytest.approx(((line(x) - y) ** 2).mean().item(), rel=1e-5)


def test_the_mean_of_a_loss_is_over_the_examples_that_have_it(accelerator):
    line, points = Line(), points_of(3, 6)
    groups = [Points([(x, y.abs() * sign) for x, y in part]) for part, sign in ((points[:4], 1), (points[4:], -1))]
    means = loop.gradients(accelerator, list(line.linear.parameters()), groups, squares(line))
    each = [loss.item() for group in groups for loss in squares(line)(group)["loss"]]
    assert means["above"] == pytest.approx(sum(each[:4]) / 4 + 1, rel=1e-5)
    assert means["loss"] == pytest.approx(sum(each) / 6, rel=1e-5)


def test_a_step_is_that_of_adamw_with_a_clipped_gradient(tmp_path, trains):
    plan = Plan(steps=3, batch=4, micro=2, learning_rate=0.05, clip=0.5, betas=(0.8, 0.9), weight_decay=0.2)
    found, heard = trains(tmp_path, plan=plan)
    line = Line()
    optimizer = torch.optim.AdamW(line.linear.parameters(), betas=(0.8, 0.9), weight_decay=0.2)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = loop.learning_rate(plan, step)
        optimizer.zero_grad()
        squares(line)(points_of(step))["loss"].mean().backward()
        norm = nn.utils.clip_grad_norm_(line.linear.parameters(), 0.5)
        optimizer.step()
        assert heard[step][0]["norm"] == pytest.approx(float(norm), rel=1e-4)
    assert all(torch.allclose(tensor, found[name], atol=1e-6) for name, tensor in line.state_dict().items())


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_weights_and_a_line_a_step(tmp_path, trains):
    weights, heard = trains(tmp_path / "new" / "out")
    lines = log(tmp_path / "new" / "out")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [12, 24, 36, 48, 60, 72]
    assert [line["learning_rate"] for line in lines] == [loop.learning_rate(PLAN, step) for step in range(6)]
    assert [line["loss"] for line in lines] == [line["loss"] for line, _ in heard]
    assert equal(load_file(tmp_path / "new" / "out" / "weights.safetensors"), weights)
    assert not equal(weights, Line().state_dict())
    assert torch.equal(weights["scale"], Line().state_dict()["scale"])


def test_only_the_last_checkpoints_stay(tmp_path, trains):
    trains(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-000004", "checkpoint-000006", "log.jsonl", "run.json", "weights.safetensors"]
    assert loop.KEPT == 2


@pytest.mark.parametrize("until", [1, 2, 3, 5], ids=["no checkpoint yet", "at one", "after one", "after two"])
def test_a_run_that_was_killed_goes_on_as_if_it_never_was(tmp_path, trains, until):
    whole, _ = trains(tmp_path / "whole")
    trains(tmp_path / "cut", until=until)
    assert len(log(tmp_path / "cut")) == until
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    # weights that differ at the start show that those of the checkpoint are read
    first = Line(seed=0 if until < PLAN.save_every else 1)
    resumed, heard = trains(tmp_path / "cut", line=first)
    assert heard[0][0]["step"] == until - until % PLAN.save_every + 1
    assert equal(resumed, whole)
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    for path in ("weights.safetensors", "checkpoint-000006/optimizer.safetensors"):
        assert equal(load_file(tmp_path / "cut" / path), load_file(tmp_path / "whole" / path))


def test_a_kill_while_something_is_written_harms_nothing(tmp_path, trains, monkeypatch):
    whole, _ = trains(tmp_path / "whole")
    written = []

    def killed(tensors, path):
        written.append(path)
        if len(written) == 4:  # the second checkpoint's optimizer
            raise KeyboardInterrupt
        save(tensors, path)

    save = loop.save_file
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_file", killed)
        trains(tmp_path / "cut")
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    resumed, heard = trains(tmp_path / "cut")
    assert heard[0][0]["step"] == 3
    assert equal(resumed, whole)
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    assert held(tmp_path / "cut").keys() == held(tmp_path / "whole").keys()


def test_a_finished_run_has_nothing_left_to_do(tmp_path, trains):
    whole, _ = trains(tmp_path)
    again, heard = trains(tmp_path, line=Line(seed=1))
    assert heard == [] and equal(again, whole)
    assert equal(load_file(tmp_path / "weights.safetensors"), whole) and len(log(tmp_path)) == 6


@pytest.mark.parametrize(
    ("plan", "about", "told"),
    [
        (Plan(**{**vars(PLAN), "learning_rate": 0.02}), ABOUT, "plan"),
        (PLAN, ABOUT | {"data": ["a"]}, "data"),
        (PLAN, ABOUT | {"start": "x"}, "start"),
        (Plan(**{**vars(PLAN), "seed": 1}), {"model": "other"}, "data, model, plan"),
    ],
)
def test_another_run_is_refused_and_the_folder_left_as_it_is(tmp_path, trains, plan, about, told):
    trains(tmp_path, until=3)
    before, line = held(tmp_path), Line(seed=1)
    with pytest.raises(SettingsError, match=rf"another run \({told} differ\)"):
        trains(tmp_path, line=line, plan=plan, about=about)
    assert held(tmp_path) == before
    assert equal(line.state_dict(), Line(seed=1).state_dict())


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path, trains, file, damage):
    whole, _ = trains(tmp_path / "whole")
    trains(tmp_path / "cut", until=5)
    path = tmp_path / "cut" / "checkpoint-000004" / file
    path.write_bytes(path.read_bytes()[:20]) if damage == "cut" else path.unlink()
    before = held(tmp_path / "cut")
    with pytest.raises(SettingsError, match=r"checkpoint-000004 .*cannot be read.*Delete it"):
        trains(tmp_path / "cut")
    assert held(tmp_path / "cut") == before
    shutil.rmtree(path.parent)
    resumed, heard = trains(tmp_path / "cut", line=Line(seed=1))
    assert heard[0][0]["step"] == 3 and equal(resumed, whole)


# --- gradients that are not finite -----------------------------------------------------------------------------------


def bad_at(*steps):
    """Losses of a line that are no number in the last group of these steps."""

    bad = [float(points_of(step)[-1][1]) for step in steps]

    def made(line):
        def losses(points):
            found = squares(line)(points)
            return {**found, "loss": found["loss"] * torch.nan} if float(points[-1][1]) in bad else found

        return losses

    return made


@pytest.mark.parametrize("step", [0, 2])
def test_a_step_without_a_finite_gradient_is_left_out(tmp_path, trains, step):
    plan = Plan(**{**vars(PLAN), "save_every": 1})
    weights, heard = trains(tmp_path / "whole", plan=plan, losses=bad_at(step))
    states = [Line().state_dict(), *[state for _, state in heard]]
    assert [equal(a, b) for a, b in itertools.pairwise(states)] == [i == step for i in range(6)]
    assert [line["skipped"] for line, _ in heard] == [int(i >= step) for i in range(6)]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    # also when a kill follows it at once
    trains(tmp_path / "cut", plan=plan, losses=bad_at(step), until=step + 1)
    resumed, _ = trains(tmp_path / "cut", plan=plan, losses=bad_at(step))
    assert equal(resumed, weights)


def test_an_infinite_gradient_of_a_finite_loss_is_left_out_too(tmp_path, trains):
    def losses(line):
        # the root of 0: 0, with an infinite slope
        return lambda points: {"loss": (line.linear.weight.sum() * torch.zeros(len(points))).sqrt()}

    _, heard = trains(tmp_path, losses=losses, until=2)
    assert [line["loss"] for line, _ in heard] == [0, 0]
    assert [line["skipped"] for line, _ in heard] == [1, 2]
    assert equal(heard[-1][1], Line().state_dict())


def test_training_gives_up_when_no_gradient_is_finite_any_more(tmp_path, trains):
    plan = Plan(**{**vars(PLAN), "steps": 10})
    line, bad = Line(), range(1, 1 + loop.BAD)
    with pytest.raises(TrainingFailed, match=rf"{loop.BAD} steps in a row \(the last is {bad[-1] + 1}\)"):
        trains(tmp_path / "failed", line=line, plan=plan, losses=bad_at(*bad))
    assert len(log(tmp_path / "failed")) == bad[-1] + 1
    assert not (tmp_path / "failed" / "weights.safetensors").exists()
    assert equal(line.state_dict(), trains(tmp_path / "one", plan=plan, until=1)[0])
    _, heard = trains(tmp_path / "fine", plan=plan, losses=bad_at(*bad[:-1], *range(bad[-1] + 1, 10)))
    assert heard[-1][0]["skipped"] == 10 - 2  # never so many in a row


# --- what trains and what does not, in one process and in two --------------------------------------------------------

SCRIPT = '''
"""Trains the tiny memory model for some steps. Arguments: where the tests are, the output folder."""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import numpy as np
import tiny
from accelerate import Accelerator

from memo.train import loop, pretrain
from memo.train.recipe import Pretraining
from memo.train.setup import trainable
from memo.train.texts import TokenFile

accelerator = Accelerator(cpu=True)
reader = tiny.memory_model()
reader.weights = trainable(tiny.perturbed(reader.model))
plan = Pretraining(steps=4, batch=4, micro=2, learning_rate=1e-3, window=16, windows=3, ratios=(2, 4), spans=1,
                   span=(6, 9), given=(2, 3), parted=0.5, save_every=2)
ids = np.array(reader.encode(4 * tiny.TEXT)[0], dtype="<u4")
tokens = TokenFile(ids, (0, len(ids) // 2, len(ids)), (len(ids),))
if accelerator.is_main_process:
    print("processes", accelerator.num_processes, flush=True)
loop.train(reader.weights, pretrain.groups(tokens, plan), partial(pretrain.losses, reader, plan=plan), plan,
           Path(sys.argv[2]), {}, accelerator)
'''  # fmt: skip


def test_two_processes_train_the_same_weights_as_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # not accelerate launch, which without MPI starts a single process on a CPU, whatever --num_processes says
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tests = Path(tiny.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    for name, before in (("one", []), ("two", launch)):
        command = [sys.executable, *before, str(tmp_path / "script.py"), str(tests), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["processes", "2" if before else "1"]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    for alone, shared in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert alone.keys() == shared.keys()
        assert list(shared.values()) == pytest.approx(list(alone.values()), rel=1e-4)


def test_only_the_memory_weights_that_want_gradients_are_trained(tmp_path, accelerator):
    reader = tiny.memory_model()
    reader.weights = trainable(tiny.perturbed(reader.model))
    model, before = copy.deepcopy(reader.model.state_dict()), copy.deepcopy(reader.weights.state_dict())
    ids = torch.tensor(reader.encode(tiny.TEXT)[0])

    def losses(points):
        found = reader.read_window(ids[None, :40].expand(len(points), -1), None, 4, None)
        slots = reader.slots(found.keys, found.values)
        after = reader.read_window(ids[None, 40:80].expand(len(points), -1), slots, 4, found.next_logits)
        return {"loss": after.surprise.mean(dim=1)}

    plan = Plan(**{**vars(PLAN), "steps": 2})
    loop.train(
        reader.weights, lambda step: in_groups(points_of(step), 2, 2), losses, plan, tmp_path, ABOUT, accelerator
    )
    assert equal(reader.model.state_dict(), model)
    after, last = reader.weights.state_dict(), len(reader.weights.layers) - 1
    still = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert still == {name for name in before if name.startswith(f"layers.{last}.q_proj")}
    assert still and equal(load_file(tmp_path / "weights.safetensors"), after)
