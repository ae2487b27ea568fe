"""RLGF: the generator's answers tell the memory which clues were good.

In: lessons. First `pairs`: several sets of clues are sampled for a question, each is rewarded (see `rewards`), and the
best and the worst of them are kept. Then `losses` per pair, with y all clues of a set:

    hinge   L = max(0, m - R(y+) + R(y-)),   R(y) = 1/|y| sum_t log p(y_t | memory, question, y_<t)
    dpo     L = -log sigmoid(b [log p(y+) - log p0(y+) - log p(y-) + log p0(y-)]),   p0: the weights at the start

both less a share of R(y+), so that the best set does not become less likely with the worst.

Source: MemoRAG (arXiv 2409.05591v3), section 2.3.2, equation 15, and appendix B, which leave R open: the natural
reading is the mean log-probability of the clues. DPO: arXiv 2305.18290.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memo import clues
from memo.attention import Row, Slots
from memo.errors import SettingsError
from memo.generate import Stream
from memo.memory import MemoryModel, inference
from memo.train import sft
from memo.train.lessons import Lesson
from memo.train.loop import drawn
from memo.train.recipe import Rewarding
from memo.train.rewards import Judge


@dataclass(frozen=True)
class Pair:
    """The best and the worst of the sets of clues that were sampled for a question: kind -> what was written."""

    documents: tuple[str, ...]
    question: str
    best: dict[str, str]
    worst: dict[str, str]
    rewards: tuple[float, ...]  # of every set


# --- sampling --------------------------------------------------------------------------------------------------------


def sample(
    reader: MemoryModel, slots: Slots, prompts: Sequence[Sequence[int]], most: int, temperature: float, ends: set[int],
    draw: torch.Generator,
) -> list[list[int]]:
    """A continuation of each prompt behind a memory, drawn token by token in one batch.

    They are without the token that ended them. A prompt that stands there several times is read once.
    """
    asked = [tuple(prompt) for prompt in prompts]
    read: dict[tuple[int, ...], tuple[Row, Tensor]] = {}
    with inference(reader):
        for prompt in dict.fromkeys(asked):
            row = Row(slots)
            read[prompt] = row, reader.advance(torch.tensor([prompt], device=reader.device), [row])
        rows = [read[prompt][0].fork() for prompt in asked]
        logits = torch.cat([read[prompt][1] for prompt in asked])  # (prompts, V)
        said: list[list[int]] = [[] for _ in rows]
        going = list(range(len(rows)))
        while going:
            chances = (logits.float() / temperature).softmax(dim=-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=draw)[:, 0].tolist()
            for index, token in zip(going, drawn, strict=True):
                said[index].append(token)
            on = [i for i, index in enumerate(going) if drawn[i] not in ends and len(said[index]) < most]
            going = [going[i] for i in on]
            if going:
                last = torch.tensor([[said[index][-1]] for index in going], device=reader.device)
                logits = reader.advance(last, [rows[index] for index in going])
    return [[token for token in one if token not in ends] for one in said]


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs(
    reader: MemoryModel, judge: Judge, lesson: Lesson, plan: Rewarding, reward: str, number: int
) -> Iterator[Pair]:
    """A pair for each question of a lesson of whose sets of clues some were better than others.

    number: of the lesson; what is drawn follows from it.
    """
    encoder, passages = sft.Encoder(reader, plan.most), judge.passages(lesson)
    asked_of = [asked for asked in lesson.questions if asked.answers and (reward != "recall" or asked.evidence)]
    if not asked_of or not passages:
        return
    with inference(reader):
        slots = sft.memorize(reader, encoder.documents(lesson.documents), plan.window, plan.ratio)
    vectors = torch.tensor(judge.embedder.encode([passage.text for passage in passages]))
    draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    for asked in asked_of:
        sets = _sets(reader, encoder, slots, asked.question, plan, draw)
        rewards = []
        for streams in sets:
            recalled = clues.collect(streams, asked.question, None)
            ranking = judge.ranked(asked.question, recalled, passages, vectors)
            rewards.append(judge.reward(reward, lesson, asked, ranking))
        best, worst = max(rewards), min(rewards)
        if best > worst and best - worst >= plan.least_gain:
            better, worse = (_written(sets[rewards.index(one)]) for one in (best, worst))
            yield Pair(lesson.documents, asked.question, better, worse, tuple(rewards))


def _sets(
    reader: MemoryModel, encoder: sft.Encoder, slots: Slots, question: str, plan: Rewarding, draw: torch.Generator
) -> list[dict[str, Stream]]:
    """Several sets of clues, a stream of each kind."""
    asked = [clues.prompt(kind, question, plan.most) for kind in clues.KINDS]
    every = [prompt for prompt in asked for _ in range(plan.samples)]
    said = sample(
        reader, slots, [encoder.generator.encode(prompt) for prompt in every], plan.most, plan.temperature,
        encoder.generator.ends, draw,
    )  # fmt: skip
    streams = []
    for prompt, ids in zip(every, said, strict=True):
        text = prompt.prefix + reader.tokenizer.decode(ids, skip_special_tokens=True)
        streams.append(Stream(prompt, text, done=True, tokens=len(ids)))
    return [dict(zip(clues.KINDS, streams[number :: plan.samples], strict=True)) for number in range(plan.samples)]


def _written(streams: dict[str, Stream]) -> dict[str, str]:
    """What was generated, without the beginnings that were given."""
    return {kind: stream.text.removeprefix(stream.prompt.prefix) for kind, stream in streams.items()}


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group(sft.Documents):
    """A pair in tokens."""

    best: tuple[sft.Target, ...]
    worst: tuple[sft.Target, ...]


def groups(reader: MemoryModel, known: Sequence[Pair], plan: Rewarding) -> Callable[[int], list[Group]]:
    """`micro_batches` for the loop.

    Raises:
        SettingsError: fewer pairs than a step needs.
    """
    if len(known) < plan.batch:
        raise SettingsError(f"{len(known)} pairs do not fill a step of {plan.batch}.", "Make more, or a smaller batch.")
    encoder = sft.Encoder(reader, plan.most)

    def micro_batches(step: int) -> list[Group]:
        made = []
        for pair in (known[index] for index in drawn(len(known), plan, step)):
            best, worst = (encoder.written(pair.question, one) for one in (pair.best, pair.worst))
            made.append(Group(encoder.documents(pair.documents), best, worst))
        return made

    return micro_batches


def hinge(best: Tensor, worst: Tensor, margin: float) -> Tensor:
    """max(0, m - R(y+) + R(y-)) of mean log-probabilities."""
    return (margin - best + worst).clamp(min=0)


def dpo(best: Tensor, worst: Tensor, best_before: Tensor, worst_before: Tensor, beta: float) -> Tensor:
    """-log sigmoid(b [log p(y+) / p0(y+) - log p(y-) / p0(y-)]) of summed log-probabilities."""
    return -torch.nn.functional.logsigmoid(beta * ((best - best_before) - (worst - worst_before)))


def losses(
    reader: MemoryModel, group: Group, plan: Rewarding, before: MemoryModel | None = None
) -> dict[str, Tensor]:
    """`loss`, and R(y+) - R(y-) as `gain`. (1,) each. before: the same model with the weights of the start, for DPO"""
    best, worst = _both(reader, group, plan)
    gain = best.mean() - worst.mean()
    if plan.dpo:
        assert before is not None
        with torch.no_grad():
            best_before, worst_before = _both(before, group, plan)
        loss = dpo(best.sum(), worst.sum(), best_before.sum(), worst_before.sum(), plan.beta)
    else:
        loss = hinge(best.mean(), worst.mean(), plan.margin)
    return {"loss": (loss - plan.anchor * best.mean())[None], "gain": gain[None]}


def _both(reader: MemoryModel, group: Group, plan: Rewarding) -> tuple[Tensor, Tensor]:
    """log p of every token of the best and of the worst set."""
    slots = sft.memorize(reader, group.documents, plan.window, plan.ratio)
    found = sft.log_probs(reader, slots, group.best + group.worst)
    return torch.cat(found[: len(group.best)]), torch.cat(found[len(group.best) :])


# --- files -----------------------------------------------------------------------------------------------------------


def load(path: Path) -> list[Pair]:
    """The pairs of a file of rows that `memo train pairs` wrote.

    Raises:
        SettingsError: it cannot be read, or holds something else.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header, *units = map(json.loads, file)
        dict(header["about"])
        return [_pair(one) for unit in units for one in unit["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is no file of pairs.", "Make it with: python -m memo train pairs.") from error


def _pair(one: dict[str, Any]) -> Pair:
    if not isinstance(one["documents"], list) or not all(isinstance(one[name], dict) for name in ("best", "worst")):
        raise ValueError("no pair")
    return Pair(tuple(one["documents"]), one["question"], one["best"], one["worst"], tuple(one["rewards"]))
