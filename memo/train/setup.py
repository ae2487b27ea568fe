"""What every stage trains: memory weights in float32 beside a frozen model, on whatever accelerate runs on.

In: settings, and weights to start from. Out: a `MemoryModel` whose memory weights want gradients, and the accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from memo.adapter import Adapter
from memo.attention import MemoryWeights
from memo.memory import MemoryModel
from memo.models import choose_device, choose_dtype, load_language_model
from memo.settings import Settings


def trainable(weights: MemoryWeights, adapter: bool = False) -> MemoryWeights:
    """The weights in float32, wanting gradients; all but the last layer's queries, which nothing depends on.

    adapter: whether that of the reader wants them too, if there is one.
    """
    weights.float().requires_grad_(True)
    weights.layers[-1]["q_proj"].requires_grad_(False)
    if weights.adapter is not None:
        weights.adapter.requires_grad_(adapter)
    return weights


def accelerator(device: str, dtype: torch.dtype) -> Accelerator:
    """What training runs on, in the precision of the frozen model."""
    return Accelerator(mixed_precision="bf16" if dtype == torch.bfloat16 else "no", cpu=device == "cpu")


def reader(
    settings: Settings, start: Path | None = None, rank: int = 0, recalls: bool = False
) -> tuple[MemoryModel, Accelerator]:
    """The memory model to train. start: memory weights to go on from, else copies of the model's own.

    recalls: whether the stage teaches to recall, and so trains the reader's adapter. rank: of an adapter that is added
    where there is none (0: none is).

    Raises:
        ModelError: the model or the weights cannot be loaded.
    """
    device = choose_device(settings.device)
    found = accelerator(device, choose_dtype(settings.dtype, device))
    model, tokenizer = load_language_model(settings.memory_model, replace(settings, device=str(found.device)))
    weights = MemoryWeights.load(start, model) if start else MemoryWeights(model)
    if rank and weights.adapter is None:
        weights.adapter = Adapter(model, rank)
    return MemoryModel(model, tokenizer, trainable(weights, recalls)), found
