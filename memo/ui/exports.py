"""A conversation as Markdown and as JSON.

In: turns. Out: text with every question, the answers of all strategies, clues, passages, citations, times and models.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import memo
from memo.events import Answer, Clue
from memo.ui.visits import Visit


def as_json(visit: Visit) -> str:
    """Everything, for programs."""
    return json.dumps(
        {
            "made_by": f"memo {memo.__version__}",
            "exported": datetime.now(UTC).isoformat(timespec="seconds"),
            "documents": [asdict(row.entry) for row in visit.rows.values() if row.entry],
            "turns": [
                {
                    "question": turn.question,
                    "asked": turn.asked,
                    "answers": {name: asdict(answer) for name, answer in turn.answers.items()},
                }
                for turn in visit.turns
            ],
        },
        ensure_ascii=False,
        indent=2,
    )


def as_markdown(visit: Visit) -> str:
    """Everything, for people."""
    parts = ["# Conversation", ""]
    for number, turn in enumerate(visit.turns, 1):
        parts += [f"## {number}. {_line(turn.question)}", ""]
        if turn.asked != turn.question:
            parts += [f"Searched as: {_line(turn.asked)}", ""]
        for name, answer in turn.answers.items():
            parts += [f"### {name}", "", *_answer(visit, answer)]
    return "\n".join(parts).rstrip() + "\n"


def _clue(clue: Clue) -> str:
    score = "" if clue.kind == "name" else f" ({clue.score:.2f})"
    return f"- {clue.kind}{score}: {_line(clue.text)}"


def _line(text: str) -> str:
    """One line that cannot begin a block of its own, nor HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _quote(text: str) -> list[str]:
    return [f"> {line}".replace("<", "&lt;") for line in text.strip().splitlines()]


def _answer(visit: Visit, answer: Answer) -> list[str]:
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in answer.timings.items())
    models = _line(", ".join(f"{role}: {name}" for role, name in answer.models.items()))
    out = [*_quote(_with_numbers(answer) or "(no text)"), ""]
    if answer.stopped:
        out += ["Stopped before its end.", ""]
    out += [f"*Note: {_line(note)}*\n" for note in answer.notes]
    if answer.clues:
        out += ["Clues:", "", *map(_clue, answer.clues), ""]
    for number, found in enumerate(answer.passages, 1):
        name, page, _ = visit.place(found.document, found.start)
        where = f"{_line(name) or found.document}{f', page {page}' if page else ''}"
        by = "; ".join(map(_line, found.found_by))
        place = f"characters {found.start}-{found.end}, score {found.score:.2f}"
        out += [f"[{number}] {where}, {place}, found by: {by}", "", *_quote(found.text), ""]
    tokens = f"{answer.prompt_tokens} prompt tokens, {answer.answer_tokens} answer tokens"
    return [*out, f"Times: {times}; {tokens}; models: {models}", ""]


def _with_numbers(answer: Answer) -> str:
    """The answer with the number of the passage after each supported sentence."""
    text = answer.text
    for citation in sorted(answer.citations, key=lambda c: -c.end):
        end = len(text[: citation.end].rstrip())
        text = f"{text[:end]} [{citation.passage + 1}]{text[end:]}"
    return text
