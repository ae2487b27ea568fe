"""What a Memory Decoder changes beyond perplexity: facts of the texts it learnt, and questions with given answers.

In: a language model, a decoder, texts; questions with a few labels as answers. Out: shares that are right, for the
model alone, the mix at several alphas, and the decoder alone (alpha 1), with 95 % intervals over documents:

    cloze    a learnt text up to a number or a name; right is who goes on with it, the likeliest token each time
    plain    argmax_y log p(y | x)
    dcpmi    argmax_y log p(y | x) - log p(y | "Answer:"),     what a label is likelier for than without the question

Source: Memory Decoder (arXiv 2508.09874v2), table 2; domain-conditional PMI: arXiv 2104.08315, section 3. The cloze
questions are ours.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memo.decoder import Mixed, Router
from memo.evaluate.data import Question
from memo.evaluate.metrics import interval
from memo.models import untrusted
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# names of two words or more, and numbers
FACT = re.compile(r"(?<=\w[ ])(?:[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)+|\d[\d,./-]*\d)(?=[ .,;:)])")
BEFORE, ANSWER = 96, 8  # tokens before a fact; of a fact at most
BATCH = 16
PREMISE = "Answer:"


@dataclass(frozen=True)
class Cloze:
    """A learnt text up to a fact."""

    document: int
    before: list[int]  # BEFORE tokens
    fact: str


def clozes(tokens: TokenFile, tokenizer: PreTrainedTokenizerFast, count: int, seed: int = 0) -> list[Cloze]:
    """Facts of a corpus that its tokens before do not hold, drawn from all documents alike."""
    engine, found = untrusted(tokenizer), []
    draw = random.Random(f"{seed} cloze")
    for document, (begin, end) in enumerate(itertools.pairwise(tokens.bounds)):
        text = tokenizer.decode(tokens.ids[begin:end].tolist(), clean_up_tokenization_spaces=False)
        some = []
        for match in FACT.finditer(text):
            fact = match.group()
            before = text[max(0, match.start() - 12 * BEFORE) : match.start() - 1]
            known = engine.encode(before, add_special_tokens=False).ids[-BEFORE:]
            length = len(engine.encode(" " + fact, add_special_tokens=False).ids)
            if len(known) == BEFORE and length <= ANSWER and fact not in tokenizer.decode(known):
                some.append(Cloze(document, known, fact))
        found += draw.sample(some, min(len(some), max(1, 2 * count // (len(tokens.bounds) - 1))))
    return draw.sample(found, min(count, len(found)))


@torch.no_grad()
def told(mixed: Mixed, tokenizer: PreTrainedTokenizerFast, some: Sequence[Cloze]) -> list[bool]:
    """Which facts the mix goes on with."""
    right = []
    for at in range(0, len(some), BATCH):
        part = some[at : at + BATCH]
        ids = torch.tensor([one.before for one in part], device=mixed.device)
        out = mixed.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False,
                             pad_token_id=tokenizer.eos_token_id)  # fmt: skip
        for one, row in zip(part, out[:, BEFORE:], strict=True):
            said = tokenizer.decode(row, skip_special_tokens=True).lstrip()
            right.append(re.match(re.escape(one.fact) + r"(?!\w)", said) is not None)
    return right


@torch.no_grad()
def label_logps(mixed: Mixed, tokenizer: PreTrainedTokenizerFast, prompt: str, labels: Sequence[str]) -> np.ndarray:
    """log p of each label after a prompt, nats. (n,)"""
    engine = untrusted(tokenizer)
    before = engine.encode(prompt, add_special_tokens=False).ids[-1500:]
    found = []
    for label in labels:
        ids = before + engine.encode(f" {label}", add_special_tokens=False).ids
        logp = mixed(torch.tensor([ids], device=mixed.device)).logits[0, len(before) - 1 : -1]
        came = torch.tensor(ids[len(before) :], device=logp.device)[:, None]
        found.append(float(logp.gather(1, came).sum()))
    return np.array(found)


def prompt_of(question: Question) -> str:
    """The document, the question, and where the answer goes."""
    text = "\n\n".join(document.text for document in question.shelf.documents)
    return f"{text}\n\nQuestion: {question.text}\n{PREMISE}"


def judged(
    mixed: Mixed, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], labels: Sequence[str]
) -> tuple[list[bool], list[bool]]:
    """Which questions get their label, by plain scores and by domain-conditional PMI."""
    alone = label_logps(mixed, tokenizer, PREMISE, labels)
    plain, dcpmi = [], []
    for question in questions:
        logp = label_logps(mixed, tokenizer, prompt_of(question), labels)
        for right, scores in ((plain, logp), (dcpmi, logp - alone)):
            right.append(labels[int(scores.argmax())] in question.answers)
    return plain, dcpmi


def evaluate(
    mixed: Mixed, tokenizer: PreTrainedTokenizerFast, alphas: dict[str, float | Router], some: Sequence[Cloze],
    questions: Sequence[Question], labels: Sequence[str], tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each alpha: cloze, and where there are questions plain and dcpmi."""
    rows = []
    for name, alpha in alphas.items():
        mixed.alpha = alpha
        row: dict[str, Any] = {"alpha": name}
        if some:
            row["cloze"] = interval(told(mixed, tokenizer, some), [one.document for one in some])
        if questions:
            plain, dcpmi = judged(mixed, tokenizer, questions, labels)
            keys = [question.shelf.key for question in questions]
            row |= {"plain": interval(plain, keys), "dcpmi": interval(dcpmi, keys)}
        rows.append(row)
        tell({key: value["mean"] if isinstance(value, dict) else value for key, value in row.items()})
    return rows
