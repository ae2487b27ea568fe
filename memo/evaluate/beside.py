"""One question put to a memory: what is answered from it alone, and how much of what is right it would have said.

In: a memory model, the slots of the documents, a question with its answers and the sentence that holds one (both may be
unknown). Out: `Told`. With several weights side by side it shows what a training did to this very question.

    answer_tokens     share of the tokens of the answer that are the top prediction after the memory, the question and
                      the tokens before (as `memory_only` asks)
    evidence_tokens   the same of the sentence, asked for as a quotation is recalled (`memo.clues`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memo.answers import memory_prompt
from memo.attention import Slots
from memo.evaluate.metrics import f1
from memo.generate import LocalGenerator
from memo.memory import MemoryModel, inference
from memo.train import sft
from memo.train.lessons import Asked, Lesson
from memo.train.pretrain import behind
from memo.train.recipe import Tuning

KINDS = {"answer": "answer_tokens", "span": "evidence_tokens"}


@dataclass(frozen=True)
class Told:
    """Measures are None where nothing is known to measure by."""

    answer: str
    f1: float | None = None
    answer_tokens: float | None = None
    evidence_tokens: float | None = None


def ask(
    reader: MemoryModel, slots: Slots, question: str, answers: Sequence[str], sentence: str, tokens: int,
    go_on: Callable[[], None] = lambda: None,
) -> Told:  # fmt: skip
    """Asks. sentence: empty where none is known. tokens: of the answer at most. go_on: what it raises ends it."""
    run = LocalGenerator(reader, "memory").open()
    stream = run.add(memory_prompt(question, tokens, slots))
    while run.step():
        go_on()
    run.close()
    if stream.error:
        raise stream.error
    said = stream.text.strip()
    if not answers:
        return Told(said)
    language = "ko" if re.search("[가-힣]", "".join(answers)) else "en"
    return Told(said, f1(said, answers, language), **recalled(reader, slots, question, answers, sentence))


def recalled(
    reader: MemoryModel, slots: Slots, question: str, answers: Sequence[str], sentence: str
) -> dict[str, float]:
    """The shares of tokens, see above; without a sentence that of the answer alone."""
    clues = {"span": (sentence,)} if sentence else {}
    asked = Asked(question, tuple(answers), (), clues)
    targets = sft.Encoder(reader, Tuning.most).targets(Lesson((), (asked,)))
    rows = [torch.tensor([target.prompt + target.ids], device=reader.device) for target in targets]
    found = {}
    with inference(reader):
        hidden = behind(reader, slots, [row[:, :-1] for row in rows])
        for target, row, one in zip(targets, rows, hidden, strict=True):
            first = len(target.prompt)
            hits = reader.logits(one[0, first - 1 :]).argmax(dim=-1) == row[0, first:]
            found[KINDS[target.kind]] = hits.float().mean().item()
    return found
