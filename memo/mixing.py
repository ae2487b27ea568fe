"""A Memory Decoder beside the model that answers: what `memo.decoder.Mixed` is to transformers, for our own decoding.

In: the rows of a batch, some of which want the decoder mixed in. Out: next-token logits of all of them. The decoder
reads prompt and answer as the model does, but no memory: it has no slots before its rows.

Source: Memory Decoder (arXiv 2508.09874v2), equation 7.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from memo.attention import Row
from memo.decoder import Router, aligned, interpolate, shares
from memo.decoder_file import ROUTED
from memo.generate import PlainModel, PlainRow
from memo.memory import MemoryModel
from memo.models import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memo.knn import Index


def twin(model: MemoryModel | PlainModel) -> PreTrainedModel:
    """The same weights in modules of their own, which are not changed while memory tokens are read: whoever runs it
    waits for nobody's turn, and nobody waits for it."""
    with model.turn:
        shared = {id(tensor): tensor for tensor in (*model.model.parameters(), *model.model.buffers())}
        return copy.deepcopy(model.model, shared)


class Mixing:
    """The decoder of a `LocalGenerator`.

    alpha: the one that suits it, for whoever does not choose. folder: where it is, with its datastore maybe. router:
    what gives every token an alpha of its own; only where both share their head, else it is not used.
    """

    def __init__(
        self, llm: MemoryModel | PlainModel, decoder: PreTrainedModel, alpha: float, folder: Path | None = None,
        router: Router | None = None,
    ) -> None:  # fmt: skip
        kind = MemoryModel if decoder.config.model_type in FAMILIES else PlainModel
        self.llm, self.memory, self.alpha = llm, kind(decoder, llm.tokenizer), alpha
        ours = isinstance(llm, MemoryModel) and isinstance(self.memory, MemoryModel)
        self.folder = folder
        self.one_head = ours and shares(decoder, llm.model)
        self.router = router if self.one_head else None

    def beside(self, llm: MemoryModel | PlainModel) -> Mixing:
        """The same decoder beside the same model with other memory weights."""
        other = copy.copy(self)
        other.llm = llm
        return other

    @property
    def best(self) -> float:
        """What is mixed in for whoever does not choose: by the router, where there is one, else alpha."""
        return self.alpha if self.router is None else ROUTED

    @cached_property
    def index(self) -> Index | None:
        """The datastore that the decoder was made from; None if it is not there.

        Raises:
            DatastoreError: it is damaged.
        """
        from memo.trace import open_index

        return open_index(twin(self.llm), self.folder) if self.folder is not None else None

    def row(self) -> Row | PlainRow:
        """A sequence of the decoder's."""
        return Row() if isinstance(self.memory, MemoryModel) else PlainRow(self.memory.model)

    def advance(
        self, ids: Tensor, rows: Sequence[Row | PlainRow], others: Sequence[Row | PlainRow | None],
        alphas: Sequence[float],
    ) -> Tensor:  # fmt: skip
        """T tokens of one row, or one of each of B, by both models. ids (B, T) -> logits (B, V)

        others: the decoder's rows; None where it is not mixed in. alphas: `ROUTED` where the router decides (without
        one: the alpha that suits the decoder). The mix has the LLM's scale, log p + log Z, so that it goes over into
        the LLM's logits as alpha goes to zero.
        """
        some = [index for index, other in enumerate(others) if other is not None]
        with_memory, there = ids[some], [others[index] for index in some]
        if self.one_head:
            hidden = [self.llm.hidden(ids, list(rows)), self.memory.hidden(with_memory, there)]
            plain, theirs = self.llm.logits(torch.cat(hidden)).float().split([len(ids), len(some)])
            plain = plain.clone()
        else:
            plain = self.llm.advance(ids, list(rows)).float()
            theirs = aligned(self.memory.advance(with_memory, there).float(), plain.shape[1])
        logp, logp_memory = log_softmax(plain[some], dim=-1), log_softmax(theirs, dim=-1)
        alpha = torch.tensor([[alphas[index]] for index in some], device=plain.device)  # (b, 1)
        if (alpha == ROUTED).any():
            routed = self.alpha if self.router is None else self.router(hidden[0][some], hidden[1], logp, logp_memory)
            alpha = alpha.where(alpha != ROUTED, routed)
        mixed = interpolate(logp, logp_memory, alpha.clamp(0, 1))
        plain[some] = mixed + plain[some].logsumexp(dim=-1, keepdim=True)
        return plain
