"""The Memory Decoder: a small causal model that has learnt a domain, mixed with any language model of its vocabulary.

In: a language model (`llm`), the decoder, and alpha. Out: at every token

    p(y | x) = alpha p_Mem(y | x) + (1 - alpha) p_LLM(y | x)

`Mixed` is a causal language model to transformers: it generates, samples, streams and takes padded batches as any does.
Where both share their embedding and head, both hidden states go through the head in one product.

Source: Memory Decoder (arXiv 2508.09874v2), equation 7 and section 3.3. Ours: alpha may also be a `Router`, a number of
its own for every token.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from memo.decoder_file import ROUTER, about
from memo.errors import MemoError, ModelError, WrongModel, reason
from memo.models import attention_of, cache_name, fingerprint, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD = "8MB"  # of a saved decoder's files: plain git and Spaces take those


def interpolate(llm: Tensor, memory: Tensor, alpha: float | Tensor) -> Tensor:
    """log(alpha p_Mem + (1 - alpha) p_LLM) of log-probabilities (..., V). alpha 0 is the LLM, 1 the decoder, exactly.

    alpha: a number, or (..., 1).
    """
    if not isinstance(alpha, Tensor):
        if alpha <= 0:
            return llm
        if alpha >= 1:
            return memory
        return torch.logaddexp(llm + math.log1p(-alpha), memory + math.log(alpha))
    return torch.logaddexp(llm + torch.log1p(-alpha), memory + alpha.log())


def aligned(logits: Tensor, size: int) -> Tensor:
    """Logits (..., V) over a vocabulary of `size`: models of one tokenizer pad it to different widths."""
    there = logits.shape[-1]
    if there >= size:
        return logits[..., :size]
    return torch.cat([logits, logits.new_full((*logits.shape[:-1], size - there), -math.inf)], dim=-1)


class Router(nn.Module):
    """alpha of every token, from both hidden states and how sure both models are.

    (B, T, E) of the LLM, (B, T, F) of the decoder, log-probabilities (B, T, V) of both -> (B, T, 1) between 0 and 1
    """

    def __init__(self, llm: int, memory: int, width: int = 64) -> None:
        super().__init__()
        self.llm, self.memory = nn.Linear(llm, width), nn.Linear(memory, width)
        self.sure = nn.Linear(4, width)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))

    def forward(self, llm: Tensor, memory: Tensor, logp_llm: Tensor, logp_memory: Tensor) -> Tensor:
        sure = [value for logp in (logp_llm.float(), logp_memory.float()) for value in certainty(logp)]
        parts = [self.llm(_normal(llm)), self.memory(_normal(memory)), self.sure(torch.stack(sure, dim=-1))]
        return self.out(torch.cat(parts, dim=-1)).sigmoid().clamp(1e-4, 1 - 1e-4)


def certainty(logp: Tensor) -> tuple[Tensor, Tensor]:
    """The highest log-probability, and the entropy in nats. (..., V) -> (...), (...)"""
    entropy = -(logp.exp() * logp.masked_fill(logp.isinf(), 0.0)).sum(dim=-1)
    return logp.amax(dim=-1), entropy


def _normal(hidden: Tensor) -> Tensor:
    """Hidden states at a size that does not depend on the model."""
    return torch.nn.functional.layer_norm(hidden.float(), hidden.shape[-1:])


# --- the decoder -----------------------------------------------------------------------------------------------------


def first_layers(llm: PreTrainedModel, count: int) -> PreTrainedModel:
    """A causal model of the LLM's first `count` layers, in float32; embedding and head are the LLM's own, shared.

    Raises:
        ModelError: the LLM has fewer layers.
    """
    config = copy.deepcopy(llm.config)
    if not 1 <= count <= config.num_hidden_layers:
        raise ModelError(f"The model has {config.num_hidden_layers} layers, not {count}.", "Ask for fewer.")
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    decoder = type(llm)(config).float()
    wanted = decoder.state_dict()
    decoder.load_state_dict({name: tensor for name, tensor in llm.state_dict().items() if name in wanted})
    return share(decoder.to(llm.device), llm)


def share(decoder: PreTrainedModel, llm: PreTrainedModel) -> PreTrainedModel:
    """Gives the decoder the LLM's embedding and head: the same modules, no copies."""
    decoder.set_input_embeddings(llm.get_input_embeddings())
    decoder.set_output_embeddings(llm.get_output_embeddings())
    return decoder


