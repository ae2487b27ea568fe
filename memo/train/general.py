"""A small decoder that knows language in general, for domains to start from: it learns what the LLM itself says.

In: a language model, texts of all kinds, a plan. Out: a decoder folder (`memo.decoder.load`) of the first layers of it

    L = sum_t KL(p_LLM(. | x_<t) || p_Mem(. | x_<t))

Source: ours for a tokenizer that has no small model; the paper (arXiv 2508.09874v2, section 4) starts from one that was
pre-trained. This one is taught by the language model itself: knowledge distillation (arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from memo import decoder, decoder_file
from memo.errors import SettingsError
from memo.models import fingerprint
from memo.train import loop
from memo.train.distill import part_on
from memo.train.loop import drawn
from memo.train.recipe import General
from memo.train.texts import TokenFile, pieces

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Windows:
    """Texts that are read side by side: ids (B, T)."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()


def dense_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(logits)) of each row. (n, V), (n, V) -> (n,), nats"""
    logp, logq = log_softmax(teacher.float(), dim=-1), log_softmax(logits.float(), dim=-1)
    return kl_div(logq, logp, reduction="none", log_target=True).sum(dim=-1)


def losses(student: PreTrainedModel, llm: PreTrainedModel, batch: Windows) -> dict[str, Tensor]:
    """`loss`, the mean KL of each text. (B,)"""
    ids = batch.ids.to(student.device)
    with torch.no_grad():
        theirs = llm.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)  # (B * T, E)
    ours = student.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    size, teacher, head = part_on(ids.device), llm.get_output_embeddings(), student.get_output_embeddings()

    def of(start: int) -> Tensor:
        part = slice(start, start + size)
        with torch.no_grad():
            target = teacher(theirs[part])
        return dense_kl(head(ours[part]), target)

    # in parts, and made again for the gradient: the logits of both would be the largest tensors of all
    parts = [checkpoint(of, start, use_reentrant=False) for start in range(0, len(ours), size)]
    return {"loss": torch.cat(parts).view(ids.shape).mean(dim=1)}


def groups(tokens: TokenFile, plan: General) -> Callable[[int], list[Windows]]:
    """`micro_batches` for the loop: windows of the texts in random order, each once an epoch.

    Raises:
        SettingsError: the texts do not fill a step.
    """
    every = pieces(tokens, plan.window, 1, 1, plan.seed, 0)
    if len(every) < plan.batch:
        told = f"The texts have {len(every)} whole windows of {plan.window} tokens; a step reads {plan.batch}."
        raise SettingsError(told, "Give more text, or a smaller batch or window.")

    def micro_batches(step: int) -> list[Windows]:
        some = [tokens.piece(every[i].start, plan.window) for i in drawn(len(every), plan, step)]
        return [Windows(torch.stack(some[at : at + plan.micro])) for at in range(0, plan.batch, plan.micro)]

    return micro_batches


def make(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: TokenFile, out: Path, plan: General,
    accelerator: Accelerator, about: dict[str, Any], told: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Makes it, or goes on where it was. about: what decoder.json says besides. -> what it says"""
    student, weights = decoder.student(llm, plan.layers)
    run = {"model": fingerprint(llm), "tokens": len(tokens.ids)}
    loop.train(weights, groups(tokens, plan), lambda one: losses(student, llm, one), plan, out / "work" / "run", run,
               accelerator, told)  # fmt: skip
    if accelerator.is_main_process:
        read = plan.steps * plan.batch * plan.window
        decoder.save(student, llm, tokenizer, out, {**about, "plan": asdict(plan), "tokens": read})
    accelerator.wait_for_everyone()
    return decoder_file.about(out)
