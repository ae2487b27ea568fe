"""The app for programs: the same library and answers over HTTP (`gradio_client`) and as tools for assistants (MCP).

In: a session's token, which `memorize` hands out; texts or files; questions. Out: JSON as the command line prints it.

    memorize, memorize_file ──> token ──> ask, compare, documents, forget

A session ends with `forget` of everything, or after the minutes in the settings without use; then all of it is deleted.
Limits are those of a visitor's page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from memo.answers import DEFAULT_COMPARISON, STRATEGIES
from memo.cli import answer_json, entry_json
from memo.documents import Document, read_bytes, read_document
from memo.errors import MemoError, SettingsError
from memo.sessions import Session, Sessions


def told(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A typed error becomes the client's, with the sentence that tells what to do; nothing else of it gets out."""

    @wraps(function)
    def safe(*arguments: Any, **more: Any) -> dict[str, Any]:
        try:
            return function(*arguments, **more)
        except MemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as fault:
            told = "That could not be done. Is every argument of the type that is documented?"
            raise gr.Error(told) from fault

    return safe


class Api:
    """The functions that programs call. Their docstrings and types are what clients and assistants see."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def wire(self) -> None:
        """Makes them known; within the page's `gr.Blocks`."""
        for function in (self.memorize, self.ask, self.compare, self.documents, self.forget):
            gr.api(told(function), api_name=function.__name__, concurrency_limit=2)
        file, token = gr.File(visible=False), gr.Textbox(visible=False)
        gr.Button(visible=False).click(
            told(self.memorize_file), [file, token], gr.JSON(visible=False), api_name="memorize_file",
            api_description=self.memorize_file.__doc__, concurrency_limit=2,
        )  # fmt: skip

    def memorize(self, text: str, name: str = "text.txt", token: str = "") -> dict:
        """Reads a text into the memory of a library, so that questions can be asked about it.

        Args:
            text: the document, plain text or Markdown.
            name: what the document is called, such as notes.md.
            token: of a library that exists already; empty makes a new one.

        Returns:
            token (give it to every later call), and the document: name, id, tokens, slots of its memory, bytes.
        """
        ending = Path(name).suffix.lower()
        name = name if ending in (".txt", ".md") else f"{name}.txt"
        document = read_bytes(text.encode("utf-8", "replace"), name, **self.sessions.settings.file_limits)
        return self._memorized(document, token)

    def memorize_file(self, file: str, token: str = "") -> dict:
        """Reads a file (txt, md, html, pdf, docx, pptx or epub) into the memory of a library.

        Args:
            file: the document.
            token: of a library that exists already; empty makes a new one.

        Returns:
            token (give it to every later call), and the document: name, id, tokens, slots of its memory, bytes.
        """
        if not file:
            raise SettingsError("There is no file.", "Send one.")
        try:
            document = read_document(file, **self.sessions.settings.file_limits)
        finally:
            Path(file).unlink(missing_ok=True)  # the web server would keep it for an hour
        return self._memorized(document, token)

    def _memorized(self, document: Document, token: str) -> dict[str, Any]:
        session = self.sessions.get(token) if token else self.sessions.open()
        try:
            for progress in session.memorize([document]):
                if progress.error is not None:
                    raise progress.error
        except BaseException:
            if not token:  # nobody else knows of it
                self.sessions.close(session.token)
            raise
        return {"token": session.token, "document": entry_json(session.rag.library.entry(document.id))}

    def ask(self, question: str, token: str, strategy: str = "memorag") -> dict:
        """Answers a question about the documents of a library, with citations.

        Args:
            question: what to answer.
            token: of the library, as memorize gave it.
            strategy: how to answer: memorag (recalls clues first), rag, hyde, rq_rag, full_context, closed_book …

        Returns:
            answer, citations (places in answer and documents), clues, passages, timings in seconds.
        """
        return self._answers(question, token, [strategy])[strategy]

    def compare(self, question: str, token: str, strategies: list[str] = list(DEFAULT_COMPARISON)) -> dict:  # noqa: B006
        """Answers a question in several ways, side by side.

        Args:
            question: what to answer.
            token: of the library, as memorize gave it.
            strategies: how to answer, each as in ask.

        Returns:
            for each strategy what ask returns.
        """
        return self._answers(question, token, strategies)

    def _answers(self, question: str, token: str, strategies: list[str]) -> dict[str, Any]:
        from memo.pipeline import finish

        session = self.sessions.get(token)
        if not strategies or len(strategies) > len(STRATEGIES):
            raise SettingsError("No strategy is given.", f"Choose from: {', '.join(STRATEGIES)}.")
        answers = finish(session.rag.compare(question, strategies, stop=session.stop))
        return {name: answer_json(answer) for name, answer in answers.items()}

    def documents(self, token: str) -> dict:
        """Lists the documents of a library.

        Args:
            token: of the library, as memorize gave it.

        Returns:
            documents: name, id, tokens, slots of its memory, bytes of it and of a full cache, for each.
        """
        return {"documents": [entry_json(entry) for entry in self._entries(self.sessions.get(token))]}

    def forget(self, token: str, document: str = "") -> dict:
        """Deletes a document, or the whole library.

        Args:
            token: of the library, as memorize gave it.
            document: its name or id; empty deletes everything and ends the session.

        Returns:
            forgotten: the names of what was deleted.
        """
        session = self.sessions.get(token)
        if document:
            entry = session.rag.library.find(document)
            session.forget(entry.id)
            return {"forgotten": [entry.name]}
        names = [entry.name for entry in self._entries(session)]
        self.sessions.close(token)
        return {"forgotten": names}

    def _entries(self, session: Session) -> list[Any]:
        return list(session.rag.library.documents.values())
