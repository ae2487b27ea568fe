"""Attention over a memory: what a token may see, at which position, and with whose Q, K, V weights.

In: hidden states of one sequence (reading), or one new token of each of several sequences (generating).
Out: hidden states, with K and V appended to each sequence's `Row`. Any transformers model whose layers have
`q_proj, k_proj, v_proj` and rotary positions works unchanged (Llama, Mistral, Qwen2, Qwen3 ...): we register one
attention function, which it calls in every layer.

Source: MemoRAG (arXiv 2409.05591v3), section 2.3, equations 7 to 12. For a window X and its memory tokens Xm:

    Q, K, V    = X W_Q, X W_K, X W_V                 the frozen weights
    Qm, Km, Vm = Xm W_Qm, Xm W_Km, Xm W_Vm           the memory weights
    A          = softmax([Q; Qm] [Km_cache; K; Km]^T / sqrt(d)) [Vm_cache; V; Vm]

Shapes: B sequences, H query heads, J key-value heads, G = H / J, T new tokens, M memory slots, N own tokens,
D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from memo.adapter import Adapter, rank_of
from memo.errors import ModelError

NAME = "memo"  # the attention function's name in a model's configuration
ROOM = 128  # a row's K, V grow by this many tokens at a time


class Slots:
    """K and V of the memory tokens a sequence may look at; only ever read.

    keys, values: per layer (1, J, M, D), keys rotated to positions 0 .. M-1; (B, J, M, D) for texts read in step.
    plain: they are those of a text's own tokens, as a plain cache holds them.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], plain: bool = False) -> None:
        self.keys, self.values, self.plain = keys, values, plain

    def __len__(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0


class Row:
    """One sequence: the slots before it, and the K, V of its own tokens, which follow the slots in position.

    Or B sequences of the same length that are read in step, as in training: all shapes then begin with B for 1.
    """

    def __init__(self, slots: Slots | None = None, watch: bool = False) -> None:
        self.slots = slots if slots is not None and len(slots) else None
        self.length = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        # (layers, M) attention on the slots, the mean over heads, added up over single tokens, and over the tokens that
        # are read while `looking`; None: not wanted
        self.mass: Tensor | None = None
        self.looking = False
        if watch and self.slots is not None:
            self.mass = torch.zeros(len(slots.keys), len(slots), device=slots.keys[0].device)

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self.length + (len(self.slots) if self.slots is not None else 0)

    @property
    def remembers(self) -> bool:
        """Whether there is a memory before it, and no plain cache."""
        return self.slots is not None and not self.slots.plain

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (1, J, T, D) to a layer; returns all own K, V (1, J, N+T, D) of that layer."""
        end = self.length + key.shape[2]
        if layer not in self._keys:
            self._keys[layer], self._values[layer] = key, value
        elif torch.is_grad_enabled():  # writing in place would break the graph
            self._keys[layer] = torch.cat([self._keys[layer][:, :, : self.length], key], dim=2)
            self._values[layer] = torch.cat([self._values[layer][:, :, : self.length], value], dim=2)
        else:
            for store, new in ((self._keys, key), (self._values, value)):
                held = store[layer]
                if held.shape[2] < end:
                    room = held.new_empty(*held.shape[:2], end + ROOM, held.shape[3])
                    room[:, :, : self.length] = held[:, :, : self.length]
                    store[layer] = held = room
                held[:, :, self.length : end] = new
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def fork(self) -> Row:
        """A sequence that has read the same, and goes on by itself. Without `mass`."""
        other = Row(self.slots)
        other.length = self.length
        other._keys = {layer: keys.clone() for layer, keys in self._keys.items()}
        other._values = {layer: values.clone() for layer, values in self._values.items()}
        return other

    def own(self, layer: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """K, V (1, J, length - start, D) of the own tokens from `start` on."""
        return self._keys[layer][:, :, start : self.length], self._values[layer][:, :, start : self.length]


def causal(row: Row, count: int, device: torch.device) -> Tensor | None:
    """What `count` new tokens see: the slots, the own tokens before, and each other causally. (T, M+N+T), True = seen.

    None stands for plain causal attention from the first position on.
    """
    if row.position == 0:
        return None
    return torch.ones(count, row.position + count, dtype=torch.bool, device=device).tril(row.position)


def beside(row: Row, places: Tensor) -> Tensor:
    """What memory tokens see: the slots, the raw tokens before their place, and themselves. True = seen.

    places: (B, k) indices of the raw tokens (the row's own, N of them) they sit at. -> (B, 1, k, M+N+k)
    """
    slots, own, (batch, count) = row.position - row.length, row.length, places.shape
    device = places.device
    memory = torch.ones(batch, count, slots, dtype=torch.bool, device=device)
    before = torch.arange(own, device=device) < places[:, :, None]  # (B, k, N)
    itself = torch.eye(count, dtype=torch.bool, device=device).expand(batch, -1, -1)
    return torch.cat([memory, before, itself], dim=2)[:, None]


def _within(visible: Tensor | None, count: int, total: int, window: int | None, device: torch.device) -> Tensor | None:
    """Also hides what lies further back than a sliding window (in positions)."""
    if window is None or total <= window:
        return visible
    if visible is None:
        visible = torch.ones(count, total, dtype=torch.bool, device=device).tril(total - count)
    # a token sees what is before it and itself: how many of these follow a key tells how far back it lies
    following = visible.flip(-1).cumsum(dim=-1).flip(-1)  # (T, M+N+T), the key itself counted
    return visible & (following <= window)


def _read(row: Row, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, visible: Tensor | None,
          window: int | None) -> Tensor:  # fmt: skip
    """T new tokens of one sequence, or of B in step. query (B, H, T, D) -> (B, H, T, D)."""
    keys, values = row.append(layer, key, value)
    if row.slots is None and visible is None and query.shape[2] == 1:
        # one token sees everything: its heads are the queries, (B, J, G, D)
        start = 0 if window is None else max(0, keys.shape[2] - window)
        packed = query.view(len(query), keys.shape[1], -1, query.shape[3])
        out = scaled_dot_product_attention(packed, keys[:, :, start:], values[:, :, start:], scale=scaling)
        return out.view(query.shape)
    if row.slots is not None:
        keys = torch.cat([row.slots.keys[layer], keys], dim=2)
        values = torch.cat([row.slots.values[layer], values], dim=2)
    visible = _within(visible, query.shape[2], keys.shape[2], window, query.device)
    group = query.shape[1] // keys.shape[1]
    if group > 1:  # the fast kernels want as many key heads as query heads
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    if row.looking and row.mass is not None and visible is not None:
        scores = (query.float() * scaling) @ keys.float().transpose(2, 3)  # (1, H, T, M+N+T)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        row.mass[layer] += weights[0, :, :, : row.mass.shape[1]].mean(dim=0).sum(dim=0)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=visible, is_causal=visible is None and query.shape[2] > 1, scale=scaling
    )


def _recall(rows: list[Row], layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One new token of each of R sequences that share their slots: the slots are read once for all of them.

    query (R, H, 1, D) -> (R, H, 1, D). The softmax runs over [slots; own tokens], in float32.
    """
    slots = rows[0].slots
    assert slots is not None
    count, heads, _, size = query.shape
    kv_heads = key.shape[1]
    grouped = (query.view(count, kv_heads, -1, size) * scaling).float()  # (R, J, G, D)
    shared = grouped.transpose(0, 1).reshape(kv_heads, -1, size)  # (J, R*G, D)
    on_slots = shared @ slots.keys[layer][0].float().transpose(1, 2)  # (J, R*G, M)
    on_slots = on_slots.view(kv_heads, count, -1, len(slots)).transpose(0, 1)  # (R, J, G, M)
    outputs, weights = [], []
    for index, row in enumerate(rows):
        keys, values = row.append(layer, key[index : index + 1], value[index : index + 1])
        on_own = grouped[index] @ keys[0].float().transpose(1, 2)  # (J, G, N)
        weight = torch.cat([on_slots[index], on_own], dim=-1).softmax(dim=-1)  # (J, G, M+N)
        weights.append(weight[..., : len(slots)])
        outputs.append(weight[..., len(slots) :] @ values[0].float())  # (J, G, D)
        if row.mass is not None:
            row.mass[layer] += weights[-1].mean(dim=(0, 1))
    shared = torch.stack(weights, dim=1).reshape(kv_heads, -1, len(slots))  # (J, R*G, M)
    from_slots = (shared @ slots.values[layer][0].float()).view(kv_heads, count, -1, size).transpose(0, 1)
    return (torch.stack(outputs) + from_slots).reshape(count, heads, 1, size).to(query.dtype)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           scaling: float | None = None, rows: list[Row] | None = None, visible: Tensor | None = None,
           sliding_window: int | None = None, **rest: Any) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function transformers calls in every layer. query (B, H, T, D) -> ((B, T, H, D), None).

    Without `rows` it is transformers' own attention. With them: one row reads T tokens, or each of B rows one.
    """
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **rest
        )
    layer, scaling = module.layer_idx, scaling or query.shape[-1] ** -0.5
    if len(rows) == 1 and (len(query) > 1 or query.shape[2] > 1 or visible is not None):
        out = _read(rows[0], layer, query, key, value, scaling, visible, sliding_window)
        return out.transpose(1, 2).contiguous(), None
    out = torch.empty_like(query)  # (B, H, 1, D)
    sharing: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if row.slots is not None and (sliding_window is None or row.position < sliding_window):
            sharing.setdefault(id(row.slots), []).append(index)
        else:
            one = slice(index, index + 1)
            out[one] = _read(row, layer, query[one], key[one], value[one], scaling, None, sliding_window)
    for indices in sharing.values():
        members = [rows[i] for i in indices]
        out[indices] = _recall(members, layer, query[indices], key[indices], value[indices], scaling)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Makes `attend` known to transformers, under `NAME`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def run(model: PreTrainedModel, embeddings: Tensor, rows: list[Row], positions: Tensor | None = None,
        visible: Tensor | None = None) -> Tensor:  # fmt: skip
    """One pass through the layers. embeddings (B, T, E) -> hidden states (B, T, E); the rows grow by T tokens.

    positions: (B, T), where each row goes on by default. visible: (T, M+N+T), causal by default; one row only.
    """
    count, device = embeddings.shape[1], embeddings.device
    if positions is None:
        starts = torch.tensor([row.position for row in rows], device=device)
        positions = starts[:, None] + torch.arange(count, device=device)
    if visible is None and len(rows) == 1 and count > 1:
        visible = causal(rows[0], count, device)
    decoder = model.get_decoder()
    hidden = decoder(
        inputs_embeds=embeddings, position_ids=positions, use_cache=False, rows=rows, visible=visible
    ).last_hidden_state
    for row in rows:
        row.length += count
    return hidden


class MemoryWeights(nn.Module):
    """W_Qm, W_Km, W_Vm of every layer, and the vector added to a memory token's embedding.

    They start as copies of the frozen weights and a zero vector: then a memory token's K and V are those of the text
    token it sits at, so at ratio 1 the memory is the full cache. Training moves them from there, and may add an
    adapter for the reader.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in model.get_decoder().layers:
            copies = nn.ModuleDict()
            for name in PROJECTIONS:
                frozen = getattr(layer.self_attn, name)
                linear = nn.Linear(
                    frozen.in_features, frozen.out_features, frozen.bias is not None,
                    device=frozen.weight.device, dtype=frozen.weight.dtype,
                )  # fmt: skip
                linear.load_state_dict(frozen.state_dict())
                copies[name] = linear
            self.layers.append(copies)
        embedding = model.get_input_embeddings().weight
        self.vector = nn.Parameter(torch.zeros_like(embedding[0]))  # (E,)
        self.adapter: Adapter | None = None  # of the reader while it recalls, where one was trained

    @classmethod
    def load(cls, path: Path, model: PreTrainedModel) -> MemoryWeights:
        """Trained memory weights of this model: a safetensors file that `save` wrote, or a folder of its parts.

        Raises:
            ModelError: no such file, or weights of another model.
        """
        weights, state = cls(model).requires_grad_(False), {}
        try:
            for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
                state |= load_file(file)
            if rank := rank_of(state):
                weights.adapter = Adapter(model, rank).requires_grad_(False)
            weights.load_state_dict(state)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"The memory weights {path.name} do not fit this model, or cannot be read.") from error
        return weights

    def save(self, path: Path) -> None:
        """Writes them as one safetensors file, atomically."""
        temporary = path.with_name(f".{path.name}.tmp")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary)
        temporary.replace(path)


PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@contextmanager
def memory_projections(model: PreTrainedModel, weights: MemoryWeights) -> Iterator[None]:
    """Within it the model projects with the memory weights; the frozen ones are back afterwards, come what may.

    The model is changed for everybody meanwhile: whoever shares it among threads holds its lock (`memory.Turn`).
    """
    layers = model.get_decoder().layers
    frozen = [{name: getattr(layer.self_attn, name) for name in PROJECTIONS} for layer in layers]
    try:
        for layer, own in zip(layers, weights.layers, strict=True):
            for name in PROJECTIONS:
                setattr(layer.self_attn, name, own[name])
        yield
    finally:
        for layer, own in zip(layers, frozen, strict=True):
            for name in PROJECTIONS:
                setattr(layer.self_attn, name, own[name])


def rotate(model: PreTrainedModel, keys: Tensor, positions: Tensor, back: bool = False) -> Tensor:
    """Keys (..., n, D) moved from position 0 to `positions` (n,), or back from there to position 0.

    Or keys (B, J, n, D) to positions (B, n), which differ by text.

    RoPE turns pairs of dimensions by an angle proportional to the position, so turning by the negative angle undoes
    it; a model that scales its cosines and sines (YaRN) scales keys too, which `back` divides out. In float32.
    """
    x = keys.float()
    cos, sin = model.get_decoder().rotary_emb(x, positions.view(-1, positions.shape[-1]))  # (1 or B, n, D)
    cos, sin = (cos[0], sin[0]) if positions.dim() == 1 else (cos[:, None], sin[:, None])
    left, right = x.chunk(2, dim=-1)
    half = torch.cat([-right, left], dim=-1)
    if back:
        return ((x * cos - half * sin) / (cos * cos + sin * sin)).to(keys.dtype)
    return (x * cos + half * sin).to(keys.dtype)
