"""The pages in docs/ name files that are there, and link to what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = ("CONTRIBUTING.md", "AGENTS.md", "README.md", "README.ko.md")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in BESIDE)]
PLACES = ("", "memo", "memo/train", "memo/evaluate", "memo/ui")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|css|js))`", text):
        assert any((ROOT / place / name).exists() for place in PLACES), name
