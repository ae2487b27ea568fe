"""The recall adapter: a small LoRA on the reader, active only while it reads and writes behind a finished memory.

In: a frozen model, a rank r. Out: for every linear map W of its layers two small matrices, with which

    W x  becomes  W x + s B A x,    A (r, in), B (out, r), s = 2

B starts at zero: then nothing changes. A very small reader does not know how to draw clues from memory tokens, however
good they are; the adapter learns that. Documents, while they are memorized, and passages are read by the frozen model,
bit for bit.

Source: LoRA (arXiv 2106.09685), on all linear maps as in QLoRA (arXiv 2305.14314). MemoRAG trains all of its memory
model; here the weights of the reader are shared with the generator, which must stay what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

SCALE = 2.0


class LowRank(nn.Module):
    """s B A of one linear map."""

    def __init__(self, frozen: nn.Linear, rank: int, draw: torch.Generator) -> None:
        super().__init__()
        like = {"device": frozen.weight.device, "dtype": frozen.weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features, **like))  # A (r, in)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank, **like))  # B (out, r)
        nn.init.kaiming_uniform_(self.down, a=5**0.5, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        return SCALE * linear(linear(x, self.down), self.up)

    def added(self, rows: Tensor | None, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """A forward hook of the frozen map, for some sequences of the batch (None: for all)."""
        if rows is None:
            return output + self(inputs[0])
        return output.index_add(0, rows, self(inputs[0][rows]))


class Adapter(nn.Module):
    """A `LowRank` for every linear map of every layer."""

    def __init__(self, model: PreTrainedModel, rank: int) -> None:
        super().__init__()
        draw = torch.Generator(model.device).manual_seed(0)
        self.layers = nn.ModuleList(
            # a name in a ModuleDict has no dots
            nn.ModuleDict({name.replace(".", "/"): LowRank(one, rank, draw) for name, one in _linears(layer)})
            for layer in model.get_decoder().layers
        )

    @contextmanager
    def on(self, model: PreTrainedModel, rows: Tensor | None = None) -> Iterator[None]:
        """Within it the model's layers have the adapter; nothing of it is left afterwards, come what may.

        rows: the sequences of the batch that are read with it (default all), the others by the frozen model.

        The model is changed for everybody meanwhile: whoever shares it among threads holds its lock (`memory.Turn`).
        """
        hooks = [
            layer.get_submodule(name.replace("/", ".")).register_forward_hook(partial(low.added, rows))
            for layer, own in zip(model.get_decoder().layers, self.layers, strict=True)
            for name, low in own.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def rank_of(state: Mapping[str, Tensor]) -> int:
    """The rank of the adapter among saved weights; 0 where there is none."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith(".down")), 0)


def _linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, one) for name, one in layer.named_modules() if isinstance(one, nn.Linear)]
