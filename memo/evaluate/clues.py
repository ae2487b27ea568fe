"""What several memory weights recall for the same questions, side by side.

In: lessons (`memo train lessons`) that none of the weights was trained on, and the weights. Out: means with intervals,
and paired differences of each weights from those before them:

    loss        -mean_t log p(y_t | memory, question, y_<t) of the lessons' clues and answers: what SFT minimizes
    recall      share of the evidence among the first three passages that question and clues find, all clues together
                weighing as much as the question: what RLGF rewards
    in_use      the same with the weight that clues have in answering
    f1          of what the reader answers from memory alone
    contains    whether that holds the answer

and, the same for all of them, `question`: the recall of the question alone. Clues are recalled greedily, as the app
does. Pointers, and names that lead on, which the index finds, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from memo import answers, clues
from memo.errors import NothingToAsk
from memo.evaluate.metrics import contains, f1, interval
from memo.evaluate.rows import Row, Rows
from memo.generate import LocalGenerator, Prompt, write_all
from memo.memory import MemoryModel, inference
from memo.settings import Settings
from memo.train import sft
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import Tuning
from memo.train.rewards import Judge

METRICS = ("loss", "recall", "in_use", "f1", "contains")


def evaluate(
    sets: Mapping[str, Sequence[Lesson]], readers: Mapping[str, MemoryModel], judge: Judge, settings: Settings,
    rows: Rows, tell: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """sets: name -> lessons with evidence and answers. readers: name -> a model with those weights. rows: keeps them.

    -> `sets` (questions of each), `weights` (name -> metric -> interval, over all questions and by set), `against`
    (name -> those before it -> metric -> interval of the difference). The intervals draw lessons.

    Raises:
        NothingToAsk: a set has no question with answer and evidence.
    """
    for label, lessons in sets.items():
        if not any(map(asked, lessons)):
            raise NothingToAsk(f"{label} has no question with answer and evidence.", "Choose other lessons.")
    found: dict[str, list[Row]] = {}
    for name, reader in readers.items():
        for label, lessons in sets.items():
            for number, lesson in enumerate(lessons):
                key = f"{reader.weights_fingerprint} {label} {number}"
                if key not in rows.done:
                    rows.add(key, measure(reader, judge, lesson, settings))
                found.setdefault(name, []).extend(
                    {"set": label, "lesson": f"{label} {number}", **row} for row in rows.done[key]
                )
            tell(f"{name}: {label} is measured.")
    names = list(found)
    return {
        "sets": {label: sum(len(asked(lesson)) for lesson in lessons) for label, lessons in sets.items()},
        "weights": {name: {"all": summary(found[name]), **by_set(found[name])} for name in names},
        "against": {
            name: {other: {"all": summary(found[name], found[other]), **by_set(found[name], found[other])}
                   for other in names[:number]}
            for number, name in enumerate(names) if number
        },
    }  # fmt: skip


def asked(lesson: Lesson) -> list[Asked]:
    """The questions of a lesson that can be measured."""
    return [one for one in lesson.questions if one.answers and one.evidence]


def measure(reader: MemoryModel, judge: Judge, lesson: Lesson, settings: Settings) -> list[Row]:
    """A row for each question of a lesson; all its clues and answers are generated in one batch."""
    questions = asked(lesson)
    if not questions:
        return []
    encoder, generator = sft.Encoder(reader, Tuning.most), LocalGenerator(reader, "")
    with inference(reader):
        slots = sft.memorize(reader, encoder.documents(lesson.documents), settings.window, settings.ratio)
    prompts: list[dict[str, Prompt]] = []
    for one in questions:
        every = {kind: clues.prompt(kind, one.question, settings.clue_tokens, slots=slots, stop_at=2 * clues.LINES)
                 for kind in clues.KINDS}  # fmt: skip
        prompts.append({**every, "answer": answers.memory_prompt(one.question, settings.answer_tokens, slots)})
    finished = iter(write_all(generator, [prompt for every in prompts for prompt in every.values()]))
    streams = [{kind: next(finished) for kind in every} for every in prompts]
    in_use = Judge(judge.embedder, judge.generator, judge.settings, answers.CLUE_WEIGHT)
    passages = judge.passages(lesson)
    vectors = torch.tensor(judge.embedder.encode([passage.text for passage in passages]))
    rows = []
    for one, written in zip(questions, streams, strict=True):
        said = written.pop("answer").text
        recalled = clues.collect(written, one.question, None)
        finds = {name: by.reward("recall", lesson, one, by.ranked(one.question, found, passages, vectors))
                 for name, by, found in (("question", judge, ()), ("recall", judge, recalled),
                                         ("in_use", in_use, recalled))}  # fmt: skip
        targets = encoder.targets(Lesson(lesson.documents, (one,)))
        with inference(reader):
            loss = -torch.stack([each.mean() for each in sft.log_probs(reader, slots, targets)]).mean().item()
        rows.append({**finds, "loss": loss, "f1": f1(said, one.answers), "contains": contains(said, one.answers)})
    return rows


def summary(rows: Sequence[Row], others: Sequence[Row] | None = None) -> dict[str, Any]:
    """Metric -> interval of its mean; of the mean difference from `others`, which are of the same questions."""
    found = {}
    for metric in METRICS if others else ("question", *METRICS):
        values = [row[metric] for row in rows]
        if others:
            values = [value - other[metric] for value, other in zip(values, others, strict=True)]
        found[metric] = interval(values, [row["lesson"] for row in rows])
    return found


def by_set(rows: Sequence[Row], others: Sequence[Row] | None = None) -> dict[str, Any]:
    """The same for each set."""
    found = {}
    for label in dict.fromkeys(row["set"] for row in rows):
        mine = [i for i, row in enumerate(rows) if row["set"] == label]
        found[label] = summary([rows[i] for i in mine], [others[i] for i in mine] if others else None)
    return found
