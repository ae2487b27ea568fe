"""What a language model and its Memory Decoder thought at every token of a text.

In: both models (`memo.decoder.Mixed`), and a text, or a prompt that is gone on with. Out: `Token`s, each with log p of
it by both models and with the candidates of both, so that every alpha can be mixed later without running a model:

    p(y) = alpha p_Mem(y) + (1 - alpha) p_LLM(y)

And, where a decoder's datastore is there, the entries nearest to a token: what stood in the corpus after a context like
this one. Whoever shares the models among threads holds their turn for each call, and for each token of `write`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memo import datastore, knn
from memo.datastore import keeping_keys
from memo.decoder import Mixed, MixedCache, interpolate
from memo.errors import DatastoreError
from memo.evaluate import perplexity
from memo.models import untrusted
from memo.train import decode
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOP = 8  # candidates of each model that are kept
PART = 64  # tokens whose logits are made at a time
BEFORE, AFTER = 28, 12  # tokens of the corpus that are shown around a neighbour


@dataclass(frozen=True)
class Candidate:
    """A token that one of the models had among its first, and log p of it by both, nats."""

    id: int
    text: str
    llm: float
    memory: float


@dataclass(frozen=True)
class Token:
    """A token of the text. The first of a text, with nothing before it, has no candidates and no log p.

    text: what it adds to the text; empty while a character is not whole. key: to look up in the datastore.
    """

    id: int
    text: str
    llm: float = 0.0
    memory: float = 0.0
    candidates: tuple[Candidate, ...] = ()
    written: bool = False  # by the mix, not by a person
    key: np.ndarray | None = field(default=None, compare=False, repr=False)  # (E,) float16

    @property
    def predicted(self) -> bool:
        return bool(self.candidates)


class Neighbour(NamedTuple):
    """An entry of the datastore: its squared distance, its token, and the corpus around that."""

    distance: float
    token: str
    before: str
    after: str


# --- running the models ----------------------------------------------------------------------------------------------


@torch.no_grad()
def trace(mixed: Mixed, tokenizer: PreTrainedTokenizerFast, text: str, most: int) -> list[Token]:
    """The first `most` tokens of a text, read in one pass."""
    ids = encode(tokenizer, text)[:most]
    if not ids:
        return []
    llm, memory, keys = _read(mixed, ids, None)
    return _given(mixed, tokenizer, ids, llm, memory, keys)


@torch.no_grad()
def write(
    mixed: Mixed, tokenizer: PreTrainedTokenizerFast, prompt: str, alpha: float, count: int, most: int
) -> Iterator[Token]:
    """The last `most` tokens of a prompt, then up to `count` that the mix goes on with, the most probable each.

    Closing the generator stops.
    """
    ids = encode(tokenizer, prompt)[-most:]
    if not ids:
        return
    ends = mixed.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    cache = MixedCache(mixed.llm.config, mixed.memory.config)
    llm, memory, keys = _read(mixed, ids, cache)
    yield from _given(mixed, tokenizer, ids, llm, memory, keys)
    shown = _decoded(tokenizer, ids)
    for _ in range(count):
        logp_llm, logp_memory = (logp[0] for logp in mixed.both(llm[:, -1:], memory[:, -1:]))  # (1, V)
        chosen = int(interpolate(logp_llm, logp_memory, alpha)[0].argmax())
        if chosen in ends:
            return
        ids.append(chosen)
        before, shown = shown, _decoded(tokenizer, ids)
        [thought] = _thoughts(tokenizer, logp_llm, logp_memory, [chosen])
        yield Token(chosen, shown[len(before) :], *thought, written=True, key=keys[-1])
        llm, memory, keys = _read(mixed, [chosen], cache)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """As a decoder's corpus is: nothing is put before it, special tokens in it are taken as text."""
    return untrusted(tokenizer).encode(text, add_special_tokens=False).ids


def _read(mixed: Mixed, ids: Sequence[int], cache: MixedCache | None) -> tuple[Tensor, Tensor, np.ndarray]:
    """Hidden states (1, T, E) and (1, T, F) of both models, keys (T, E)."""
    with keeping_keys(mixed.llm) as kept:
        llm, memory = mixed.hidden(torch.tensor([list(ids)], device=mixed.llm.device), cache)
    return llm, memory, kept[0][0].to(torch.float16).cpu().numpy()


