"""The loop of every stage: batches in, trained memory weights out, on one CPU or GPU or on many (accelerate launch).

In: the memory weights, `micro_batches(step)` (a step's examples in the groups that are read together; the same list in
every process) and `losses(group)` (named losses, one number per example; "loss" is minimized). Out: in a folder

    weights.safetensors      the trained weights, when all steps are done
    run.json                 what determines the result: the plan, the data, the model
    log.jsonl                a line a step: losses, learning rate, gradient norm, tokens
    checkpoint-STEP/         weights, optimizer and state: a killed run goes on from the last one, as if never killed

The gradient is that of the mean over all examples of a step, however they are grouped and spread over processes:

    g = sum_groups grad(sum_examples loss / examples of the step)
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memo.errors import SettingsError, TrainingFailed
from memo.models import write_atomic
from memo.train.recipe import Plan

KEPT = 2  # checkpoints on disk
START = {"step": 0, "tokens": 0, "skipped": 0, "bad": 0, "seconds": 0.0}
BAD = 5  # steps without a finite gradient in a row, before it is given up


class Group(Protocol):
    """Examples that are read together."""

    def __len__(self) -> int: ...
    @property
    def tokens(self) -> int: ...


def learning_rate(plan: Plan, step: int) -> float:
    """Rises linearly, then falls as a cosine to `final` of its height. step: from 0."""
    warm = max(1, round(plan.warmup * plan.steps))
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, plan.steps - warm)
    return plan.learning_rate * (plan.final + (1 - plan.final) * 0.5 * (1 + math.cos(math.pi * share)))


def drawn(count: int, plan: Plan, step: int) -> list[int]:
    """Which of `count` examples a step reads: in random order, each once an epoch (but for what fills no step)."""
    epoch, at = divmod(step, count // plan.batch)
    order = list(range(count))
    random.Random(f"{plan.seed} epoch {epoch}").shuffle(order)
    return order[at * plan.batch : (at + 1) * plan.batch]


def gradients(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], groups: Sequence[Group],
    losses: Callable[[Any], dict[str, Tensor]],
) -> dict[str, float]:  # fmt: skip
    """Adds up the gradient of the mean loss over all examples of `groups`, over all processes. -> the mean losses

    An example that lacks one of the named losses counts for the others only.
    """
    examples = sum(len(group) for group in groups)
    sums: dict[str, Tensor] = {}
    for group in groups[accelerator.process_index :: accelerator.num_processes]:
        with accelerator.autocast():
            found = losses(group)
        accelerator.backward(found["loss"].sum() / examples)
        for name, values in found.items():
            held = sums.setdefault(name, torch.zeros(2))
            sums[name] = held + torch.tensor([float(values.detach().float().sum()), len(values)])
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")
        sums = _gathered(accelerator, sums)
    return {name: (total / count).item() for name, (total, count) in sums.items()}


def _gathered(accelerator: Accelerator, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of all processes; one of them may know names that another does not."""
    from accelerate.utils import gather_object

    total: dict[str, Tensor] = {}
    for one in gather_object([{name: value.tolist() for name, value in sums.items()}]):
        for name, value in one.items():
            total[name] = total.get(name, torch.zeros(2)) + torch.tensor(value)
    return total


