"""What a Memory Decoder is compared with: the language model's own weights trained on the same text.

In: a language model and a datastore's blocks. Out: copies of the model that have learnt them; the model itself stays as
it was. All are trained by the loop, the draws and the loss that train a decoder (`memo.train.distill`), with beta 0:

    L = -sum_t log p(x_t | x_<t)

    dapt   all weights
    lora   W + (scale) B A of rank r in every projection for queries, keys and values and of the MLPs, A and B alone;
           r is the rank at which they are as many parameters as the decoder trains, as nearly as may be

Source: Memory Decoder (arXiv 2508.09874v2), section 4 (baselines); LoRA (arXiv 2106.09685), equation 3.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memo.datastore import Datastore
from memo.errors import ModelError
from memo.targets import Targets
from memo.train import distill
from memo.train.recipe import Distilling

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

# projections that LoRA is added to, by their names in Llama, Qwen and Mistral, and in GPT-2
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Rivals:
    """Every number of what a Memory Decoder is compared with."""

    dapt_rates: tuple[float, ...] = (2e-4, 5e-5)  # learning rates to choose from; those of large models are lower
    lora_rates: tuple[float, ...] = (1e-3, 3e-4)
    trial: float = 0.1  # share of the steps that each learning rate is tried with
    lora_scale: float = 1.0  # of B A
    passage: int = 256  # tokens of a passage in the prompt
    query: int = 32  # tokens before the place that a passage is looked up for
    refresh: int = 64  # tokens after which another passage is looked up
    router_steps: int = 100  # of one block each
    router_rate: float = 1e-3


# --- copies of the model, and what is trained of them ---------------------------------------------------------------


def dapt(llm: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """A float32 copy of the model, and all its weights, each once."""
    model = copy.deepcopy(llm).float().requires_grad_(True)
    head, parts = model.get_output_embeddings(), nn.ModuleDict({"base": model.base_model})
    if head.weight is not model.get_input_embeddings().weight:
        parts["head"] = head
    return model, parts


def projections(llm: PreTrainedModel) -> list[str]:
    """Which of `PROJECTIONS` the model has.

    Raises:
        ModelError: none.
    """
    names = [name for name, _ in llm.named_modules()]
    found = [one for one in PROJECTIONS if any(name.endswith(f".{one}") for name in names)]
    if not found:
        told = f"A model of the kind {llm.config.model_type!r} has no projections that LoRA is known for."
        raise ModelError(told, "Choose one built like Llama, Qwen or GPT-2.")
    return found


def rank_for(llm: PreTrainedModel, size: int) -> int:
    """The rank at which LoRA has about `size` parameters: each rank adds a row and a column to every projection."""
    ends = tuple(f".{one}" for one in projections(llm))
    each = sum(sum(module.weight.shape) for name, module in llm.named_modules() if name.endswith(ends))
    return max(1, round(size / each))


def lora(llm: PreTrainedModel, size: int, scale: float, seed: int) -> tuple[PreTrainedModel, nn.Module]:
    """A float32 copy of the model with LoRA in it, and A and B of every projection: about `size` parameters."""
    from peft import LoraConfig, inject_adapter_in_model

    rank = rank_for(llm, size)
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=projections(llm),
                        fan_in_fan_out=llm.config.model_type == "gpt2")  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of A; B starts as zero
        model: Any = inject_adapter_in_model(config, copy.deepcopy(llm).float())
    added = {name: one for name, one in model.named_parameters() if ".lora_" in name}
    for name, one in model.named_parameters():
        one.requires_grad_(name in added)
    return model, nn.ParameterDict({name.replace(".", "/"): one for name, one in added.items()})


# --- training --------------------------------------------------------------------------------------------------------


def size_of(weights: nn.Module) -> int:
    """How many parameters there are in it."""
    return sum(one.numel() for one in weights.parameters())


def log_of(folder: Path) -> dict[str, Any]:
    """{"tokens", "seconds"} of a run that is done: tokens that were predicted, seconds of all its starts together."""
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return {"tokens": last["tokens"], "seconds": round(last["seconds"], 1)}


def train(
    model: PreTrainedModel, weights: nn.Module, store: Datastore, plan: Distilling, folder: Path, about: dict[str, Any],
    accelerator: Accelerator, targets: Targets | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains `weights`, which are part of `model`, on the store's blocks, or goes on where it was. -> what it took

    targets: p_kNN, where the plan has a kl_weight. The same plan draws the same blocks, whatever is trained.
    """
    distill.train(model, weights, store, targets, plan, folder, about, accelerator)
    took = {"parameters": size_of(weights), "learning_rate": plan.learning_rate, "blocks": plan.steps * plan.batch}
    return took | log_of(folder)


def tried(
    make: Callable[[], tuple[PreTrainedModel, nn.Module]], store: Datastore, plan: Distilling, share: float,
    folder: Path, about: dict[str, Any], accelerator: Accelerator, loss: Callable[[PreTrainedModel], float],
) -> float:  # fmt: skip
    """The loss on held-out text after a `share` of the plan's steps. The run is deleted then: a copy of the model and
    its optimizer are large."""
    short = replace(plan, steps=math.ceil(share * plan.steps))
    model, weights = make()
    train(model, weights, store, short, folder, about, accelerator)
    found = loss(model)
    shutil.rmtree(folder)
    return found
