"""A visitor's own questions: read from a CSV, answered one after the other, given back as a CSV.

In: a file with the columns question and answers, a session. Out: `Question`s; `Evaluation`, whose rows fill up while a
thread of its own works; a CSV in which nothing is a formula.
"""

from __future__ import annotations

import csv
import io
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from memo.errors import EmptyQuestions, NoQuestionColumn, QuestionsNotText, QuestionsTooLarge
from memo.evaluate.metrics import contains, exact_match, f1
from memo.events import Answer, AnswerDone, AnswerFailed
from memo.sessions import Session
from memo.ui.board import AskStop

MOST = 50  # questions
BYTES = 200_000
ANSWERS = ("answers", "answer", "answer(s)")
COLUMNS = ("question", "strategy", "answer", "f1", "exact_match", "in_passages", "error")
MEASURES = ("f1", "exact_match", "in_passages")
AT_ONCE = threading.Semaphore(2)  # visitors whose questions are answered at the same time; others wait for their turn


@dataclass(frozen=True)
class Question:
    """What is asked, and what would be right (may be empty: not known)."""

    text: str
    answers: tuple[str, ...] = ()


@dataclass
class Result:
    """One strategy's answer to one question. Measures are None where they do not apply."""

    question: str
    strategy: str
    answer: str = ""
    f1: float | None = None
    exact_match: float | None = None
    in_passages: float | None = None
    error: Exception | None = None


def read_questions(path: Path) -> list[Question]:
    """The questions of a CSV.

    Raises:
        QuestionsTooLarge, QuestionsNotText, EmptyQuestions, NoQuestionColumn: what is wrong with it.
    """
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise QuestionsTooLarge(f"The file is larger than {BYTES // 1000} kB.", "Split it.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise QuestionsNotText("The file is not text in UTF-8.", "Save it as CSV in UTF-8.")
    if not text.strip():
        raise EmptyQuestions("The file is empty.", "Choose one with questions in it.")
    return _questions(text.lstrip())


def _questions(text: str) -> list[Question]:
    head = text.splitlines()[0]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head else ","))
    except csv.Error:
        raise QuestionsNotText("The file cannot be read as CSV.", "Save it as CSV in UTF-8.") from None
    names = [name.strip().lower() for name in rows[0]]
    if "question" not in names:
        raise NoQuestionColumn("There is no column named question.", "Name the columns in the first line.")
    at, known = names.index("question"), next((names.index(n) for n in ANSWERS if n in names), len(names))
    found = []
    for row in rows[1:]:
        asked = row[at].strip() if at < len(row) else ""
        right = row[known] if known < len(row) else ""
        if asked:
            found.append(Question(asked, tuple(one.strip() for one in right.split("|") if one.strip())))
    if not found:
        raise EmptyQuestions("There is no question in the file.", "Write one a line.")
    if len(found) > MOST:
        raise QuestionsTooLarge(f"There are {len(found)} questions; {MOST} are answered at most.", "Split the file.")
    return found


def measured(question: Question, answer: Answer) -> Result:
    """The answer with what can be measured of it."""
    result = Result(question.text, answer.strategy, answer.text)
    if question.answers:
        language = "ko" if re.search("[가-힣]", "".join(question.answers)) else "en"
        result.f1 = f1(answer.text, question.answers, language)
        result.exact_match = exact_match(answer.text, question.answers, language)
        if answer.passages:
            result.in_passages = max(contains(p.text, question.answers, language) for p in answer.passages)
    return result


def means(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """{strategy: {measure: mean of the questions it applies to}}; failed answers have no measures."""
    out: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(result.strategy for result in results):
        values = {m: [v for r in results if r.strategy == name and (v := getattr(r, m)) is not None] for m in MEASURES}
        out[name] = {measure: fmean(some) if some else None for measure, some in values.items()}
    return out


def as_csv(results: Sequence[Result]) -> str:
    """Everything, for a spreadsheet: text that it would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    write = csv.writer(out)
    write.writerow(COLUMNS)
    for result in results:
        row: Mapping[str, object] = vars(result) | {"error": str(result.error or "")}
        write.writerow([_plain(row[name]) for name in COLUMNS])
    return "\ufeff" + out.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, str) and (value.startswith(("\t", "\r", "\n")) or value.lstrip().startswith(tuple("=+-@"))):
        return "'" + value
    return value


class Evaluation:
    """One visitor's questions being answered."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.questions: list[Question] = []
        self.results: list[Result] = []
        self.done = 0  # questions
        self.running = self.waiting = False
        self.error: Exception | None = None
        self.refused = ""  # the key of a text that says why it was not begun
        self.began = 0.0
        self._stop = AskStop(session)

    def clear(self) -> None:
        """Forgets questions and answers."""
        self._stop.all()
        self.questions, self.results, self.done, self.running, self.error = [], [], 0, False, None
        self.refused = ""

    def begin(self, strategies: Sequence[str], alpha: float = 0.0) -> None:
        """Answers the questions in the background."""
        self._stop.all()
        self._stop, self.results, self.done, self.error = AskStop(self.session), [], 0, None
        self.running = self.waiting = True
        work = (list(self.questions), tuple(strategies), alpha, self.results, self._stop)
        threading.Thread(target=self._work, args=work, daemon=True, name="memo-testing").start()

    def stop(self) -> None:
        """Ends it where it is; what is measured stays."""
        self._stop.all()

    @property
    def left(self) -> float | None:
        """Seconds still to go, by those before; None: not known yet."""
        if not self.done:
            return None
        return (time.monotonic() - self.began) / self.done * (len(self.questions) - self.done)

    def _work(
        self, questions: list[Question], strategies: tuple[str, ...], alpha: float, results: list[Result], stop: AskStop
    ) -> None:
        error = None
        if not (mine := self._turn(stop)):
            questions = []
        for question in questions:
            if stop.wanted():
                break
            try:
                for event in self.session.rag.compare(question.text, strategies, stop=stop, alpha=alpha):
                    self.session.used = time.monotonic()
                    if isinstance(event, AnswerDone) and not event.answer.stopped:
                        results.append(measured(question, event.answer))
                    elif isinstance(event, AnswerFailed):
                        results.append(Result(question.text, event.strategy, error=event.error))
            except Exception as problem:
                error = problem
                break
            if stop is self._stop and not stop.wanted():
                self.done += 1
        if mine:
            AT_ONCE.release()
        if stop is self._stop:  # else it was begun again, or forgotten
            self.error, self.running, self.waiting = error, False, False

    def _turn(self, stop: AskStop) -> bool:
        """Waits for it. False: it was stopped before."""
        while not stop.wanted():
            if AT_ONCE.acquire(timeout=0.2):
                if stop is self._stop:
                    self.waiting, self.began = False, time.monotonic()
                return True
            self.session.used = time.monotonic()
        return False
