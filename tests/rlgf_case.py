"""A lesson with three documents, tiny models and a judge: what the tests of clues, rewards and pairs share."""

import dataclasses

import tiny
import torch

from memo.attention import Row, run
from memo.generate import LocalGenerator
from memo.settings import Settings
from memo.train import rewards, sft
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import Rewarding
from memo.train.setup import trainable

WINDOW, END = 24, 257
SETTINGS = Settings(passage_tokens=50, context_tokens=120, answer_tokens=12)
PLAN = Rewarding(
    steps=2, batch=2, learning_rate=1e-3, window=WINDOW, ratio=4, most=12, samples=4, temperature=0.9, save_every=2,
    anchor=0.0,
)  # fmt: skip
MILL = "Anna Okafor bought the mill in 1887. Its wheel had nine blades of oak."
LAKE = "The lake froze each winter. A flood took the bridge in 1903."
SON = "Her son Piet rebuilt the east wall. He did so stone by stone."
ASKED = Asked("Tell more?", ("Anna Okafor",), ((0, 0, 36), (1, 28, 60)))
LESSON = Lesson((MILL, LAKE, SON), (ASKED,))


def memory_model(family="llama"):
    reader = tiny.memory_model(family)
    reader.weights = trainable(tiny.perturbed(reader.model))
    return reader


def ids_of(reader, *texts):
    return tuple(tuple(reader.encode(text)[0]) for text in texts)


def slots_of(reader, *texts):
    with torch.no_grad():
        return sft.memorize(reader, ids_of(reader, *texts), WINDOW, 4)


def logits_of(reader, slots, ids):
    """Of the token after these, by a reading of all of them behind the memory."""
    with torch.no_grad():
        embeddings = reader.model.get_input_embeddings()(torch.tensor([ids]))
        return reader.logits(run(reader.model, embeddings, [Row(slots)]))[0, -1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def judge_of(generator=None, **changes):
    generator = generator or LocalGenerator(tiny.memory_model(), "tiny")
    return rewards.Judge(tiny.Embedder(), generator, dataclasses.replace(SETTINGS, **changes))
