"""Lessons: documents, questions about them, and the clues that a good memory would recall for each.

In: a question set (memo.evaluate.data), or a file of lessons. Out: `Lesson`s; as a file, a JSON object a line:

    {"documents": ["text", …], "questions": [{"question": "…", "answers": ["…"], "evidence": [[document, start, end]],
     "clues": {"span": ["…"], "question": ["…"], "draft": ["…"], "key": ["…"]}}]}

The clues of a question set, after MemoRAG (arXiv 2409.05591v3), appendix B, where an LLM writes them from question,
text and answer; here they follow from what the set knows:

    span      a sentence of each piece of evidence: that with the answer, else the first
    question  what the steps of a multi-hop question ask ("performer of Get Low"), where the set has triples
    draft     the answer; for a question of other documents, that nothing there says
    key       the titles of the evidence's documents, where there are several, then the answer
"""

from __future__ import annotations

import bisect
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memo.clues import KINDS, LINES
from memo.errors import SettingsError
from memo.evaluate.data import Question, QuestionSet, loose
from memo.models import write_atomic
from memo.passages import sentences

NOTHING = "Nothing in the document says that."
ANSWER = 120  # characters of an answer that is short
TOGETHER = 8  # questions of one lesson at most
Offsets = Callable[[str], list[tuple[int, int]]]  # text -> the characters of each of its tokens


@dataclass(frozen=True)
class Asked:
    """evidence: (document, start, end) in characters of the lesson's documents."""

    question: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int, int], ...]
    clues: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    documents: tuple[str, ...]
    questions: tuple[Asked, ...]


def from_questions(
    found: QuestionSet, offsets: Offsets, most: int, triples: dict[str, list[Any]], seed: int = 0
) -> Iterator[Lesson]:
    """The lessons of a question set. One of several short documents has one question, one of a long document several.

    offsets: of a text's tokens. most: tokens of a lesson's documents.
    triples: question id -> [subject, relation, object] of each step.
    """
    shelves: dict[str, list[Question]] = {}
    for question in found.questions:
        if question.evidence and question.answers:
            shelves.setdefault(question.shelf.key, []).append(question)
    draw = random.Random(f"{seed} lessons")
    for asked in shelves.values():
        if len(asked[0].shelf.documents) > 1:
            for question in asked:
                yield _of_several(question, offsets, most, triples.get(question.id, []), draw)
        else:
            yield from _of_one(asked, offsets, most, draw)


def _of_several(
    question: Question, offsets: Offsets, most: int, triples: list[Any], draw: random.Random
) -> Lesson:
    """The documents of the evidence, and others as long as there is room, in drawn order."""
    documents = list(question.shelf.documents)
    draw.shuffle(documents)
    gold = {place[0] for piece in question.evidence for place in piece[:1]}
    documents.sort(key=lambda document: document.id not in gold)
    room, chosen = most, []
    for document in documents:
        room -= len(offsets(document.text))
        if room >= 0 or document.id in gold:
            chosen.append(document)
    draw.shuffle(chosen)
    at = {document.id: number for number, document in enumerate(chosen)}
    evidence = tuple((at[piece[0][0]], piece[0][1], piece[0][2]) for piece in question.evidence)
    texts = tuple(document.text for document in chosen)
    names = tuple(document.name for document in chosen if document.id in gold)
    clues = _clues(texts, question.answers, evidence, names if len(names) > 1 else (), triples)
    return Lesson(texts, (Asked(question.text, question.answers, evidence, clues),))


def _of_one(
    asked: Sequence[Question], offsets: Offsets, most: int, draw: random.Random
) -> Iterator[Lesson]:
    """Stretches of a document that hold the evidence of one question after the other, and of what others they may."""
    text = asked[0].shelf.documents[0].text
    tokens = [*(start for start, _ in offsets(text)), len(text)]  # where in the text each token begins, and it ends
    whole = sentences(text)
    left = list(asked)
    draw.shuffle(left)
    while left:
        first, last = min(p[0][1] for p in left[0].evidence), max(p[0][2] for p in left[0].evidence)
        begin, end = _stretch(first, last, tokens, whole, most, draw)
        here = []
        for question in left:
            places = [next((p for p in piece if begin <= p[1] and p[2] <= end), None) for piece in question.evidence]
            if None not in places:
                here.append((question, tuple((0, p[1] - begin, p[2] - begin) for p in places if p)))
        here, stretch = here[:TOGETHER], text[begin:end]
        done = {question.id for question, _ in here} | {left[0].id}
        left = [question for question in left if question.id not in done]
        if here:
            questions = tuple(
                Asked(q.text, q.answers, places, _clues((stretch,), q.answers, places, (), [])) for q, places in here
            )
            yield Lesson((stretch,), questions)