def _given(
    mixed: Mixed, tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], llm: Tensor, memory: Tensor, keys: np.ndarray
) -> list[Token]:
    """A text that was there, as tokens: what stands before each of them predicts it."""
    thoughts: list[tuple] = [()]
    for start in range(0, len(ids) - 1, PART):
        stop = min(start + PART, len(ids) - 1)
        logps = mixed.both(llm[:, start:stop], memory[:, start:stop])
        thoughts += _thoughts(tokenizer, *(logp[0] for logp in logps), ids[start + 1 : stop + 1])
    tokens, shown = [], ""
    for at, (token, thought) in enumerate(zip(ids, thoughts, strict=True)):
        before, shown = shown, _decoded(tokenizer, ids[: at + 1])
        tokens.append(Token(token, shown[len(before) :], *thought, key=keys[at - 1] if at else None))
    return tokens


def _thoughts(
    tokenizer: PreTrainedTokenizerFast, llm: Tensor, memory: Tensor, ids: Sequence[int]
) -> list[tuple[float, float, tuple[Candidate, ...]]]:
    """Log-probabilities (n, V) of both, and the n tokens that came -> log p of those by both, and the candidates."""
    came = torch.tensor(ids, device=llm.device)[:, None]
    some = torch.cat([came, *(logp.topk(min(TOP, logp.shape[1])).indices for logp in (llm, memory))], dim=1)
    theirs, ours = (logp.gather(1, some).tolist() for logp in (llm, memory))
    found = some.tolist()
    texts = {token: tokenizer.decode([token]) for token in {token for row in found for token in row}}
    thoughts = []
    for row, a, b in zip(found, theirs, ours, strict=True):
        by_id = {token: Candidate(token, texts[token], p, q) for token, p, q in zip(row, a, b, strict=True)}
        thoughts.append((a[0], b[0], tuple(by_id.values())))
    return thoughts


def _decoded(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of tokens, without a character whose last bytes are still to come."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False).rstrip("\ufffd")


# --- mixing again ----------------------------------------------------------------------------------------------------


def mixed_logp(token: Token | Candidate, alpha: float) -> float:
    """log p by the mix, nats."""
    return float(perplexity.mixed(np.float64(token.llm), np.float64(token.memory), alpha))


def remix(token: Token, alpha: float) -> list[tuple[Candidate, float]]:
    """The candidates with log p by the mix, the most probable first."""
    found = [(candidate, mixed_logp(candidate, alpha)) for candidate in token.candidates]
    return sorted(found, key=lambda pair: -pair[1])


def lift(token: Token, alpha: float) -> float:
    """How much the decoder raises (or lowers) the token in the mix: log p of the mix less log p of the LLM, nats."""
    return mixed_logp(token, alpha) - token.llm if token.predicted else 0.0


def perplexities(tokens: Sequence[Token], alpha: float) -> dict[str, float]:
    """Of the text that was given, by "llm" alone, "memory" alone and "mixed"; nothing if no token was predicted."""
    some = [token for token in tokens if token.predicted and not token.written]
    if not some:
        return {}
    llm, memory = (np.array([getattr(token, name) for token in some]) for name in ("llm", "memory"))
    logps = {"llm": llm, "memory": memory, "mixed": perplexity.mixed(llm, memory, alpha)}
    return {name: perplexity.perplexity(logp) for name, logp in logps.items()}


# --- the datastore ---------------------------------------------------------------------------------------------------


def open_index(llm: PreTrainedModel, folder: Path) -> knn.Index | None:
    """The index that a decoder in `folder` was made with; None if its datastore or its corpus is not there.

    Raises:
        DatastoreError: the index is damaged.
    """
    work = folder / "work"
    known = "index.json" if llm.device.type == "cpu" else "store.json"  # on an accelerator no index is kept
    if not (work / "store" / known).exists():
        return None
    for path in sorted(work.glob("tokens-*.json")):
        tokens = TokenFile.load(path)
        for learnt in (decode.held_out(tokens)[0], tokens):  # a part was held out, unless other texts were
            try:
                store = datastore.build(llm, learnt, work / "store")
            except DatastoreError:  # it is not of this corpus
                continue
            return knn.index(store, device=llm.device)
    return None


def neighbours(index: knn.Index, tokenizer: PreTrainedTokenizerFast, key: np.ndarray, count: int) -> list[Neighbour]:
    """The entries nearest to a key (E,), nearest first, each with the corpus around it."""
    found, tokens = index.search(key[None], count), index.store.tokens
    result = []
    for distance, entry in zip(found.distances[0], found.entries[0], strict=True):
        if entry < 0:
            break
        place = int(index.store.places[entry])
        document = tokens.document_of(place)
        begin, end = tokens.bounds[document : document + 2]
        start, stop = max(place - BEFORE, begin), min(place + 1 + AFTER, end)
        parts = [tokens.ids[start:place], tokens.ids[place : place + 1], tokens.ids[place + 1 : stop]]
        before, token, after = (tokenizer.decode(part.tolist()).strip("\ufffd") for part in parts)
        result.append(Neighbour(float(distance), token, before, after))
    return result
