"""Question sets of the Hugging Face hub, brought into the form of `memo.evaluate.data`.

In: "hub:OWNER/NAME[:CONFIGURATION]" and a split; or a local folder that the library `datasets` reads, after "hub:".
Out: a folder with `docs.jsonl` and `<split>.jsonl`. What a row is, follows from its columns:

    context (a text), question, answers {text}               SQuAD and its kin
    context {title[], sentences[][]}, supporting_facts       HotpotQA, 2WikiMultiHopQA
    paragraphs [{title, paragraph_text, is_supporting}]      MuSiQue
    context (a text), input, answers []                      LongBench, UltraDomain
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from memo.errors import SettingsError, reason
from memo.models import write_atomic

PREFIX = "hub:"
Converted = tuple[dict[str, Any], list[dict[str, Any]]]  # a question, its documents


def is_hub(name: str) -> bool:
    return name.startswith(PREFIX)


def _document(title: str, text: str) -> dict[str, Any]:
    key = hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]
    return {"doc_id": key, "title": title, "text": text}


def _texts(answers: Any) -> list[str]:
    """Answers as they come: {"text": [...]}, a list, or one text."""
    if isinstance(answers, dict):
        answers = answers.get("text", [])
    return [str(answer) for answer in ([answers] if isinstance(answers, str) else answers or [])]


def one_context(row: dict[str, Any]) -> Converted:
    """SQuAD, LongBench, UltraDomain: one text, one question."""
    document = _document(str(row.get("title") or ""), row["context"])
    answers = _texts(row["answers"])
    question = {"question": row.get("question") or row["input"], "answers": answers, "evidence": []}
    return question | {"doc_id": document["doc_id"], "answerable": bool(answers)}, [document]


def paragraphs_with_facts(row: dict[str, Any]) -> Converted:
    """HotpotQA: paragraphs as lists of sentences; facts name a title and a sentence's number."""
    context, facts = row["context"], row["supporting_facts"]
    pages = dict(zip(context["title"], context.get("sentences") or context["content"], strict=True))
    documents = {title: _document(title, "".join(sentences).strip()) for title, sentences in pages.items()}
    wanted = [(t, i) for t, i in zip(facts["title"], facts["sent_id"], strict=True) if i < len(pages.get(t, ()))]
    gold = list(dict.fromkeys(documents[title]["doc_id"] for title, _ in wanted))
    return {
        "question": row["question"], "answers": _texts(row["answer"]), "doc_id": (gold or [None])[0],
        "doc_ids": [document["doc_id"] for document in documents.values()], "gold_doc_ids": gold,
        "evidence": [pages[title][number].strip() for title, number in wanted], "answerable": True,
    }, list(documents.values())  # fmt: skip


def marked_paragraphs(row: dict[str, Any]) -> Converted:
    """MuSiQue: paragraphs, some marked as supporting."""
    documents = [_document(p["title"], p["paragraph_text"]) for p in row["paragraphs"]]
    gold = [
        document for document, p in zip(documents, row["paragraphs"], strict=True) if p["is_supporting"]
    ]  # fmt: skip
    return {
        "question": row["question"], "answers": [row["answer"], *row.get("answer_aliases", [])],
        "doc_id": gold[0]["doc_id"] if gold else None, "doc_ids": [document["doc_id"] for document in documents],
        "gold_doc_ids": [document["doc_id"] for document in gold],
        "evidence": [document["text"] for document in gold], "answerable": bool(row.get("answerable", True)),
    }, documents  # fmt: skip


def converter(row: dict[str, Any]) -> Callable[[dict[str, Any]], Converted] | None:
    """What reads rows like this one; None if nothing does."""
    if "paragraphs" in row and "answer" in row:
        return marked_paragraphs
    if isinstance(row.get("context"), dict) and "supporting_facts" in row:
        return paragraphs_with_facts
    if isinstance(row.get("context"), str) and "answers" in row and ("question" in row or "input" in row):
        return one_context
    return None


def datasets() -> ModuleType:
    """The library `datasets`.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise SettingsError("Sets of the hub need the library datasets.", 'pip install "memo[evaluate]"') from None
    return datasets


def fetch(name: str, split: str, cache: Path) -> Path:
    """The folder of a set of the hub, made when first asked for.

    Raises:
        SettingsError: `datasets` is missing or cannot load it, or its columns are none of those above.
    """
    path, _, configuration = name.removeprefix(PREFIX).partition(":")
    if not path:
        raise SettingsError("--data names no set.", "It must be hub:OWNER/NAME.")
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    folder = cache / "sets" / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', path.rpartition('/')[2])}-{digest}"
    if (folder / f"{split}.jsonl").exists():
        return folder
    library = datasets()
    try:
        rows = list(library.load_dataset(path, configuration or None, split=split))
    except Exception as error:  # whatever the hub, the network and old loading scripts come up with
        told = f"{path} cannot be loaded: {reason(error).rstrip('.')}."
        raise SettingsError(told, "Check its name, its split and the network.") from error
    convert = converter(rows[0]) if rows else None
    if convert is None:
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise SettingsError(f"{path} has columns that are not known ({columns}).", "Convert it to docs.jsonl yourself.")
    documents: dict[str, dict[str, Any]] = {}
    questions = []
    for number, row in enumerate(rows):
        question, its = convert(row)
        documents |= {document["doc_id"]: document for document in its}
        questions.append({"id": str(row.get("id") or row.get("_id") or number)} | question)
    known = folder / "docs.jsonl"
    if known.exists():  # of another split
        before = (json.loads(line) for line in known.read_text(encoding="utf-8").splitlines())
        documents = {document["doc_id"]: document for document in before} | documents
    folder.mkdir(parents=True, exist_ok=True)
    for file, objects in ((known, documents.values()), (folder / f"{split}.jsonl", questions)):
        write_atomic(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))
    return folder
