"""A router for a decoder that was made: alpha of every token, learnt on half of the held-out text.

In: a decoder's folder, the model, the tokens held out. Out: router.safetensors in the folder, where the router predicts
the other half better than the best fixed alpha of the first half does; decoder.json tells both perplexities.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memo import decoder, decoder_file
from memo.errors import SettingsError
from memo.evaluate import perplexity, routing
from memo.evaluate.adaptation import Rivals
from memo.models import fingerprint
from memo.train.decode import HELD_TOKENS, first_blocks
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def make(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: TokenFile, out: Path, seed: int,
    accelerator: Accelerator,
) -> dict[str, Any]:  # fmt: skip
    """Trains it, or goes on where it was. -> {"router", "fixed": perplexities of the other half, "alpha": fixed}

    Raises:
        SettingsError: too little text is held out.
    """
    some = first_blocks(held, HELD_TOKENS)
    if len(some) < 2:
        raise SettingsError("Too little text is held out for a router.", "It needs two blocks, of 512 tokens about.")
    memory = decoder.load(out, llm, tokenizer)
    mixed, (learnt, half) = routing.made(llm, memory, seed), routing.halves(some)
    run = {"model": fingerprint(llm), "decoder": fingerprint(memory), "held": len(held.ids)}
    routing.train(mixed, held, learnt, Rivals(), seed, out / "work" / "router", run, accelerator)
    plain, theirs = (perplexity.read(model, held, some).logp for model in (llm, memory))
    logp, _ = routing.read(mixed, held, some)
    alpha = perplexity.best_alpha(half(plain), half(theirs))
    rest = np.setdiff1d(np.arange(len(plain)), half(np.arange(len(plain))))
    fixed = perplexity.mixed(plain, theirs, alpha)
    found = {"router": perplexity.perplexity(logp[rest]), "fixed": perplexity.perplexity(fixed[rest]), "alpha": alpha}
    if accelerator.is_main_process:
        (out / decoder_file.ROUTER).unlink(missing_ok=True)
        if found["router"] < found["fixed"]:
            decoder.save_router(mixed.alpha, out)
        decoder_file.note(out, {"routing": found})
    accelerator.wait_for_everyone()
    return found
