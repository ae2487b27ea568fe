"""Evicting entries of a KV cache: the published ways to keep M of T entries, to compare the memory with.

In: what a plain prefill of T tokens leaves behind (`prefill`). Out: for each key-value head the M entries it keeps, and
from them `Slots`. Kept keys stay rotated to their first positions; what is read next is at position T. Every score is
computed without knowing what will be asked. With attention a_ij = softmax_j(q_i k_j / sqrt(d)):

    streaming            the first 4 and the last M - 4                         StreamingLLM, arXiv 2309.17453
    every_nth            M at equal distances, the first among them
    key_norm             the lowest ||k_j||                                     arXiv 2406.11430
    snapkv               the last 64, and the highest mean over these i of a_ij,    SnapKV, arXiv 2404.14469
                         averaged over 5 neighbours and over the heads that share k_j
    expected_attention   the first 4, and the highest softmax_j(mu k_j / sqrt(d) + k_j Sigma k_j / 2d) ||v_j||, averaged
                         over these heads: queries ~ N(mu, Sigma)               arXiv 2510.00636

Where the papers leave something open, it is as in kvpress. Shapes: H query heads, J key-value heads, G = H / J, T
tokens that were read, M entries kept, D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d
from transformers import PreTrainedModel

from memo.attention import Row, Slots, rotate, run

SINKS = 4  # first entries that are always kept
OBSERVED = 64  # SnapKV: last tokens, whose attention tells what matters
POOL = 5  # SnapKV: neighbours that are kept together
FUTURE = 512  # expected attention: positions after the text over which the rotation is averaged


@dataclass(frozen=True)
class Layer:
    """One layer's cache, and the queries that read it."""

    model: PreTrainedModel  # turns queries to positions
    keys: Tensor  # (J, T, D), rotated to positions 0 .. T-1
    values: Tensor  # (J, T, D)
    queries: Tensor  # (H, T, D), not rotated

    def grouped(self, x: Tensor) -> Tensor:
        """(H, ...) -> (J, G, ...)"""
        return x.unflatten(0, (len(self.keys), -1))

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Mean (J, G, D) and covariance (J, G, D, D) of the queries to come, turned by the mean of their rotations."""
        queries = self.queries[:, SINKS:].float()  # those of the first tokens are outliers
        mean = queries.mean(dim=1)  # (H, D)
        centred = queries - mean[:, None]
        covariance = centred.transpose(1, 2) @ centred / centred.shape[1]  # (H, D, D)
        count, size = self.keys.shape[1:]
        positions = torch.arange(count, count + FUTURE, device=mean.device)
        basis = torch.eye(size, device=mean.device)[:, None].expand(size, FUTURE, size)
        turned = rotate(self.model, basis, positions).mean(dim=1)  # (D, D): row i is where the i-th unit vector goes
        return self.grouped(mean @ turned), self.grouped(turned.T @ covariance @ turned)


@dataclass(frozen=True)
class Prefill:
    layers: list[Layer]
    hidden: Tensor  # (T, E) the last layer's output

    @property
    def slots(self) -> Slots:
        """The whole cache."""
        keys, values = [layer.keys[None] for layer in self.layers], [layer.values[None] for layer in self.layers]
        return Slots(keys, values, plain=True)


@torch.no_grad()
def prefill(model: PreTrainedModel, ids: Tensor) -> Prefill:
    """Reads ids (T,) in one plain pass, and notes the queries of every layer."""
    noted: list[Tensor] = []
    # the last module that a query goes through before it is rotated
    modules = [getattr(layer.self_attn, "q_norm", layer.self_attn.q_proj) for layer in model.get_decoder().layers]
    hooks = [module.register_forward_hook(lambda _, __, output: noted.append(output[0])) for module in modules]
    row = Row()
    try:
        hidden = run(model, model.get_input_embeddings()(ids[None]), [row])[0]  # (T, E)
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for index, queries in enumerate(noted):
        keys, values = row.own(index)  # (1, J, T, D)
        queries = queries.reshape(len(ids), -1, keys.shape[3]).transpose(0, 1)
        layers.append(Layer(model, keys[0], values[0], queries))
    return Prefill(layers, hidden)


# --- what each method keeps of a layer: (J, M) indices ---------------------------------------------------------------


def streaming(layer: Layer, count: int) -> Tensor:
    """The first 4 and the last M - 4."""
    return _highest(_with_sinks(torch.arange(layer.keys.shape[1], device=layer.keys.device).float()), layer, count)


def every_nth(layer: Layer, count: int) -> Tensor:
    """M at equal distances, from the first on."""
    chosen = torch.arange(count, device=layer.keys.device) * layer.keys.shape[1] // count
    return chosen.expand(len(layer.keys), -1)


def key_norm(layer: Layer, count: int) -> Tensor:
    """The lowest norms of keys: much attention goes to them."""
    return _highest(-layer.keys.float().norm(dim=-1), layer, count)


def snapkv(layer: Layer, count: int) -> Tensor:
    """The last 64, and what they look at."""
    total, size = layer.keys.shape[1:]
    observed = min(OBSERVED, count)
    if observed == total:
        return every_nth(layer, count)
    last = torch.arange(total - observed, total, device=layer.keys.device)
    queries = layer.grouped(rotate(layer.model, layer.queries[:, last], last)).float()  # (J, G, 64, D)
    scores = queries @ layer.keys.float()[:, None].transpose(2, 3) * size**-0.5  # (J, G, 64, T)
    later = torch.arange(total, device=last.device) > last[:, None]
    attention = scores.masked_fill(later, -torch.inf).softmax(dim=-1)[..., : total - observed]
    pooled = avg_pool1d(attention.mean(dim=2), POOL, stride=1, padding=POOL // 2).mean(dim=1)  # (J, T - 64)
    return _highest(torch.cat([pooled, pooled.new_full((len(pooled), observed), torch.inf)], dim=1), layer, count)


def expected_attention(layer: Layer, count: int) -> Tensor:
    """The first 4, and what queries to come are expected to get most from."""
    keys = layer.keys.float()[:, None]  # (J, 1, T, D)
    mean, covariance = layer.expected
    size = keys.shape[-1]
    spread = ((keys @ covariance) * keys).sum(dim=-1)  # (J, G, T)
    scores = (keys @ mean[..., None]).squeeze(-1) * size**-0.5 + spread / size / 2
    # entries that are kept anyway have no part in the softmax
    attention = torch.nn.functional.pad(scores[..., SINKS:].softmax(dim=-1).mean(dim=1), (SINKS, 0))  # (J, T)
    return _highest(_with_sinks(attention * layer.values.float().norm(dim=-1)), layer, count)


def _with_sinks(scores: Tensor) -> Tensor:
    """The first 4 score highest of all."""
    scores = scores.clone()
    scores[..., :SINKS] = torch.inf
    return scores


def _highest(scores: Tensor, layer: Layer, count: int) -> Tensor:
    """Scores (T,) or (J, T) -> the M highest of each head, in text order. (J, M)"""
    return scores.expand(len(layer.keys), -1).topk(count).indices.sort(dim=-1).values


METHODS: dict[str, Callable[[Layer, int], Tensor]] = {
    "streaming": streaming,
    "every_nth": every_nth,
    "key_norm": key_norm,
    "snapkv": snapkv,
    "expected_attention": expected_attention,
}


def evict(read: Prefill, method: str, count: int) -> Slots:
    """The cache without what the method evicts: `count` entries (at most T) of each layer and head."""
    keys, values = [], []
    for layer in read.layers:
        index = METHODS[method](layer, count)[..., None].expand(-1, -1, layer.keys.shape[2])  # (J, M, D)
        keys.append(layer.keys.gather(1, index)[None])
        values.append(layer.values.gather(1, index)[None])
    return Slots(keys, values, plain=True)
