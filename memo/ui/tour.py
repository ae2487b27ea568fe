"""The guided tour: what stands where on the page, step by step, for whoever asks for it.

In: a language. Out: a button and the steps' texts as HTML; `tour.js` shows them one by one, and frames what each is
about.
"""

from __future__ import annotations

from memo.ui.marks import esc
from memo.ui.texts import say

# element that a step is about; its text is the translation `tour.NAME`
STEPS = {
    "documents": "documents-panel", "question": "question-panel", "clues": "clues-panel", "passages": "passages-panel",
    "answers": "answers-panel", "options": "options", "tabs": "tabs", "privacy": "privacy",
}  # fmt: skip
WORDS = ("next", "back", "close")


def tour(language: str) -> str:
    """The button, and all that is said, hidden until it is pressed."""

    def text(name: str) -> str:
        return esc(say(language, f"tour.{name}"))

    steps = "".join(f'<li data-at="{element}">{text(name)}</li>' for name, element in STEPS.items())
    words = "".join(f'<li data-word="{word}">{text(word)}</li>' for word in WORDS)
    return f'<button type="button" id="tour">{text("start")}</button><ol id="tour-steps" hidden>{steps}{words}</ol>'