def shares(decoder: PreTrainedModel, llm: PreTrainedModel) -> bool:
    """Whether both have one head."""
    return decoder.get_output_embeddings() is llm.get_output_embeddings()


def own(decoder: PreTrainedModel, llm: PreTrainedModel) -> nn.ModuleDict:
    """The modules of the decoder that it does not share with the LLM: what is trained and saved."""
    base = decoder.base_model
    held = {id(llm.get_input_embeddings()), id(llm.get_output_embeddings())}
    parts = {name: child for name, child in base.named_children() if id(child) not in held}
    head = decoder.get_output_embeddings()
    if id(head) not in held and head.weight is not decoder.get_input_embeddings().weight:
        parts["head"] = head
    return nn.ModuleDict(parts)


def student(
    llm: PreTrainedModel, count: int, start: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, nn.ModuleDict]:
    """A decoder to be trained, and of its modules those that are: what it does not share with the LLM, in float32.

    start: what it starts from, as `load` gives it; by default the LLM's `first_layers`, `count` of them.
    """
    if start is None:
        made = first_layers(llm, count)
    else:
        made = share(copy.deepcopy(start), llm) if shares(start, llm) else copy.deepcopy(start)
    made.requires_grad_(False)
    return made, own(made, llm).float().requires_grad_(True)


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return tokenizer.get_vocab()


