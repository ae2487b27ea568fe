"""From rows to figures: the metrics of each row, their means with intervals, and paired differences against `rag`.

In: a `QuestionSet` and the rows that `memo.evaluate.qa` keeps. Out: what stands in the file of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memo.evaluate import metrics
from memo.evaluate.data import Question, QuestionSet
from memo.evaluate.strategies import PARTS, WITH_PASSAGES

DEPTHS = (1, 3, 5, 10)


def measured(row: dict[str, Any], question: Question, language: str) -> dict[str, float]:
    """The metrics of one row; those that do not apply are absent."""
    found: dict[str, float] = {}
    if "seconds" in row:
        return {"seconds": row["seconds"]}
    if "ranked" in row and question.evidence and question.answerable:
        ranking = [(document, start, end) for document, start, end in row["ranked"]]
        found |= {f"recall@{k}": metrics.recall(ranking, question.evidence, k) for k in DEPTHS}
        found["reciprocal_rank"] = metrics.reciprocal_rank(ranking, question.evidence)
    if "answer" not in row:
        return found
    answer, cited = row["answer"], row["cited"]
    if row["strategy"] not in PARTS:
        found |= {name: float(row[name]) for name in ("prompt_tokens", "cut") if name in row}
    if not question.answerable:
        return found | {"answered_anyway": float(not metrics.refuses(answer))}
    if question.answers:
        for name in ("exact_match", "f1", "contains", "rouge_l"):
            found[name] = getattr(metrics, name)(answer, question.answers, language)
    if row["strategy"] in WITH_PASSAGES and cited["sentences"]:
        found["cited"] = len(cited["places"]) / cited["sentences"]
        if cited["places"]:
            texts = {document.id: document.text for document in question.shelf.documents}
            right = [
                any(metrics.holds((d, a, b), piece) for piece in question.evidence)
                or bool(metrics.contains(texts[d][a:b], question.answers, language))
                for d, a, b in cited["places"]
            ]
            found["supported"] = sum(right) / len(right)
    return found


def summarise(questions: QuestionSet, rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Means with intervals by strategy, and paired differences against `rag` on the same questions.

    The intervals draw shelves, not questions: questions about one document are not independent. Where there is only
    one shelf (a whole corpus) they draw questions.
    """
    known = {question.id: question for question in questions.questions}
    several = len({question.shelf.key for question in known.values()}) > 1
    cluster = {name: question.shelf.key if several else name for name, question in known.items()}
    values: dict[str, dict[str, dict[str, float]]] = {}  # strategy -> metric -> question -> value
    failed: dict[str, int] = {}
    for row in rows:
        question, strategy = known[row["question"]], values.setdefault(row["strategy"], {})
        if "error" in row:
            failed[row["strategy"]] = failed.get(row["strategy"], 0) + 1
            continue
        for metric, value in measured(row, question, questions.language).items():
            strategy.setdefault(metric, {})[question.id] = value

    def interval(by_question: dict[str, float]) -> dict[str, Any]:
        return metrics.interval(list(by_question.values()), [cluster[question] for question in by_question], seed)

    def differences(strategy: str) -> dict[str, Any]:
        found = {}
        for metric, mine in values[strategy].items():
            theirs = values["rag"].get(metric, {})
            if both := {question: mine[question] - theirs[question] for question in mine if question in theirs}:
                found[metric] = interval(both)
        return found

    return {
        "strategies": {
            name: {metric: interval(by_question) for metric, by_question in found.items()}
            for name, found in values.items()
        },
        "against_rag": {name: differences(name) for name in values if name != "rag"} if "rag" in values else {},
        "failed": failed,
    }
