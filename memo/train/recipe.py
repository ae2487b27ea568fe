"""Every number of the training: the plans of the stages, and the recipe that made the shipped weights.

In: nothing, or folders. Out: frozen dataclasses; the command line changes single fields of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from memo.errors import SettingsError


@dataclass(frozen=True)
class Plan:
    """What the loop needs of any stage."""

    steps: int
    batch: int  # examples a step, over all processes
    micro: int  # examples that are read together
    learning_rate: float
    warmup: float = 0.03  # share of the steps in which the learning rate rises
    final: float = 0.1  # share of the learning rate that is left at the end (cosine)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # the gradient's norm at most
    save_every: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Pretraining(Plan):
    """Next tokens and repeated stretches, see `pretrain`."""

    steps: int = 340
    batch: int = 1
    micro: int = 1
    learning_rate: float = 1e-3
    window: int = 512
    windows: int = 8  # of a piece at most
    least: int = 3  # of a piece at least
    ratios: tuple[int, ...] = (2, 4, 8, 8, 16, 32)  # each window's is drawn from these
    parted: float = 0.3  # share of the batches whose pieces are read as several documents
    spans: int = 2  # stretches to repeat a window
    span: tuple[int, int] = (32, 96)  # their tokens
    given: tuple[int, int] = (4, 12)  # how many of them are given
    next_weight: float = 0.5  # of the next-token loss; the repeated stretches have 1
    through: int = 0  # 1: gradients through the text's own reading too, and the next-token loss of every window
    rank: int = 0  # of an adapter of the reader that is trained along, where the weights have none yet; 0: none

    def kept(self, windows: int) -> int:
        """How many windows of a piece are memorized: where its last one is only predicted, all but that."""
        return windows - (not self.through and self.next_weight > 0)


@dataclass(frozen=True)
class Tuning(Plan):
    """SFT on lessons, see `sft`."""

    steps: int = 100
    batch: int = 4
    micro: int = 1  # lessons differ in length
    learning_rate: float = 5e-4
    window: int = 512
    ratios: tuple[int, ...] = (4, 8, 8, 16)
    most: int = 48  # tokens of a target
    nothing: float = 0.1  # share of the lessons with a question that their documents do not answer
    rank: int = 16  # of the reader's adapter, where the weights have none yet; 0: none is added
    windows: int = 0  # of the stream a lesson is packed into, see `packed`; 0: lessons are read one by one, as they are
    parted: float = 0.3  # share of the packed batches whose streams are read as several documents
    targets: int = 6  # of a packed lesson, at most
    replay: int = 0  # pieces of pre-training that each step reads beside its lessons (of the texts in --texts)


REWARDS = ("recall", "likelihood", "f1")  # what makes clues good, see `rewards`


@dataclass(frozen=True)
class Rewarding(Plan):
    """RLGF: pairs of sampled clues, see `rlgf`."""

    steps: int = 30
    batch: int = 4
    micro: int = 1
    learning_rate: float = 1e-4
    window: int = 512
    ratio: int = 8
    most: int = 40  # tokens of a kind of clues
    samples: int = 6  # sets of clues a question
    temperature: float = 0.8
    clue_weight: float = 1.0  # of all clues together where they are rewarded; the question has 1
    least_gain: float = 0.05  # reward of the best less that of the worst set, for a pair
    dpo: int = 0  # 1: DPO in place of the hinge
    margin: float = 1.0  # of the hinge
    beta: float = 0.1  # of DPO
    anchor: float = 0.1  # weight of log p of the best set


@dataclass(frozen=True)
class General(Plan):
    """A small decoder learns what the language model says of texts of all kinds, see `general`."""

    steps: int = 1000
    batch: int = 16
    micro: int = 4
    learning_rate: float = 1e-3
    save_every: int = 100
    window: int = 1024
    layers: int = 4  # of the language model that it starts from


@dataclass(frozen=True)
class Distilling(Plan):
    """A Memory Decoder learns a datastore's distributions, see `distill`."""

    steps: int = 400
    batch: int = 8
    micro: int = 4
    learning_rate: float = 1e-3
    save_every: int = 100
    layers: int = 4  # of the language model that the decoder starts from, where it has nothing else to
    kl_weight: float = 0.5  # beta of the paper: of KL(p_kNN || p_Mem); the rest is of -log p_Mem of the corpus


@dataclass(frozen=True)
class Studying(Plan):
    """One document's memory as the parameters, see `study`."""

    steps: int = 200
    batch: int = 1
    micro: int = 1
    learning_rate: float = 2e-2  # in standard deviations of keys and of values
    part: int = 1024  # tokens of the text that the teacher has before it
    stretches: int = 4  # a step
    span: int = 64  # tokens of a stretch
    given: int = 8  # how many of them are given
    questions: int = 4  # that are asked about a part
    answers: int = 2  # a step
    asked: int = 32  # tokens of a question at most
    answered: int = 48  # tokens of an answer at most
    temperature: float = 0.8


