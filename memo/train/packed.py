"""Lessons in step: several at once, each packed into a stream of the same length, so that a GPU is busy.

In: lessons. Out: `Packed`: B streams of n windows, and the targets of each lesson; the loss of `sft`, lesson by lesson.
A lesson's documents stand one after the other in its stream, in front of and behind them texts of other lessons, as
many as fill it. Where in a stream a new document begins for the memory is drawn, as in pre-training.

    L = -mean_targets mean_t log p(y_t | memory of the stream, question, y_<t)        (MemoRAG, equation 14)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memo.errors import SettingsError
from memo.memory import MemoryModel
from memo.train import pretrain
from memo.train.lessons import Lesson, elsewhere
from memo.train.loop import drawn
from memo.train.pretrain import begin_windows, behind, read
from memo.train.recipe import Pretraining, Tuning
from memo.train.sft import Encoder, Target
from memo.train.texts import TokenFile


@dataclass(frozen=True)
class Packed:
    """B lessons with S targets each, at most."""

    ids: Tensor  # (B, n * l)
    window: int
    ratios: tuple[int, ...]  # of each window
    begins: tuple[bool, ...]  # whether a window is the first of a document
    rows: Tensor  # (B, S, T) prompts and what is to be said, padded behind
    scored: Tensor  # (B, S, T) which tokens of `rows` count
    kinds: tuple[tuple[str, ...], ...]  # of each lesson's targets; as many as it has

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()


def stream(documents: Sequence[Sequence[int]], others: Sequence[int], length: int, draw: random.Random) -> list[int]:
    """The documents one after the other, other text in front of and behind them. -> `length` ids

    Documents that are longer lose their end.
    """
    own = [token for document in documents for token in document][:length]
    front = draw.randint(0, length - len(own))
    return [*others[:front], *own, *others[front : length - len(own)]]


def padded(targets: Sequence[Sequence[Target]], most: int) -> tuple[Tensor, Tensor]:
    """Rows (B, S, T) and which of their tokens count; S targets a lesson, `most` at most. What is missing is zero."""
    longest = max(len(one.prompt) + len(one.ids) for every in targets for one in every)
    rows = torch.zeros(len(targets), most, longest, dtype=torch.long)
    scored = torch.zeros_like(rows, dtype=torch.bool)
    for b, every in enumerate(targets):
        for s, one in enumerate(every):
            first, end = len(one.prompt), len(one.prompt) + len(one.ids)
            rows[b, s, :end] = torch.tensor(one.prompt + one.ids)
            scored[b, s, first:end] = True
    return rows, scored


def losses(reader: MemoryModel, packed: Packed) -> dict[str, Tensor]:
    """`loss`, the mean over a lesson's targets, (B,); and those of each kind, as many as there are."""
    ids, rows, scored = (one.to(reader.device) for one in (packed.ids, packed.rows, packed.scored))
    windows = ids.split(packed.window, dim=1)
    slots, _ = read(reader, windows, packed.ratios, packed.begins, through_text=False)
    hidden = torch.stack(behind(reader, slots, rows[:, :, :-1].unbind(dim=1)), dim=1)  # (B, S, T - 1, E)
    counted = scored[:, :, 1:]
    nats = reader.surprise(hidden[counted][None], rows[:, :, 1:][counted][None])[0]  # (tokens that count,)
    spread = torch.zeros_like(counted, dtype=nats.dtype).masked_scatter(counted, nats)
    each = spread.sum(dim=2) / counted.sum(dim=2).clamp(min=1)  # (B, S)
    present = counted.any(dim=2)
    found = {"loss": each.sum(dim=1) / present.sum(dim=1)}
    told = [(kind, each[b, s]) for b, every in enumerate(packed.kinds) for s, kind in enumerate(every)]
    for kind in dict.fromkeys(kind for kind, _ in told):
        found[kind] = torch.stack([value for other, value in told if other == kind])
    return found


def groups(reader: MemoryModel, lessons: Sequence[Lesson], plan: Tuning) -> Callable[[int], list[Packed]]:
    """`micro_batches` for the loop, of those lessons that have something to teach.

    Raises:
        SettingsError: fewer lessons than a step needs.
    """
    lessons = [lesson for lesson in lessons if any(q.answers or any(q.clues.values()) for q in lesson.questions)]
    if len(lessons) < plan.batch:
        told = f"{len(lessons)} lessons do not fill a step of {plan.batch}."
        raise SettingsError(told, "Give more, or a smaller batch.")
    encoder = Encoder(reader, plan.most)
    length = plan.windows * plan.window

    def example(lesson: Lesson, draw: random.Random) -> tuple[list[int], list[Target]]:
        other = lessons[draw.randrange(len(lessons))]
        if draw.random() < plan.nothing:
            lesson = elsewhere(lesson, other)
        documents, others = encoder.documents(lesson.documents), list[int]()
        missing = length - sum(map(len, documents))
        while len(others) < missing:
            texts = lessons[draw.randrange(len(lessons))].documents
            others += [token for document in encoder.documents(texts) for token in document]
        targets = encoder.targets(lesson)
        return stream(documents, others, length, draw), draw.sample(targets, min(len(targets), plan.targets))

    def micro_batches(step: int) -> list[Packed]:
        draw = random.Random(f"{plan.seed} step {step}")
        made = [example(lessons[index], draw) for index in drawn(len(lessons), plan, step)]
        ratios = tuple(draw.choice(plan.ratios) for _ in range(plan.windows))
        begins = begin_windows(plan.windows, plan.parted, draw)
        found = []
        for start in range(0, len(made), plan.micro):
            part = made[start : start + plan.micro]
            rows, scored = padded([targets for _, targets in part], plan.targets)
            kinds = tuple(tuple(one.kind for one in targets) for _, targets in part)
            ids = torch.tensor([ids for ids, _ in part])
            found.append(Packed(ids, plan.window, ratios, begins, rows, scored, kinds))
        return found

    return micro_batches


def with_replay(
    reader: MemoryModel, groups: Callable[[int], list[Any]], losses: Callable[[Any], dict[str, Tensor]],
    tokens: TokenFile, plan: Tuning,
) -> tuple[Callable[[int], list[Any]], Callable[[Any], dict[str, Tensor]]]:  # fmt: skip
    """Each step also reads `plan.replay` pieces of texts as in pre-training, so that what it taught is not unlearnt.

    A piece counts as much as a lesson. Lessons alone cost the memory half of what it is worth for plain text.
    """
    micro = math.gcd(plan.micro, plan.replay)
    before = replace(Pretraining(), batch=plan.replay, micro=micro, window=plan.window, seed=plan.seed)
    pieces = pretrain.groups(tokens, before)

    def either(group: Any) -> dict[str, Tensor]:
        return pretrain.losses(reader, group, before) if isinstance(group, pretrain.Batch) else losses(group)

    return lambda step: [*groups(step), *pieces(step)], either
