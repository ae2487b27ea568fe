"""Study this document harder: the memory of one document is trained itself, to answer as if the text were there.

In: a `DocumentMemory` and the text it was made of. Out: `Lap`s (step, loss), last the memory with other K and V, of the
same size. Nothing else changes: neither the model nor the memory weights.

The K, V of the slots are the parameters. The teacher is the plain model that has a part of the text before it; both
read the same exercises, and the memory learns the teacher's next-token distributions:

    L = mean_t KL( p(. | part of the text, x_<t)  ||  p(. | K, V, x_<t) )

Exercises are of two kinds: stretches of the text to be repeated, and questions that the model itself asks about a part
of the text, with the answers it gives while it sees that part.

Source: after Cartridges (arXiv 2506.06266), whose self-study trains a KV cache on synthetic conversations; there it
starts from the first tokens' K and V, here from a memory, which knows the text already.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memo import clues
from memo.answers import memory_prompt
from memo.attention import Row, Slots, run
from memo.errors import EmptyDocument
from memo.generate import LocalGenerator, Prompt
from memo.memory import DocumentMemory, MemoryModel, inference
from memo.train.loop import learning_rate
from memo.train.pretrain import REPEAT, behind
from memo.train.recipe import Studying
from memo.train.rlgf import sample

WRITE = "Write one question that the text answers."


@dataclass(frozen=True)
class Exercise:
    """What is read after the memory, or after a part of the text: of `ids` those from `first` on are learnt."""

    part: int
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Lap:
    """Progress. loss: nats per token, of this step."""

    step: int
    steps: int
    loss: float


def parts_of(ids: Sequence[int], size: int) -> list[list[int]]:
    """The text in parts of `size` tokens that overlap by half, so that no stretch lies between two."""
    starts = range(0, max(1, len(ids) - size // 2), size // 2)
    return [list(ids[start : start + size]) for start in starts]


def plain_slots(reader: MemoryModel, ids: Sequence[int]) -> Slots:
    """The plain model's K, V of some tokens: what the teacher has before it."""
    row = Row()
    with inference(reader):
        embeddings = reader.model.get_input_embeddings()(torch.tensor([ids], device=reader.device))
        run(reader.model, embeddings, [row])
    layers = range(reader.model.config.num_hidden_layers)
    pairs = [row.own(layer) for layer in layers]
    return Slots([keys for keys, _ in pairs], [values for _, values in pairs], plain=True)


def questions(
    reader: MemoryModel, teacher: Slots, part: int, plan: Studying, draw: torch.Generator
) -> list[Exercise]:
    """Questions that the model asks about a part of the text it has before it, and its answers."""
    generator = LocalGenerator(reader, "")
    ask = Prompt((("system", clues.READER), ("user", WRITE)), 1)
    prompts = plan.questions * [generator.encode(ask)]
    asked = sample(reader, teacher, prompts, plan.asked, plan.temperature, generator.ends, draw)
    texts = [" ".join(reader.tokenizer.decode(ids, skip_special_tokens=True).split()) for ids in asked]
    prompts = [generator.encode(memory_prompt(text, 1)) for text in texts if clues.key_of(text)]
    said = sample(reader, teacher, prompts, plan.answered, plan.temperature, generator.ends, draw) if prompts else []
    return [
        Exercise(part, (*prompt, *answer, generator.end), len(prompt))
        for prompt, answer in zip(prompts, said, strict=True)
    ]


def stretch(reader: MemoryModel, ids: Sequence[int], part: int, plan: Studying, draw: random.Random) -> Exercise:
    """A stretch of a part, to be repeated from its first tokens."""
    cue = reader.encode(REPEAT, start=False)[0]
    size = min(plan.span, len(ids))
    start = draw.randrange(len(ids) - size + 1)
    return Exercise(part, (*cue, *ids[start : start + size]), len(cue) + min(plan.given, size - 1))


def logits(reader: MemoryModel, slots: Slots, exercises: Sequence[Exercise]) -> Tensor:
    """Next-token logits of every token that is to be learnt, after the slots. (n, V)"""
    rows = [torch.tensor([exercise.ids[:-1]], device=reader.device) for exercise in exercises]
    hidden = behind(reader, slots, rows)
    learnt = [one[0, exercise.first - 1 :] for one, exercise in zip(hidden, exercises, strict=True)]
    return reader.logits(torch.cat(learnt))


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits (n, V), the mean over n, in nats."""
    p, q = teacher.float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def study(
    reader: MemoryModel, memory: DocumentMemory, text: str, plan: Studying
) -> Iterator[Lap | DocumentMemory]:
    """Trains a document's memory; yields a `Lap` a step, then the new memory. Closing it stops, and changes nothing.

    Raises:
        WrongModel: another model made the memory. EmptyDocument: there is no text.
    """
    reader.check(memory)
    parts = parts_of(reader.encode(text)[0], plan.part)
    if len(parts[0]) < 2:
        raise EmptyDocument("There is no text to study.")
    keys, values = (tensor[:, None].to(reader.device).float() for tensor in (memory.keys, memory.values))
    # keys and values differ in size, and so does what a step of Adam means for them
    scales = [tensor.std() for tensor in (keys, values)]
    moves = [torch.zeros_like(tensor, requires_grad=True) for tensor in (keys, values)]
    optimizer = torch.optim.Adam(moves, lr=plan.learning_rate, betas=plan.betas)
    draw, generator = random.Random(plan.seed), torch.Generator().manual_seed(plan.seed)
    asked: dict[int, list[Exercise]] = {}
    for step in range(plan.steps):
        part = draw.randrange(len(parts))
        teacher = plain_slots(reader, parts[part])
        if part not in asked:
            asked[part] = questions(reader, teacher, part, plan, generator)
        chosen = [stretch(reader, parts[part], part, plan, draw) for _ in range(plan.stretches)]
        chosen += draw.sample(asked[part], min(len(asked[part]), plan.answers))
        with inference(reader):
            target = logits(reader, teacher, chosen)
        with reader.turn:
            slots = reader.slots(keys + scales[0] * moves[0], values + scales[1] * moves[1])
            loss = divergence(target, logits(reader, slots, chosen))
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        optimizer.step()
        optimizer.zero_grad()
        yield Lap(step + 1, plan.steps, loss.item())
    kept = memory.keys.dtype
    new_keys, new_values = (
        (tensor + scale * move.detach())[:, 0].to("cpu", kept)
        for tensor, scale, move in zip((keys, values), scales, moves, strict=True)
    )
    yield replace(memory, keys=new_keys, values=new_values)
