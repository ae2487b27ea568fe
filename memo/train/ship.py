"""Shipping: what a chain of runs has learnt, as a folder that a Space takes in plain git.

In: the folder of the last run. Out: a folder with

    memory-0000N-of-0000N.safetensors   the memory weights in bfloat16, less than 9 MB a file
    training.json                       of each stage: its plan, its data, its losses, its tokens and hours
    README.md                           the model card

`MEMO_MEMORY_WEIGHTS` takes the folder as it takes a single file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from memo.adapter import rank_of
from memo.errors import SettingsError
from memo.evaluate.hub import is_hub
from memo.evaluate.record import commit, processor
from memo.train.loop import START

SHARD = "8MB"
POINTS = 60  # of a curve
ADAPTER = """With them comes a LoRA of rank {rank} on all linear maps of the model's layers, active only while the model
reads and writes behind a memory; documents and passages are read by the frozen model."""


def stages(folder: Path) -> list[dict[str, Any]]:
    """The runs that led to this one, the first one first.

    Raises:
        SettingsError: one of them is missing, or not finished.
    """
    try:
        run = json.loads((folder / "run.json").read_text())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        start, steps = run["start"], run["plan"]["steps"]
    except (OSError, ValueError, KeyError) as error:
        told = f"{folder} is not the folder of a run."
        raise SettingsError(told, "Name the --out of a stage of training.") from error
    if len(log) < steps or not (folder / "weights.safetensors").exists():
        raise SettingsError(f"The run in {folder} is not finished.", "Start the same command again: it goes on.")
    # no folder of this machine
    names = {"start": Path(start).parent.name, "data": [one if is_hub(one) else Path(one).name for one in run["data"]]}
    hours = round(log[-1]["seconds"] / 3600, 2)
    about = {"stage": folder.name, **run, **names, "tokens": log[-1]["tokens"], "hours": hours}
    return [*(stages(Path(start).parent) if start else []), {**about, "log": curve(log)}]


def curve(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over stretches of steps, `POINTS` of them at most; `step` and `tokens` are those at a stretch's end."""
    size, found = -(-len(log) // POINTS), []
    for first in range(0, len(log), size):
        part = log[first : first + size]
        point = {"step": part[-1]["step"], "tokens": part[-1]["tokens"]}
        for name in [name for name in part[-1] if name not in START]:
            values = [line[name] for line in part if line.get(name) is not None]
            point[name] = round(sum(values) / len(values), 6) if values else None
        found.append(point)
    return found


def card(
    name: str, chain: Sequence[dict[str, Any]], data: str, results: str, rank: int = 0, hardware: str = ""
) -> str:
    """The model card. data: a paragraph about the texts and their licences. results: tables, or nothing yet.

    rank: of the reader's adapter, if there is one. hardware: what it was trained on (default: this machine).
    """
    adapter = f"\n\n{ADAPTER.format(rank=rank)}" if rank else ""
    rows = [
        f"| {one['stage']} | {one['plan']['steps']:,} | {one['plan']['batch']} | {one['plan']['learning_rate']:g} |"
        f" {one['tokens']:,} | {one['hours']:g} |"
        for one in chain
    ]
    plans = "\n".join(f"    {one['stage']}: {json.dumps(one['plan'])}" for one in chain)
    return f"""---
base_model: {name}
library_name: memo
tags: [memory, memorag]
---

# Memory weights for {name}

Q, K and V projections of the memory tokens (one set a layer), and the vector that is added to their embeddings: with
them a frozen {name} reads a document into a small KV cache, as in MemoRAG (arXiv 2409.05591v3). They do nothing
without it, and fit no other model.{adapter}

    MEMO_MEMORY_MODEL={name} MEMO_MEMORY_WEIGHTS=<this folder> python app.py

## Training

| stage | steps | batch | learning rate | tokens read | hours |
|---|---|---|---|---|---|
{chr(10).join(rows)}

On {hardware or processor()}, in bfloat16 with float32 weights; commit {commit()}. All numbers of the plans:

{plans}

Losses by step are in `training.json`.

## Data

{data}

## Measured

{results}

## What they are not

What a memory recalls is a clue where to look, not an answer: names and numbers may be wrong. They know the languages
and the kinds of text that they were trained on.
"""


def licences(folders: Sequence[Path]) -> str:
    """A line for each set of texts, from its META.json (`licence`, `source`).

    Raises:
        SettingsError: a folder has none.
    """
    found = []
    for folder in folders:
        try:
            about = json.loads((folder / "META.json").read_text(encoding="utf-8"))
            found.append(f"* {folder.name}: {about['licence']}. Source: {about['source']}")
        except (OSError, ValueError, KeyError) as error:
            told = f"{folder} has no META.json with licence and source."
            raise SettingsError(told, "Weights are shipped with the licences of what they were trained on.") from error
    return "\n".join(found)


def ship(
    folder: Path, out: Path, name: str, data: str, results: str = "Not measured yet.", hardware: str = ""
) -> list[dict[str, Any]]:
    """Writes the folder; one that is there is replaced once the new one is whole. -> the stages

    data, results, hardware: see `card`.

    Raises:
        SettingsError: see `stages`.
    """
    chain = stages(folder)
    weights = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(folder / "weights.safetensors").items()}
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_torch_state_dict(weights, temporary, filename_pattern="memory{suffix}.safetensors", max_shard_size=SHARD)
    told = json.dumps(chain, indent=1, ensure_ascii=False) + "\n"
    (temporary / "training.json").write_text(told, encoding="utf-8")
    (temporary / "README.md").write_text(card(name, chain, data, results, rank_of(weights), hardware), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    temporary.replace(out)
    return chain
