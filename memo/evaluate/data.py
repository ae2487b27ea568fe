"""Question sets: a folder in, questions with their documents and evidence out.

In: a folder with `docs.jsonl[.gz]` (lines `{doc_id, title, text}`, optionally `article`) and `<split>.jsonl[.gz]`
(lines `{id, doc_id, question, answers[], evidence[]}`, optionally `doc_ids`, `gold_doc_ids`, `answerable`; a question
without answers is one that has none). Out: `Question`s, each with the `Shelf` of documents it is asked of and the
places of its evidence in them:

    question  a question's candidate documents (`doc_ids`, else its `doc_id`)
    group     one document: all paragraphs of the same article, story or site in their order
    corpus    every document of the set

Or a folder like assets/examples, of documents with `NAME.questions.json` beside them; its splits are their languages.

Where a set names no evidence, it is wherever an answer stands in the question's own document.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memo.documents import Document
from memo.errors import SettingsError
from memo.evaluate.metrics import Span
from memo.settings import Settings

FIELDS = "It needs {doc_id, title, text} in docs.jsonl and {id, doc_id, question, answers, evidence} in the split's."
_QUOTES = {"'": "['‘’‛`]", '"': '["“”„]'} | dict.fromkeys("‘’‛`", "['‘’‛`]") | dict.fromkeys("“”„", '["“”„]')


@dataclass(frozen=True)
class Shelf:
    """The documents of one library. key: the same for all questions that share it."""

    key: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Question:
    """evidence: pieces, each a list of the places that count for it; empty where none is known."""

    id: str
    text: str
    answers: tuple[str, ...]
    answerable: bool
    evidence: tuple[tuple[Span, ...], ...]
    shelf: Shelf


@dataclass(frozen=True)
class QuestionSet:
    name: str
    split: str
    language: str  # "en" or "ko": which metrics
    given: bool  # whether evidence was given or follows from the answers
    questions: tuple[Question, ...]
    skipped: int = 0  # questions without a document


def lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects of `name`.jsonl or `name`.jsonl.gz.

    Raises:
        SettingsError: there is no such file, or a line of it is not JSON.
    """
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if not path.exists():
            continue
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            number = 1
            try:
                for line in file:
                    one = json.loads(line)
                    if not isinstance(one, dict):
                        raise ValueError("no object")
                    yield one
                    number += 1
            except (ValueError, EOFError, OSError, zlib.error) as error:
                reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it is no JSON object"
                raise SettingsError(f"{path.name} cannot be read at line {number}: {reason}.", FIELDS) from error
        return
    if beside := sorted(folder.glob("*.questions.json")):
        yield from _examples(beside, name)
        return
    found = sorted(path.name.split(".")[0] for path in folder.glob("*.jsonl*") if not path.name.startswith("docs."))
    there = f"There are: {', '.join(found)}." if found else "There is none at all."
    raise SettingsError(f"There is no {name}.jsonl or {name}.jsonl.gz in {folder}.", there)


def _examples(beside: Sequence[Path], name: str) -> Iterator[dict[str, Any]]:
    """The objects of `lines` for documents with files of questions. name: "docs", or a language.

    Raises:
        SettingsError: a file holds something else. DocumentError: a document cannot be read.
    """
    from memo.documents import read_document

    limits = Settings().file_limits
    for path in beside:
        key = path.name.removesuffix(".questions.json")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if name == "docs":
                text = read_document(path.with_name(about["document"]), **limits).text
                yield {"doc_id": key, "title": about["title"], "text": text}
            elif name == about["language"]:
                for number, one in enumerate(about["questions"]):
                    yield {**one, "id": f"{key}/{number}", "doc_id": key, "answers": [one["answer"]]}
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path.name} holds no questions.", "See assets/examples for how it looks.") from error


def load(
    folder: Path, split: str, context: str, limit: int = 0, seed: int = 0, each: int = 10,
    where: tuple[str, str] | None = None,
) -> QuestionSet:  # fmt: skip
    """Questions of a split, shelf by shelf, drawn at random (`seed`).

    limit: this many at most (0: all). each: of one shelf at most, so that a limit still covers many (0: all).
    where: (field, value), only questions that have it.

    Raises:
        SettingsError: files are missing or malformed.
    """
    try:
        texts = _by_id(lines(folder, "docs"), "doc_id")
        every = _by_id(lines(folder, split), "id").values()
        asked = [line for line in every if where is None or str(line.get(where[0])) == where[1]]
        groups = _groups(texts, context)
        chosen = _choose(asked, lambda line: _key(line, texts, groups, context), limit, seed, each)
        if not chosen:
            raise SettingsError(f"No question of {split} in {folder} has a document.", "Choose another split.")
        built = _Builder(texts, groups, context)
        questions = tuple(built.question(line) for line in chosen)
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{folder} does not have the expected fields ({error}).", FIELDS) from error
    skipped = sum(not _key(line, texts, groups, context) for line in asked)
    letters = [c for line in chosen for c in line["question"] if c.isalpha()]
    korean = sum("가" <= c <= "힣" for c in letters) > len(letters) / 4
    given = any(line.get("evidence") for line in chosen)
    return QuestionSet(folder.name, split, "ko" if korean else "en", given, questions, skipped)


def _by_id(found: Iterator[dict[str, Any]], field: str) -> dict[str, dict[str, Any]]:
    """Objects by that field. Raises SettingsError for one that comes twice."""
    objects: dict[str, dict[str, Any]] = {}
    for one in found:
        if one[field] in objects:
            raise SettingsError(f"{field} {one[field]!r} comes twice.", "Each must have its own.")
        objects[one[field]] = one
    return objects


