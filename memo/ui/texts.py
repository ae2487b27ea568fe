"""What the app says, in the visitor's language.

In: keys, a language and the values to fill in. Out: sentences. Static labels are translated in the browser by
`gr.I18n`; everything that is computed here is asked for with `say`, whose language comes from the browser's
Accept-Language, the same that `gr.I18n` goes by.
"""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import memo
from memo.errors import MemoError

if TYPE_CHECKING:
    import gradio as gr

ASSETS = Path(memo.__file__).parent.parent / "assets"
LANGUAGES = ("en", "ko")
# What the pipeline notes beside an answer, in English, and the text that says the same in every language.
NOTES = (
    (re.compile(r"Only the first (?P<count>[\d,]+) of (?P<size>[\d,]+) tokens fit the model"), "note.cut"),
    (re.compile(r"left out as least relevant: (?P<names>.*)\.$"), "note.left_out"),
    (re.compile(r"The Memory Decoder has a share of (?P<alpha>[\d.]+) in this answer"), "note.mixed"),
    (re.compile(r"The Memory Decoder has a share of its own for every word"), "note.routed"),
)

log = logging.getLogger("memo.ui")


@cache
def table(language: str) -> dict[str, str]:
    """All texts of a language."""
    return json.loads((ASSETS / "locales" / f"{language}.json").read_text(encoding="utf-8"))


def say(language: str, key: str, **values: object) -> str:
    """The text of `key`, filled in."""
    return table(language)[key].format(**values)


def language_of(request: gr.Request) -> str:
    """The first language of the browser, where it is one of ours; else English."""
    first = (request.headers.get("accept-language") or "").split(",")[0].strip().lower()
    return next((language for language in LANGUAGES if first.split("-")[0] == language), "en")


def tell(language: str, error: Exception, **values: object) -> str:
    """An error as a sentence for the person. What is no `MemoError` is logged, and said to be our fault."""
    if not isinstance(error, MemoError):
        log.error("unexpected", exc_info=error)
        return say(language, "error.unexpected")
    texts = table(language)
    key = next(f"error.{kind.__name__}" for kind in type(error).__mro__ if f"error.{kind.__name__}" in texts)
    return say(language, key, **{"message": error.message, "hint": error.hint, "name": "", **values}).strip()


def note(language: str, text: str) -> str:
    """A note of the pipeline in the visitor's language; as it is, if it is not known here."""
    for pattern, key in NOTES:
        if found := pattern.search(text):
            return say(language, key, **found.groupdict())
    return text


def size(count: int) -> str:
    """Bytes, in the unit that keeps it short."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
