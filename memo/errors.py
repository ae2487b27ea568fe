"""Every error a person can meet: what happened, and what to do about it.

In: a sentence for the person and a hint. Out: `MemoError` and its kinds, told apart by type; `str(error)` is what the
command line prints and the app shows. Nothing else in the library is allowed to reach a person as a stack trace.
"""

from __future__ import annotations


class MemoError(Exception):
    """What happened (`message`) and what to do about it (`hint`, may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(f"{message} {hint}".strip())


def reason(error: Exception) -> str:
    """What another library's error says in its first line; its kind, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class SettingsError(MemoError):
    """A setting has a value it cannot have."""


class DocumentError(MemoError):
    """A file cannot become a document."""


class EmptyDocument(DocumentError):
    """Nothing to read: zero bytes, or only white space."""


class NoTextInDocument(DocumentError):
    """Pages without text, as scans are."""


class EncryptedDocument(DocumentError):
    """A password is needed."""


class CorruptDocument(DocumentError):
    """The bytes are not what the name says, or are damaged."""


class UnsupportedDocument(DocumentError):
    """A kind of file that is not read."""


class DocumentTooLarge(DocumentError):
    """More bytes, or more text, than the settings allow."""


class TooManyPages(DocumentError):
    """More pages than the settings allow."""


class ExpandingArchive(DocumentError):
    """A zip container that unpacks to far more than it should."""


class ModelError(MemoError):
    """A model cannot be found, loaded or used."""


class MemoryFileError(MemoError):
    """A memory file cannot be used."""


class DamagedMemory(MemoryFileError):
    """A memory file is cut short, altered or of an unknown version."""


class WrongModel(MemoryFileError):
    """A memory was made by another model, or by other memory weights."""


class MemoryTooLong(MemoError):
    """More text than the positions of the model can hold at any ratio."""


class NothingToAsk(MemoError):
    """A question without words, or a library without documents."""


class UnknownDocument(MemoError):
    """No document of that name or id in the library."""


class LibraryBusy(MemoError):
    """Another process has the library open."""


class LimitReached(MemoError):
    """A visitor's allowance (documents, tokens, sessions) is used up."""


class TooManyWeights(LimitReached):
    """As many visitors as there may be keep memory weights of their own."""


class BackendError(MemoError):
    """A generator or a database behind the network did not answer as it should."""


class Cancelled(MemoError):
    """The person stopped it."""


class DatastoreError(MemoError):
    """A kNN datastore that cannot be built or used."""


class TrainingFailed(MemoError):
    """A training that cannot go on."""


class TooLittleText(MemoError):
    """Too little to train on and to measure on."""


class LessonsError(MemoError):
    """A file of lessons that cannot be used."""


class QuestionsError(MemoError):
    """A file of questions that cannot be used."""


class EmptyQuestions(QuestionsError):
    """No question in it."""


class QuestionsTooLarge(QuestionsError):
    """More bytes, or more questions, than are answered."""


class QuestionsNotText(QuestionsError):
    """Not text in UTF-8, or not CSV."""


class NoQuestionColumn(QuestionsError):
    """No column is named question."""