def save(
    decoder: PreTrainedModel, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path,
    about: dict[str, Any],
) -> None:  # fmt: skip
    """Writes the decoder as a folder: config.json, its own weights in bfloat16 (in files below 9 MB), decoder.json.

    about: what decoder.json says besides (alpha, domain, how it was trained). Where nothing is shared with the LLM the
    tokenizer is written too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("decoder*.safetensors*"):
        old.unlink()
    state = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in
             own(decoder, llm).state_dict().items()}  # fmt: skip
    decoder.config.save_pretrained(folder)
    save_torch_state_dict(state, folder, filename_pattern="decoder{suffix}.safetensors", max_shard_size=SHARD)
    shared = shares(decoder, llm)
    if not shared:
        tokenizer.save_pretrained(folder)
    known = {"shares": fingerprint(llm) if shared else "", "vocabulary": len(vocabulary(tokenizer)), "alpha": 0.0}
    write_atomic(folder / "decoder.json", json.dumps({**known, **about}, indent=1, ensure_ascii=False))


def save_router(router: Router, folder: Path) -> None:
    """Puts a router beside the decoder that it was trained with."""
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in router.state_dict().items()}
    save_file(state, folder / ROUTER)


def load_router(name: str | Path, llm: PreTrainedModel, decoder: PreTrainedModel) -> Router | None:
    """The router that lies beside a decoder; None where there is none.

    Raises:
        ModelError: it is damaged, or one of other models.
    """
    path = Path(name) / ROUTER
    if not path.exists():
        return None
    router = Router(llm.config.hidden_size, decoder.config.hidden_size)
    try:
        router.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The router of {Path(name).name} cannot be loaded: {reason(error)}") from error
    return router.to(llm.device).eval().requires_grad_(False)


def load(name: str | Path, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A decoder that `save` wrote, or any causal language model (a folder or a hub id) of the LLM's vocabulary.

    Raises:
        ModelError: it cannot be found, or is damaged.
        WrongModel: it shares the embedding of another LLM, or has another vocabulary.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    known = about(name)
    if known.get("shares") and known["shares"] != fingerprint(llm):
        told = "This Memory Decoder shares the embedding of another language model."
        raise WrongModel(told, "Use it with that one, or train one for this.")
    try:
        if not known.get("shares"):
            theirs = vocabulary(AutoTokenizer.from_pretrained(name))
            if theirs != vocabulary(tokenizer):
                raise WrongModel(
                    "This Memory Decoder has another vocabulary than the language model.",
                    "Both must have the same tokenizer; a decoder can be moved to another vocabulary by training.",
                )
        config = AutoConfig.from_pretrained(name)
        way = attention_of(config.model_type)
        if not known:
            decoder = AutoModelForCausalLM.from_pretrained(name, dtype=llm.dtype, attn_implementation=way)
        else:
            state: dict[str, Tensor] = {}
            for file in sorted(Path(name).glob("decoder*.safetensors")):
                state |= load_file(file)
            layers = {part for key in state for part in key.split(".")[1:2] if part.isdecimal()}
            if config.num_hidden_layers != len(layers):  # before a million layers are made for a damaged number
                raise ValueError("its config has another number of layers than its weights")
            # in float32 first: another dtype would be torch's default for a moment, for every thread
            decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=way)
            for weight in decoder.parameters():
                weight.data = weight.data.to(llm.dtype)
            if known["shares"]:
                share(decoder, llm)
            own(decoder, llm).load_state_dict(state)
    except MemoError:
        raise
    except Exception as error:  # whatever a damaged folder makes of its readers
        raise ModelError(f"The Memory Decoder {Path(name).name!r} cannot be loaded: {reason(error)}") from error
    return decoder.to(llm.device).eval().requires_grad_(False)


# --- the mix ---------------------------------------------------------------------------------------------------------


class MixedCache(DynamicCache):
    """K and V of the LLM, and beside them those of the decoder."""

    def __init__(self, llm: Any, decoder: Any) -> None:
        super().__init__(config=llm)
        self.decoder = DynamicCache(config=decoder)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.decoder.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        super().crop(max_length)
        self.decoder.crop(max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.decoder.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.decoder.batch_select_indices(indices)


class Mixed(PreTrainedModel, GenerationMixin):
    """Two models as one causal language model. Its logits are log p of the mix."""

    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, llm: PreTrainedModel, decoder: PreTrainedModel, alpha: float | Router) -> None:
        super().__init__(llm.config)
        self.llm, self.memory = llm, decoder
        self.alpha = alpha
        self.generation_config = llm.generation_config

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def hidden(self, input_ids: Tensor, cache: MixedCache | None = None, **more: Any) -> tuple[Tensor, Tensor]:
        """Hidden states of both, before their heads. (B, T) -> (B, T, E), (B, T, F)"""
        found = []
        for model, own_cache in ((self.llm, cache), (self.memory, cache.decoder if cache is not None else None)):
            held = {"use_cache": cache is not None, cache_name(): own_cache}
            found.append(model.base_model(input_ids=input_ids, **held, **more).last_hidden_state)
        return found[0], found[1]

    def both(self, llm: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states -> log-probabilities (B, T, V) of both, over the LLM's vocabulary, in float32."""
        head = self.llm.get_output_embeddings()
        if shares(self.memory, self.llm):
            logits = head(torch.stack([llm, memory.to(llm.dtype)]))
            return tuple(log_softmax(logits.float(), dim=-1))  # type: ignore[return-value]
        logits = head(llm)
        theirs = aligned(self.memory.get_output_embeddings()(memory), logits.shape[-1])
        return log_softmax(logits.float(), dim=-1), log_softmax(theirs.float(), dim=-1)

    def mix(self, llm: Tensor, memory: Tensor) -> Tensor:
        """Hidden states -> log p of the mix (B, T, V)."""
        logp_llm, logp_memory = self.both(llm, memory)
        alpha = self.alpha
        if isinstance(alpha, Router):
            alpha = alpha(llm, memory, logp_llm, logp_memory)
        return interpolate(logp_llm, logp_memory, alpha)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int = 0, **more: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """As of any causal language model of transformers."""
        cache = more.get(cache_name())
        if cache is None and use_cache:
            cache = MixedCache(self.llm.config, self.memory.config)
        llm, memory = self.hidden(input_ids, cache, attention_mask=attention_mask, position_ids=position_ids)
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        return CausalLMOutputWithPast(logits=self.mix(llm[:, kept], memory[:, kept]), **{cache_name(): cache})

    def generate(self, *arguments: Any, **more: Any) -> Any:
        """transformers' own, with a cache for both models."""
        more.setdefault(cache_name(), MixedCache(self.llm.config, self.memory.config))
        return super().generate(*arguments, **more)
