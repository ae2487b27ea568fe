"""Synthesis: lessons from a person's own documents, written by a strong LLM and checked before they are believed.

In: a stretch of text, and a `Generator` (an OpenAI-compatible endpoint, or a local model). Out: a `Lesson`, and a count
of what was thrown away and why. The LLM writes questions with answers; then, given stretch, question and answer, the
clues: quotations and simpler questions.

Source: MemoRAG (arXiv 2409.05591v3), appendix B (GPT-4 writes pairs, then clues from query, context and answer; people
sort out the bad ones). Here code sorts them out:

    unreadable    not the form that was asked for
    unsupported   words of the answer are not in the stretch
    echo          the question stands in the text, or holds its answer
    repeated      the same question again
    no span       no quotation stands in the stretch
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from memo.cite import words
from memo.clues import key_of
from memo.errors import BackendError
from memo.evaluate.data import loose
from memo.generate import Generator, Prompt, write
from memo.train.lessons import Asked, Lesson

SYSTEM = "You make reading exercises. You write JSON and nothing else."
PAIRS = (
    "{text}\n\nWrite {count} questions that this text answers, each understandable without the text at hand and such"
    " that one must have understood the text. Answer each shortly, in words of the text."
    ' Write a JSON list: [{{"question": "…", "answer": "…"}}]'
)
CLUES = (
    "{text}\n\nQuestion: {question}\nAnswer: {answer}\n\nWhat must a reader remember to find that answer?"
    ' Write JSON: {{"quotations": ["one to three sentences, copied from the text"],'
    ' "questions": ["up to three simpler questions that lead to the answer"]}}'
)
SUPPORT = 0.7  # share of an answer's words that must stand in the stretch
TOKENS = 900  # of what the LLM writes at once


def lesson(stretch: str, generator: Generator, count: int) -> tuple[Lesson | None, Counter[str]]:
    """The lesson of a stretch of text, if something good was written, and what was thrown away.

    count: questions to ask for.

    Raises:
        BackendError: the LLM does not answer.
    """
    thrown: Counter[str] = Counter()
    asked = tuple(_questions(stretch, generator, count, thrown))
    return (Lesson((stretch,), asked) if asked else None), thrown


def _questions(stretch: str, generator: Generator, count: int, thrown: Counter[str]) -> Iterator[Asked]:
    known: set[str] = set()
    written = _json(_write(generator, PAIRS.format(text=stretch, count=count)))
    if not isinstance(written, list):
        thrown["unreadable"] += 1
        return
    for pair in written[:count]:
        question, answer = (_text(pair, name) for name in ("question", "answer"))
        if reason := wrong(question, answer, stretch, known):
            thrown[reason] += 1
            continue
        known.add(key_of(question))
        clues = _json(_write(generator, CLUES.format(text=stretch, question=question, answer=answer)))
        places = [place for quotation in _texts(clues, "quotations") if (place := found(quotation, stretch))]
        if not places:
            thrown["no span"] += 1
            continue
        places = list(dict.fromkeys(places))
        spans = tuple(" ".join(stretch[start:end].split()) for start, end in places)
        simpler = tuple(one for one in _texts(clues, "questions") if key_of(one) not in ("", key_of(question)))
        kinds = {"span": spans, "question": simpler, "draft": (answer,)}
        evidence = tuple((0, start, end) for start, end in places)
        yield Asked(question, (answer,), evidence, {kind: texts for kind, texts in kinds.items() if texts})


def wrong(question: str, answer: str, stretch: str, known: set[str]) -> str:
    """Why a pair is thrown away; empty if it is not. known: keys of the questions before."""
    if not key_of(question) or not key_of(answer):
        return "unreadable"
    if key_of(question) in known:
        return "repeated"
    if found(question, stretch) or key_of(answer) in key_of(question):
        return "echo"
    there, said = set(words(stretch)), words(answer)
    return "" if sum(word in there for word in said) >= SUPPORT * len(said) else "unsupported"


def found(quotation: str, stretch: str) -> tuple[int, int] | None:
    """Where a quotation stands in a stretch, whatever its spaces, case, quotation marks and last full stop are."""
    quotation = quotation.strip().strip("\"'“”‘’").rstrip(".…").strip()
    match = loose(quotation).search(stretch) if key_of(quotation) else None
    return match.span() if match else None


def _write(generator: Generator, user: str) -> str:
    stream = write(generator, Prompt((("system", SYSTEM), ("user", user)), TOKENS))
    if stream.error:
        raise stream.error if isinstance(stream.error, BackendError) else BackendError(str(stream.error))
    return stream.text


def _json(text: str) -> Any:
    """The first JSON value in a text that may have words and fences around it; None if there is none."""
    decoder = json.JSONDecoder()
    for start, letter in enumerate(text):
        if letter in "[{":
            try:
                return decoder.raw_decode(text[start:])[0]
            except ValueError:
                continue
    return None


def _text(value: Any, name: str) -> str:
    one = value.get(name) if isinstance(value, dict) else None
    return " ".join(one.split()) if isinstance(one, str) else ""


def _texts(value: Any, name: str) -> list[str]:
    several = value.get(name) if isinstance(value, dict) else None
    return [" ".join(one.split()) for one in several if isinstance(one, str)] if isinstance(several, list) else []
