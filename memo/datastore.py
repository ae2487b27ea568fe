"""The datastore of a kNN-LM: for every token of a corpus what the model thought before it, and which token it was.

In: a causal language model and the tokens of a corpus (`train.texts.TokenFile`). Out: a folder with

    keys-00000.safetensors   (n, E) float16, the input of the last layer's MLP before each token, a shard at a time
    store.json               the model, the blocks, how many entries there are in all

Entry i is the i-th token of the corpus that has a token of its document before it; its value is that token. Texts are
read in blocks that overlap, so that every token but a document's first ones has `window - stride` others before it:

    D = {(phi(x_<t), x_t)}

Source: Memory Decoder (arXiv 2508.09874v2), equation 1 and section 3.1; kNN-LM (arXiv 1911.00172), section 2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from memo.errors import DatastoreError, WrongModel
from memo.models import fingerprint, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memo.train.texts import TokenFile

WINDOW, STRIDE = 1024, 512  # tokens of a block; tokens from one block's start to the next one's
SHARD = 32  # blocks of a shard
BATCH = 8  # blocks that are read together
ALIKE = 32  # two entries with so many tokens before them in common stand in the same passage, told twice


class Block(NamedTuple):
    """A stretch of the corpus that is read at once. Places are those of the token file."""

    start: int
    end: int
    first: int  # the first token that counts as one to predict; those before it are context


def blocks(bounds: Sequence[int], window: int = WINDOW, stride: int = STRIDE) -> list[Block]:
    """All documents in blocks. Every token but a document's first counts in exactly one of them."""
    found = []
    for begin, end in itertools.pairwise(bounds):
        start, first = begin, begin + 1
        while first < end:
            stop = min(start + window, end)
            found.append(Block(start, stop, first))
            start, first = start + stride, stop
    return found


def padded(tokens: TokenFile, some: Sequence[Block]) -> Tensor:
    """The blocks side by side, shorter ones filled up behind, where nothing before it can see it. (B, T)"""
    length = max(block.end - block.start for block in some)
    ids = torch.zeros(len(some), length, dtype=torch.int64)
    for row, block in zip(ids, some, strict=True):
        row[: block.end - block.start] = tokens.piece(block.start, block.end - block.start)
    return ids


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers, by whichever name the model has for them; none where it is not built of layers."""
    base = model.base_model
    return getattr(base, "layers", None) or getattr(base, "h", None) or nn.ModuleList()


def last_mlp(model: PreTrainedModel) -> nn.Module:
    """The MLP of the last layer, whose input the keys are.

    Raises:
        DatastoreError: the model is not built of layers with an `mlp`.
    """
    layers = layers_of(model)
    if not layers or not hasattr(layers[-1], "mlp"):
        told = f"A model of the kind {model.config.model_type!r} has no last MLP to take keys from."
        raise DatastoreError(told, "Choose a decoder-only model, such as Llama, Qwen or GPT-2.")
    return layers[-1].mlp


@contextmanager
def keeping_keys(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within it every pass through the model appends its keys (B, T, E) to the list."""
    kept: list[Tensor] = []
    hook = last_mlp(model).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].detach()))
    try:
        yield kept
    finally:
        hook.remove()


