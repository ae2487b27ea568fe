"""A Memory Decoder for models of another vocabulary: its layers stay, its embedding and head are made anew.

In: a decoder, or a small causal language model, and a language model with another tokenizer. Out: a causal model of the
new vocabulary, to be trained for a tenth of the steps that the first one took (`memo decode-train --new-vocabulary`). A
token that both vocabularies have keeps its row, where the decoder has an embedding of its own; all others are drawn.

Source: Memory Decoder (arXiv 2508.09874v2), section 5.4. Ours: rows that are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memo.decoder import vocabulary
from memo.decoder_file import about
from memo.errors import ModelError, reason
from memo.models import attention_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def moved(name: str | Path, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    """The decoder in `name`, a folder or a hub id, as a causal model of the LLM's vocabulary, in float32.

    Raises:
        ModelError: it cannot be found, or is damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name)
        config.vocab_size = llm.get_output_embeddings().weight.shape[0]
        for key in SPECIAL:
            setattr(config, key, getattr(llm.config, key, None))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention_of(config.model_type)
            )
        state, table = _weights(name), made.get_input_embeddings()
        [place] = [f"{key}.weight" for key, module in made.base_model.named_modules() if module is table]
        embedding = state.pop(place, None)
        lacking = made.base_model.load_state_dict(state, strict=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{Path(name).name!r} cannot be moved to another vocabulary: {reason(error)}") from error
    if lacking.unexpected_keys or set(lacking.missing_keys) - {place}:
        raise ModelError(f"{Path(name).name!r} is not a whole decoder.", "Train it again.")
    if embedding is not None:
        _keep_rows(table.weight.data, embedding, _tokens(name), vocabulary(tokenizer), seed)
    return made.to(llm.device).eval().requires_grad_(False)


def _weights(name: str | Path) -> dict[str, Tensor]:
    """All weights but those of the head, as the base model names them; without an embedding where it has none."""
    from transformers import AutoModelForCausalLM

    if not about(name):
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).base_model.state_dict()
    files = sorted(Path(name).glob("decoder*.safetensors"))
    return {key: value.float() for file in files for key, value in load_file(file).items() if key != "head.weight"}


def _tokens(name: str | Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return vocabulary(AutoTokenizer.from_pretrained(name))


def _keep_rows(table: Tensor, old: Tensor, theirs: dict[str, int], ours: dict[str, int], seed: int) -> None:
    """Writes into `table` (V, E) the rows of tokens that both have; others are drawn, spread as the old ones."""
    torch.nn.init.normal_(table, float(old.mean()), float(old.std()), generator=torch.Generator().manual_seed(seed))
    pairs = [(ours[token], theirs[token]) for token in sorted(ours.keys() & theirs.keys())]
    if pairs:
        here, there = torch.tensor(pairs).T
        table[here] = old[there]
