"""What studying a document harder gains (`memo.train.study`), and what it costs.

In: example documents with questions and answers, numbers of steps. Out: rows; for each text the memory before studying
and after so many steps:

    copy, facts     share of the text's tokens given back, see `probes`
    f1, contains    answers from memory alone to the questions whose evidence was read
    seconds         of studying
    per_minute      what of these was gained over the memory before, divided by the minutes

and, for comparison, copy and facts of the plain model that has the full text. Means over texts, with intervals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memo.answers import memory_prompt
from memo.errors import SettingsError
from memo.evaluate.metrics import contains, f1, interval
from memo.evaluate.probes import NEXT, Case, Context, remembered_alone
from memo.evaluate.rows import Row, Rows
from memo.generate import LocalGenerator, write_all
from memo.library import text_hash
from memo.memory import DocumentMemory, MemoryModel, read_all
from memo.settings import Settings
from memo.train.recipe import Studying
from memo.train.study import study

METRICS = ("copy", "facts", "f1", "contains")
Question = tuple[str, str]  # and its answer


@dataclass(frozen=True)
class Example:
    """A text, and its questions with their evidence."""

    name: str
    text: str
    questions: tuple[tuple[Question, tuple[str, ...]], ...]


def load(path: Path) -> Example:
    """A text, and the `<name>.questions.json` beside it.

    Raises:
        SettingsError: the file of questions holds something else.
    """
    beside = path.with_name(f"{path.stem}.questions.json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))["questions"]
        asked = [((one["question"], one["answer"]), tuple(map(str, one["evidence"]))) for one in found]
    except (ValueError, KeyError, TypeError) as error:
        told = f"{beside.name} holds no questions with answer and evidence."
        raise SettingsError(told, "See assets/examples for how it looks.") from error
    return Example(path.stem, path.read_text(encoding="utf-8"), tuple(asked))


def evaluate(
    examples: Sequence[Example], reader: MemoryModel, settings: Settings, plan: Studying, steps: Sequence[int],
    rows: Rows, tell: Callable[[Any], None] = print,
) -> list[Row]:  # fmt: skip
    """steps: of studying, each number a run of its own. rows: keep what is measured, by text and questions.

    Raises:
        SettingsError: a text is too short, or holds no evidence of any question.
    """
    every = []
    for example in examples:
        tokens = len(reader.encode(example.text)[0]) - 2 * NEXT
        if tokens < NEXT:
            raise SettingsError(f"{example.name} is too short.", f"It needs {3 * NEXT} tokens at least.")
        case = Case(reader, example.name, example.text, tokens, plan.seed)
        read = " ".join(case.text.split())
        questions = [
            one for one, evidence in example.questions
            if evidence and all(" ".join(piece.split()) in read for piece in evidence)
        ]  # fmt: skip
        if not questions:
            raise SettingsError(f"No evidence of its questions stands in {example.name}.", "Choose another text.")
        about = {"text": example.name, "tokens": tokens, "questions": len(questions)}
        identity = text_hash(example.text + repr(example.questions))[:12]
        memory = read_all(reader.memorize(case.text, example.name, settings.ratio, settings.window))
        for count in (0, *steps):
            key = f"{example.name} {identity} {count}"
            if key not in rows.done:
                began = time.monotonic()
                studied = read_all(study(reader, memory, case.text, replace(plan, steps=count))) if count else memory
                seconds = time.monotonic() - began if count else 0.0
                found = measured(reader, case, studied, questions, settings.answer_tokens)
                rows.add(key, [{**about, "steps": count, "slots": memory.slots, "seconds": seconds, **found}])
                tell(rows.done[key][0])
            every += rows.done[key]
        if case.fits:
            every.append({**about, "steps": None, **kept(case, case.full)})
    return summary(every)


def kept(case: Case, context: Context) -> dict[str, float]:
    found = case.measure(context)
    return {"copy": found["copy"], "facts": found["facts"]}


def measured(
    reader: MemoryModel, case: Case, memory: DocumentMemory, questions: Sequence[Question], most: int
) -> dict[str, float]:
    """copy, facts, f1 and contains of one memory."""
    context = remembered_alone(reader, memory)
    prompts = [memory_prompt(question, most, context.slots) for question, _ in questions]
    streams = write_all(LocalGenerator(reader, ""), prompts)
    said = [(stream.text, [answer]) for stream, (_, answer) in zip(streams, questions, strict=True)]
    means = {name: sum(of(text, answers) for text, answers in said) / len(said)
             for name, of in (("f1", f1), ("contains", contains))}  # fmt: skip
    return kept(case, context) | means


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each number of steps the means over texts, and what a minute of studying gained."""
    before = {row["text"]: row for row in rows if row["steps"] == 0}
    found = []
    for steps in dict.fromkeys(row["steps"] for row in rows):
        some = [row for row in rows if row["steps"] == steps]
        one: Row = {"steps": steps, "texts": [row["text"] for row in some]}
        for metric in (*METRICS, "seconds"):
            if metric in some[0]:
                one[metric] = interval([row[metric] for row in some])
        if steps:
            one["per_minute"] = {
                metric: interval([60 * (row[metric] - before[row["text"]][metric]) / row["seconds"] for row in some])
                for metric in METRICS
            }
        found.append(one)
    return found