def _several(value: Any) -> list[str]:
    """A list of texts, also where one text was written in its place."""
    return [value] if isinstance(value, str) else list(value or [])


def _ids(line: dict[str, Any], texts: dict[str, Any], context: str) -> list[str]:
    """The documents a question is asked of (the candidates), those that there are."""
    several = line.get("doc_ids") if context != "group" else None
    known = [d for d in several or [line.get("doc_id")] if d in texts]
    # in a corpus a question is at home as soon as one of its documents is there
    return known or [d for d in line.get("gold_doc_ids") or () if context == "corpus" and d in texts]


def _groups(texts: dict[str, dict[str, Any]], context: str) -> dict[str, list[str]]:
    """Document -> the documents that form one with it, itself among them, in their order."""
    members: dict[Any, list[str]] = {}
    for key, line in texts.items():
        name = line.get("article") or line.get("title")
        same = (key.rpartition("/")[0], name) if name and context == "group" else key
        members.setdefault(same, []).append(key)
    return {key: group for group in members.values() for key in group}


def _key(line: dict[str, Any], texts: dict[str, Any], groups: dict[str, list[str]], context: str) -> str:
    ids = _ids(line, texts, context)
    if not ids:
        return ""  # without documents: it cannot be asked
    return {"question": line["id"], "group": groups[ids[0]][0], "corpus": "corpus"}[context]


def _choose(asked: list[dict[str, Any]], key: Any, limit: int, seed: int, each: int) -> list[dict[str, Any]]:
    """Shelves in random order, of each at most `each` questions, until there are `limit`."""
    shelves: dict[str, list[dict[str, Any]]] = {}
    for line in asked:
        if key(line):
            shelves.setdefault(key(line), []).append(line)
    order, chosen = sorted(shelves), []
    random.Random(f"{seed}").shuffle(order)
    for name in order:
        few = sorted(shelves[name], key=lambda line: line["id"])
        random.Random(f"{seed}/{name}").shuffle(few)
        chosen += few[: each or None] if len(shelves) > 1 else few
        if limit and len(chosen) >= limit:
            break
    return chosen[: limit or None]


class _Builder:
    """Shelves, made once each, and the questions on them."""

    def __init__(self, texts: dict[str, dict[str, Any]], groups: dict[str, list[str]], context: str) -> None:
        self.texts, self.groups, self.context = texts, groups, context
        self.shelves: dict[str, Shelf] = {}
        self.documents: dict[str, tuple[Document, dict[str, int]]] = {}  # and where in it each of its parts begins

    def question(self, line: dict[str, Any]) -> Question:
        key = _key(line, self.texts, self.groups, self.context)
        if key not in self.shelves:
            ids = list(self.groups) if self.context == "corpus" else _ids(line, self.texts, self.context)
            homes = dict.fromkeys(self.groups[d][0] for d in ids)
            self.shelves[key] = Shelf(key, tuple(self._document(home)[0] for home in homes))
        gold = [d for d in line.get("gold_doc_ids") or [line.get("doc_id")] if d in self.groups]
        answers = tuple(answer for answer in _several(line["answers"]) if answer.strip())
        there = {document.id for document in self.shelves[key].documents}
        if line.get("evidence"):
            found = [self._places(gold, [piece]) for piece in _several(line["evidence"])]
            # what stands in several places ("Yeah.") does not tell where the answer is
            pieces = [piece for piece in found if len(piece) == 1] or found
        else:
            pieces = [self._places(gold, answers)]
        return Question(
            str(line["id"]), line["question"].strip(), answers, bool(line.get("answerable", answers)),
            tuple(piece for piece in pieces if piece and piece[0][0] in there), self.shelves[key],
        )  # fmt: skip

    def _document(self, home: str) -> tuple[Document, dict[str, int]]:
        """The document that `home` and what belongs to it make, the title, then the texts; and where each begins."""
        if home not in self.documents:
            title, starts = self.texts[home].get("title") or "", {}
            text = title
            for part in self.groups[home]:
                text += "\n\n" if text else ""
                starts[part] = len(text)
                text += self.texts[part]["text"].strip()
            name = title or home.rpartition("/")[2]
            key = hashlib.sha256(f"{home}\n{text}".encode()).hexdigest()[:16]
            self.documents[home] = Document(key, name, text), starts
        return self.documents[home]

    def _places(self, documents: Sequence[str], wordings: Sequence[str]) -> tuple[Span, ...]:
        """Where one of the wordings stands in these documents (in their own part of what they were joined to)."""
        places = []
        for key in documents:
            document, starts = self._document(self.groups[key][0])
            start, end = starts[key], starts[key] + len(self.texts[key]["text"].strip())
            for wording in wordings:
                pattern = loose(wording)
                places += [(document.id, m.start(), m.end()) for m in pattern.finditer(document.text, start, end)]
        return tuple(dict.fromkeys(places))


def loose(wording: str) -> re.Pattern[str]:
    """Finds a wording whatever its spaces, quotation marks and case are; a number not inside a longer one."""
    wording = wording.strip()
    words = ["".join(_QUOTES.get(c) or re.escape(c) for c in word) for word in wording.split()]
    # words end at their borders, but a Korean particle may follow a number, a Latin name or a Korean word
    before = r"(?<!\w)" if wording[:1].isalnum() else ""
    after = r"(?![^\W가-힣])" if wording[-1:].isalnum() and not "가" <= wording[-1] <= "힣" else ""
    return re.compile(before + r"\s+".join(words) + after, re.IGNORECASE)
