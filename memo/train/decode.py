"""From a corpus to a Memory Decoder: datastore, index, the kNN-LM's choices, targets, distillation, alpha.

In: a language model, tokens to learn and tokens held out. Out: in a folder

    config.json, decoder*.safetensors, decoder.json    the decoder (`memo.decoder.load`)
    work/store, work/targets, work/run                 what it was made from; a run that was killed goes on from there

Everything that is chosen (k, temperature, alpha) is chosen on the held-out tokens, by their perplexity.

Source: Memory Decoder (arXiv 2508.09874v2), section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memo import datastore, decoder, decoder_file, knn, targets
from memo.datastore import Block
from memo.evaluate import perplexity
from memo.models import fingerprint
from memo.train import distill
from memo.train.recipe import Distilling
from memo.train.texts import TokenFile, joined
from memo.vocabulary import moved

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HELD = 20  # every so manyth document is held out; of fewer, the last tenth of each
HELD_TOKENS = 20_000  # that choices are made on, at most
MOST = 256  # neighbours that k is chosen among


@dataclass(frozen=True)
class Progress:
    """How far it is. stage: "reading" | "indexing" | "choosing" | "neighbours" | "training" | "done"."""

    stage: str
    done: int
    of: int
    line: dict[str, Any] | None = None  # of the training's log


def held_out(tokens: TokenFile) -> tuple[TokenFile, TokenFile]:
    """A corpus in two: what is learnt, and what choices are made on."""
    spans = list(itertools.pairwise(tokens.bounds))
    if len(spans) >= HELD:
        kept = [span for number, span in enumerate(spans) if number % HELD != HELD // 2]
        held = spans[HELD // 2 :: HELD]
    else:
        cuts = [begin + (end - begin) * 9 // 10 for begin, end in spans]
        kept = [(begin, cut) for (begin, _), cut in zip(spans, cuts, strict=True)]
        held = [(cut, end) for (_, end), cut in zip(spans, cuts, strict=True)]
    return _of(tokens, kept), _of(tokens, held)


def _of(tokens: TokenFile, spans: list[tuple[int, int]]) -> TokenFile:
    return joined([tokens.ids[begin:end] for begin, end in spans])


def first_blocks(tokens: TokenFile, most: int) -> list[Block]:
    """Blocks of held-out text, spread over its documents, that count about `most` tokens."""
    every = datastore.blocks(tokens.bounds)
    step = max(1, sum(block.end - block.first for block in every) // most)
    return every[::step]


def make(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, learnt: TokenFile, held: TokenFile, out: Path,
    plan: Distilling, accelerator: Accelerator, about: dict[str, Any],
    told: Callable[[Progress], None] = lambda progress: None, start: str = "", new_vocabulary: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Makes the decoder, or goes on where it was. about: what decoder.json says besides. -> what it says

    start: a decoder to start from, or a small causal language model of the vocabulary, a folder or a hub id; empty: the
    LLM's first layers. new_vocabulary: the start has another one, and is moved to the LLM's (`vocabulary.moved`).
    `told` may raise, to stop; nothing that is done is lost.

    Raises:
        DatastoreError: no text, or a folder that holds something else. SettingsError: a plan that does not fit.
        ModelError, WrongModel: no such start, or of another vocabulary.
    """
    first = None
    if start:
        first = moved(start, llm, tokenizer, plan.seed) if new_vocabulary else decoder.load(start, llm, tokenizer)
    work, process = out / "work", (accelerator.process_index, accelerator.num_processes)
    stores = partial(_telling, told)
    store = datastore.build(llm, learnt, work / "store", process=process, told=stores("reading"))
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        index = knn.index(store, told=lambda line: told(Progress("indexing", 0, 1)), device=llm.device)
    told(Progress("choosing", 0, 1))
    some = first_blocks(held, HELD_TOKENS)
    labels, plain = perplexity.labels(held, some), perplexity.read(llm, held, some, keys=True)
    found = index.search(plain.keys, MOST)
    choice = knn.choose(found, store.values, labels, plain.logp)
    learning = None
    if plan.kl_weight:
        targets.write_targets(index, choice.k, choice.temperature, work / "targets", process, stores("neighbours"))
        accelerator.wait_for_everyone()
        learning = targets.Targets(store, work / "targets")
    student, weights = decoder.student(llm, plan.layers, first)
    run = {"model": fingerprint(llm), "entries": store.size, "choice": asdict(choice) if plan.kl_weight else {},
           "start": fingerprint(first) if first is not None else ""}  # fmt: skip
    distill.train(
        student, weights, store, learning, plan, work / "run", run, accelerator,
        lambda line: told(Progress("training", line["step"], plan.steps, line)),
    )  # fmt: skip
    if accelerator.is_main_process:
        chosen = {"k": choice.k, "temperature": choice.temperature, "weight": choice.weight,
                  "index": index.kind, "recall": index.recall}  # fmt: skip
        made = work / "made"  # nobody shall see it before it is whole
        decoder.save(student, llm, tokenizer, made, {"plan": asdict(plan), "tokens": store.size, "neighbours": chosen,
                                                     "start": Path(start).name})  # fmt: skip
        decoder_file.note(made, {**about, **measured(llm, tokenizer, held, some, made, plain.logp, choice)})
        decoder_file.publish(made, out)
    accelerator.wait_for_everyone()
    told(Progress("done", 1, 1))
    return decoder_file.about(out)


def measured(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: TokenFile, some: list[Block], out: Path,
    plain: np.ndarray, choice: knn.Choice,
) -> dict[str, Any]:  # fmt: skip
    """The alpha that suits the held-out text best, and the perplexities there. plain: (n,) log p of the LLM alone"""
    alone = perplexity.read(decoder.load(out, llm, tokenizer), held, some).logp
    alpha = perplexity.best_alpha(plain, alone)
    mixed = perplexity.mixed(plain, alone, alpha)
    found = {"llm": plain, "decoder": alone, "mixed": mixed}
    losses = {name: perplexity.perplexity(logp) for name, logp in found.items()}
    return {
        "alpha": alpha, "held_out_tokens": len(plain),
        "held_out_perplexity": {**losses, "knn_lm": float(np.exp(choice.loss))},
    }  # fmt: skip


def _telling(told: Callable[[Progress], None], stage: str) -> Callable[[int, int], None]:
    return lambda done, of: told(Progress(stage, done, of))