@dataclass(frozen=True)
class Datastore:
    """A finished store: `tokens` is the corpus, `folder` holds the keys."""

    folder: Path
    tokens: TokenFile
    size: int  # entries
    dimension: int  # of a key
    model: str  # fingerprint of the model that made the keys
    window: int
    stride: int

    @cached_property
    def blocks(self) -> list[Block]:
        return blocks(self.tokens.bounds, self.window, self.stride)

    @cached_property
    def places(self) -> np.ndarray:
        """(N,) where in the token file the value of each entry stands"""
        pairs = itertools.pairwise(self.tokens.bounds)
        return np.concatenate([np.arange(begin + 1, max(begin + 1, end)) for begin, end in pairs])

    @cached_property
    def values(self) -> np.ndarray:
        """(N,) int64 the token of each entry"""
        return np.asarray(self.tokens.ids)[self.places].astype(np.int64)

    @cached_property
    def contexts(self) -> np.ndarray:
        """(N,) uint64 the same number for entries with the same `ALIKE` tokens before them; 0: less stand there"""
        return context_numbers(self.tokens)[self.places]

    def entries(self, block: Block) -> tuple[int, int]:
        """The entries of the tokens that count in a block: from, to."""
        first = int(np.searchsorted(self.places, block.first))
        return first, first + block.end - block.first

    @property
    def shards(self) -> int:
        return -(-len(self.blocks) // SHARD)

    def keys(self, shard: int) -> np.ndarray:
        """(n, E) float16 the keys of a shard.

        Raises:
            DatastoreError: its file is damaged or gone.
        """
        path = shard_path(self.folder, shard)
        try:
            with safe_open(path, framework="np") as file:
                return file.get_tensor("keys")
        except (OSError, SafetensorError) as error:
            told = f"{path.name} of the datastore cannot be read."
            raise DatastoreError(told, "Delete it and build again: it is made anew.") from error

    def first_entry(self, shard: int) -> int:
        """The first entry of a shard."""
        return self.entries(self.blocks[shard * SHARD])[0]

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model that did not make the keys.

        Raises:
            WrongModel: it did not.
        """
        if fingerprint(model) != self.model:
            raise WrongModel("This datastore was made with another language model.", "Build it again.")


def context_numbers(tokens: TokenFile) -> np.ndarray:
    """(N tokens,) uint64, a polynomial of the `ALIKE` tokens before each place, 0 where less of its document stand."""
    ids = np.asarray(tokens.ids).astype(np.uint64) + np.uint64(1)
    found, factor = np.zeros(len(ids), dtype=np.uint64), np.uint64(0x9E3779B97F4A7C15)
    power = np.uint64(1)
    with np.errstate(over="ignore"):  # modulo 2^64
        for back in range(1, ALIKE + 1):
            found[back:] += power * ids[:-back]
            power *= factor
    for begin, end in itertools.pairwise(tokens.bounds):
        found[begin : min(begin + ALIKE, end)] = 0
    return found


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"keys-{shard:05d}.safetensors"


def build(
    model: PreTrainedModel, tokens: TokenFile, folder: Path, window: int = WINDOW, stride: int = STRIDE,
    process: tuple[int, int] = (0, 1), told: Callable[[int, int], None] = lambda done, of: None,
) -> Datastore:  # fmt: skip
    """Reads the corpus and writes what is not there yet; a build that was killed goes on at its last whole shard.

    process: number of this process and how many there are; each writes every so manyth shard.

    Raises:
        DatastoreError: the folder holds the store of another corpus or model, or there is nothing to predict.
    """
    store = Datastore(
        folder, tokens, sum(max(0, end - begin - 1) for begin, end in itertools.pairwise(tokens.bounds)),
        model.config.hidden_size,
        fingerprint(model), window, stride,
    )  # fmt: skip
    if not store.size:
        raise DatastoreError("The corpus has no two tokens in a row.", "Give it some text.")
    _claim(store)
    for shard in range(process[0], store.shards, process[1]):
        if not shard_path(folder, shard).exists():
            _write(model, store, shard)
        told(shard + 1, store.shards)
    return store


def _write(model: PreTrainedModel, store: Datastore, shard: int) -> None:
    """One shard, whole or not at all."""
    some, found = store.blocks[shard * SHARD : (shard + 1) * SHARD], []
    for at in range(0, len(some), BATCH):
        part = some[at : at + BATCH]
        for block, keys in zip(part, read_keys(model, store.tokens, part), strict=True):
            # what stands before a token predicts it
            found.append(keys[block.first - block.start - 1 : block.end - block.start - 1])
    path = shard_path(store.folder, shard)
    temporary = path.with_suffix(".tmp")
    save_file({"keys": np.concatenate(found)}, temporary)
    temporary.replace(path)


def read_keys(model: PreTrainedModel, tokens: TokenFile, some: Sequence[Block]) -> np.ndarray:
    """(B, T, E) float16 the keys at every token of some blocks, read in one pass."""
    with torch.no_grad(), keeping_keys(model) as kept:
        model.base_model(input_ids=padded(tokens, some).to(model.device), use_cache=False)
    return kept[0].to(torch.float16).cpu().numpy()


def _about(store: Datastore) -> dict[str, Any]:
    corpus = np.asarray(store.tokens.ids)
    return {
        "version": 1, "model": store.model, "dimension": store.dimension, "entries": store.size,
        "window": store.window, "stride": store.stride, "corpus": [len(corpus), int(corpus.astype(np.uint64).sum())],
        "bounds": len(store.tokens.bounds),
    }  # fmt: skip


def _claim(store: Datastore) -> None:
    """Says what the folder holds, or checks that it is this.

    Raises:
        DatastoreError: it holds another store.
    """
    path = store.folder / "store.json"
    store.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomic(path, json.dumps(_about(store)))
    try:
        known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise DatastoreError(f"{path} cannot be read.", "Delete the folder to build it anew.") from error
    about = _about(store)
    if known != about:
        other = ", ".join(key for key in about if known.get(key) != about[key])
        raise DatastoreError(f"{store.folder} holds another datastore ({other} differ).", "Choose another folder.")