def _stretch(
    first: int, last: int, tokens: list[int], whole: list[tuple[int, int]], most: int, draw: random.Random
) -> tuple[int, int]:
    """A stretch of `most` tokens around characters [first, last), of whole sentences where it can be.

    tokens: where each begins, and the last ends. Where in the stretch [first, last) lies is drawn.
    """
    at, until = bisect.bisect_right(tokens, first) - 1, bisect.bisect_left(tokens, last)
    slack = max(0, most - (until - at))
    lowest, drawn = tokens[max(0, at - slack)], tokens[max(0, at - draw.randrange(slack + 1))]
    starts = [start for start, _ in whole if lowest <= start <= first]
    found = []
    for begin in [start for start in starts if start >= drawn] + starts[::-1] + [tokens[at]]:
        limit = tokens[min(bisect.bisect_left(tokens, begin) + most, len(tokens) - 1)]
        found.append((begin, limit))
        if ends := [end for _, end in whole if last <= end <= limit]:
            return begin, ends[-1]
    return found[0]


def _clues(
    texts: Sequence[str], answers: Sequence[str], evidence: Sequence[tuple[int, int, int]], names: Sequence[str],
    triples: list[Any],
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    spans = []
    for number, start, end in evidence:
        inside = [(a, b) for a, b in sentences(texts[number]) if a < end and b > start]
        holding = [(a, b) for a, b in inside if any(loose(answer).search(texts[number], a, b) for answer in answers)]
        a, b = (holding or inside or [(start, end)])[0]
        spans.append(" ".join(texts[number][a:b].split()))
    clues = {"span": tuple(dict.fromkeys(spans)), "draft": (answers[0],)}
    if triples:
        clues["question"] = tuple(f"What is the {relation} of {subject}?" for subject, relation, _ in triples)
    if names:
        last = [answers[0]] if len(answers[0]) <= ANSWER else []
        clues["key"] = tuple(dict.fromkeys([*names[: LINES - len(last)], *last]))
    return clues


def elsewhere(lesson: Lesson, other: Lesson) -> Lesson:
    """The lesson, and a question of another one of which nothing in these documents says anything, if there is one."""
    for foreign in other.questions if other is not lesson else ():
        told = [*foreign.answers, *(other.documents[number][start:end] for number, start, end in foreign.evidence)]
        if foreign.answers and not any(loose(one).search(text) for one in told for text in lesson.documents):
            unknown = Asked(foreign.question, (), (), {"draft": (NOTHING,)})
            return Lesson(lesson.documents, (*lesson.questions, unknown))
    return lesson


# --- files -----------------------------------------------------------------------------------------------------------


def write(path: Path, lessons: Sequence[Lesson]) -> None:
    """A JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(asdict(lesson), ensure_ascii=False) + "\n" for lesson in lessons))


def load(path: Path) -> list[Lesson]:
    """The lessons of a file.

    Raises:
        SettingsError: it cannot be read, or a line is no lesson.
    """
    lessons: list[Lesson] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                lessons.append(of(json.loads(line)))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read.", "Make it with: python -m memo train lessons.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"Line {len(lessons) + 1} of {path} is no lesson ({error})."
        raise SettingsError(told, "It needs documents and questions, see memo/train/lessons.py.") from error
    return lessons


def of(line: dict[str, Any]) -> Lesson:
    """A lesson from JSON. Raises ValueError, KeyError, TypeError or AttributeError if it is none."""
    texts = _texts(line["documents"])
    asked = []
    for one in line["questions"]:
        clues = {kind: _texts(several) for kind, several in one.get("clues", {}).items()}
        if unknown := clues.keys() - KINDS.keys():
            raise ValueError(f"clues of the kind {sorted(unknown)[0]!r}")
        places = tuple((int(d), int(a), int(b)) for d, a, b in one.get("evidence", []))
        if any(not (0 <= d < len(texts) and 0 <= a < b <= len(texts[d])) for d, a, b in places):
            raise ValueError("evidence outside the documents")
        [question] = _texts([one["question"]])
        asked.append(Asked(question, _texts(one.get("answers", [])), places, clues))
    if not texts or not asked:
        raise ValueError("no document or no question")
    return Lesson(texts, tuple(asked))


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, none of them empty."""
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError("no list of texts where one should be, or an empty text in it")
    return tuple(value)