def train(
    weights: nn.Module, micro_batches: Callable[[int], Sequence[Group]], losses: Callable[[Any], dict[str, Tensor]],
    plan: Plan, folder: Path, about: dict[str, Any], accelerator: Accelerator,
    told: Callable[[dict[str, Any]], None] = lambda line: None, until: int | None = None,
) -> None:  # fmt: skip
    """Runs the steps that are left to do.

    weights: float32; only its parameters that require a gradient are trained. about: what else determines the result
    (data, model), as JSON values. told: hears each line of the log. until: stop after this step, as a kill would.

    Raises:
        SettingsError: the folder holds another run. TrainingFailed: gradients that are not finite, again and again.
    """
    names, parameters = zip(*[(n, p) for n, p in weights.named_parameters() if p.requires_grad], strict=True)
    optimizer = torch.optim.AdamW(parameters, betas=plan.betas, weight_decay=plan.weight_decay)
    main, began = accelerator.is_main_process, time.monotonic()
    with accelerator.main_process_first():
        _claim(folder, json.loads(json.dumps({"plan": asdict(plan), **about})))
    state = _resume(folder, weights, names, optimizer)
    if main:
        _cut_log(folder / "log.jsonl", state["step"])
    for step in range(state["step"], plan.steps if until is None else until):
        groups = micro_batches(step)
        means = gradients(accelerator, parameters, groups, losses)
        norm = float(nn.utils.clip_grad_norm_(parameters, plan.clip))
        rate = learning_rate(plan, step)
        finite = math.isfinite(norm) and math.isfinite(means["loss"])
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = {
            "step": step + 1, "tokens": state["tokens"] + sum(group.tokens for group in groups),
            "skipped": state["skipped"] + (not finite), "bad": 0 if finite else state["bad"] + 1,
            "seconds": state["seconds"] + time.monotonic() - began,
        }  # fmt: skip
        began = time.monotonic()
        line = {**state, **means, "learning_rate": rate, "norm": norm}
        if main:
            with (folder / "log.jsonl").open("a") as file:
                known = {name: value if math.isfinite(value) else None for name, value in line.items()}
                file.write(json.dumps(known) + "\n")
            if state["step"] % plan.save_every == 0 or state["step"] == plan.steps:
                _save(folder, state, weights, names, optimizer)
            told(line)
        if state["bad"] == BAD:
            told_so = f"{BAD} steps in a row (the last is {step + 1}) had a gradient that is not finite."
            raise TrainingFailed(told_so, "Start anew with a lower learning rate, in another folder.")
    accelerator.wait_for_everyone()
    if main and state["step"] == plan.steps:
        save_file(_tensors(weights), folder / ".weights.tmp")
        (folder / ".weights.tmp").replace(folder / "weights.safetensors")
    accelerator.wait_for_everyone()  # the next stage begins with them


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _tensors(weights: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.state_dict().items()}


def _claim(folder: Path, run: dict[str, Any]) -> None:
    """Says what this folder is a run of, or checks that it is this one.

    Raises:
        SettingsError: it is another.
    """
    path = folder / "run.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(run, indent=1))
    try:
        known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read.", "Choose another folder, or delete it to start anew.") from error
    if known != run:
        other = [key for key in sorted(known.keys() | run.keys()) if known.get(key) != run.get(key)]
        told = f"{folder} holds another run ({', '.join(other)} differ)."
        raise SettingsError(told, "Choose another folder, or delete it to start anew.")


def _save(
    folder: Path, state: dict[str, Any], weights: nn.Module, names: Sequence[str], optimizer: torch.optim.Optimizer
) -> None:
    """A checkpoint, whole or not at all; the oldest ones go."""
    temporary, path = folder / ".checkpoint.tmp", folder / f"checkpoint-{state['step']:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_tensors(weights), temporary / "weights.safetensors")
    moments = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(moments, temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state))
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)
    for old in sorted(folder.glob("checkpoint-*"))[:-KEPT]:
        shutil.rmtree(old)


def _resume(
    folder: Path, weights: nn.Module, names: Sequence[str], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Loads the last checkpoint, if there is one. -> its state

    Raises:
        SettingsError: it is damaged.
    """
    found, state = sorted(folder.glob("checkpoint-*")), dict(START)
    if not found:
        return state
    try:
        state = {name: json.loads((found[-1] / "state.json").read_text())[name] for name in START}
        if state["step"] != int(found[-1].name.rpartition("-")[2]) or not math.isfinite(sum(state.values())):
            raise ValueError("its state is that of another step")
        of: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(found[-1] / "optimizer.safetensors").items():
            name, _, moment = key.rpartition(".")
            of.setdefault(names.index(name), {})[moment] = value
        weights.load_state_dict(load_file(found[-1] / "weights.safetensors"))
        optimizer.load_state_dict({"state": of, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:  # whatever a damaged file makes of its reader
        told = f"The checkpoint {found[-1].name} in {folder} cannot be read."
        raise SettingsError(told, "Delete it: training goes on from the one before.") from error
    return state


def _cut_log(path: Path, step: int) -> None:
    """Takes away what was logged after the checkpoint."""
    if path.exists():
        kept = path.read_text(errors="replace").splitlines()[:step]
        write_atomic(path, "".join(line + "\n" for line in kept))