# What the shipped weights were made with: texts, with the tokens of each at most, question sets for lessons, and what
# differs from the plans above. One H200 read 16 pieces and 32 lessons at once (`--set micro=16`, `micro=32`); the
# gradient is the same however many are read together.
TEXTS = (
    "books:train@5000000", "court_opinions:train@1200000", "fed:train@1200000", "factbook:train@1000000",
    "us_speeches:train", "wikitext2:train@2000000", "scisumm:train@1500000", "cuad:train@1200000",
    "qmsum:train@1000000", "fairytaleqa:train", "medquad:train@1000000",
)  # fmt: skip
LESSONS = (
    "2wiki --split train_small", "hotpotqa --split train_small", "musique --split train_small",
    "squad --split train_part_v1.1 --context group", "fairytaleqa --split train --context group",
    "qmsum --split train --context group",
)  # fmt: skip
PRETRAINED = ("steps=90", "batch=16", "rank=16")
TUNED = ("steps=65", "batch=32", "learning_rate=7e-4", "windows=4", "replay=12")
# lessons of each set from which clues are sampled for pairs; those of a long document have several questions
PAIRED = {"2wiki": 60, "hotpotqa": 30, "musique": 30, "squad": 10, "fairytaleqa": 10, "qmsum": 20}


def recipe(data: str, out: str) -> list[list[str]]:
    """The commands, in order: words behind `memo train`. data: the folder of all sets. out: of all runs.

    The weights that are shipped say in their card after which of them they were taken.
    """
    known = [f"{out}/{line.split()[0]}.jsonl" for line in LESSONS]
    texts = [f"{data}/{text}" for text in TEXTS]
    commands = [["pretrain", "--data", *texts, *_set(PRETRAINED), "--out", f"{out}/pretrain"]]
    for line, file in zip(LESSONS, known, strict=True):
        name, *more = line.split()
        commands.append(["lessons", "--data", f"{data}/{name}", *more, "--most", "1536", "--out", file])
    pretrained, tuned = f"{out}/pretrain/weights.safetensors", f"{out}/sft/weights.safetensors"
    sft = ["sft", "--data", *known, "--texts", *texts, *_set(TUNED), "--start", pretrained, "--out", f"{out}/sft"]
    commands.append(sft)
    paired = [f"{out}/pairs-{name}.jsonl" for name in PAIRED]
    for (name, limit), file in zip(PAIRED.items(), paired, strict=True):
        lessons = f"{out}/{name}.jsonl"
        commands.append(["pairs", "--data", lessons, "--limit", str(limit), "--start", tuned, "--out", file])
    return [*commands, ["rlgf", "--data", *paired, "--start", tuned, "--out", f"{out}/rlgf"]]


def _set(changes: tuple[str, ...]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


MAY_BE_ZERO = (
    "warmup", "final", "weight_decay", "seed", "parted", "spans", "next_weight", "nothing", "dpo", "anchor",
    "least_gain", "through", "rank", "replay", "windows", "kl_weight",
)  # fmt: skip


def checked(plan: Plan) -> Any:
    """The plan, if it can be run.

    Raises:
        SettingsError: a number that it cannot have.
    """
    for one in fields(plan):
        value = getattr(plan, one.name)
        numbers = value if isinstance(value, tuple) else (value,)
        least = 0 if one.name in MAY_BE_ZERO else 1 if isinstance(numbers[0], int) else 1e-12
        if any(not math.isfinite(number) or number < least for number in numbers):
            raise SettingsError(f"{one.name} is {value!r} in the plan.", "It must be larger.")
    for name in ("betas", "span", "given"):
        value = getattr(plan, name, None)
        if isinstance(value, tuple) and len(value) != 2:
            raise SettingsError(f"{name} is {value!r} in the plan.", "It must be two numbers.")
    if plan.batch % plan.micro:
        raise SettingsError(f"A batch of {plan.batch} is no multiple of micro, {plan.micro}.")
    if isinstance(plan, Pretraining):
        kept = plan.kept(plan.least)
        if not plan.given[0] <= plan.given[1] < plan.span[0] <= plan.span[1] <= kept * plan.window:
            told = f"given {plan.given}, span {plan.span} and {kept} windows of {plan.window} do not go together."
            raise SettingsError(told, "Each must be at most the next: given, span, what is read of the shortest piece.")
        if not plan.least <= plan.windows or not (plan.spans or plan.next_weight):
            raise SettingsError("The plan has more least than windows, or neither spans nor a next_weight.")
    return plan
