"""The pages in docs/ name files that are there, link to what exists, and give the numbers and commands of the code.

Their Python and shell is executed in test_readme.py, what is said to a running app in test_api.py.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import tiny
from safetensors import safe_open

from memo import memory_file
from memo.cli import parser
from memo.evaluate import data
from memo.memory import read_all
from memo.train import recipe

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


def rows(text):
    """The cells of all table rows of a page."""
    lines = (line.strip("|\n") for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def quoted(cell):
    return tuple(re.findall(r"`([^`]+)`", cell))


def page_named(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def commands(page):
    """The commands in a page's blocks that are only shown: they need days, a server or texts of one's own."""
    for block in re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for command in re.findall(r"^(?:[A-Z_]+=\S+ )*memo (?!=)(.*)", block.replace("\\\n", ""), re.MULTILINE):
            yield shlex.split(command, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_are_shown_are_commands(page):
    for words in commands(page):
        parser().parse_args(words)  # ends the process where they are not


def test_commands_are_found():
    pages = {page.name: len(list(commands(page))) for page in PAGES}
    assert pages["training.md"] == 8 and pages["measuring.md"] >= 7 and pages["memory-decoder.md"] == 4
    assert pages["README.md"] == pages["README.ko.md"] == 2


def test_the_lines_of_a_question_set_that_are_shown_are_one(tmp_path):
    shown = re.findall(r"^\{.*\}$", page_named("measuring.md"), re.MULTILINE)
    for name, line in zip(("docs", "dev"), shown, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(line, encoding="utf-8")
    [question] = data.load(tmp_path, "dev", "group").questions
    assert question.answerable and len(question.evidence) == 1


def test_the_numbers_of_the_training_are_those_of_the_recipe():
    plans = {
        "pretrain": recipe.Pretraining(), "sft": recipe.Tuning(), "rlgf": recipe.Rewarding(),
        "general": recipe.General(), "decode-train": recipe.Distilling(), "study": recipe.Studying(),
    }  # fmt: skip
    told, stages = {name: {} for name in plans}, ()
    for first, *cells in rows(page_named("training.md")):
        if not first and cells[0] in plans:
            stages = cells[:-1]
        for stage, cell in zip(stages, cells, strict=False):
            if quoted(first) and cell:
                told[stage][quoted(first)[0]] = tuple(float(number) for number in cell.split(","))
    for stage, plan in plans.items():
        values = {field.name: getattr(plan, field.name) for field in fields(plan)}
        assert told[stage] == {name: v if isinstance(v, tuple) else (v,) for name, v in values.items()}, stage


def test_the_recipe_is_the_one_that_is_told():
    cells = {row[0]: quoted(row[1]) for row in rows(page_named("training.md")) if len(row) == 2}
    assert cells["texts"] == recipe.TEXTS and cells["lessons"] == recipe.LESSONS
    assert cells["pre-training"] == recipe.PRETRAINED and cells["SFT"] == recipe.TUNED
    assert cells["pairs, lessons of each set"] == tuple(f"{name}={count}" for name, count in recipe.PAIRED.items())


def test_the_page_of_the_memory_file_names_all_that_is_in_one(tmp_path):
    path = tmp_path / f"mill{memory_file.SUFFIX}"
    memory_file.save(read_all(tiny.memory_model().memorize(tiny.TEXT, "mill", 4, 64, text_sha256="0" * 64)), path)
    with safe_open(path, framework="pt") as file:
        names, about = set(file.keys()), file.metadata()
    told = {quoted(row[0])[0]: row[1:] for row in rows(page_named("memory-format.md")) if quoted(row[0])}
    assert {name for name, cells in told.items() if len(cells) == 2} == names
    assert {name for name, cells in told.items() if len(cells) == 1} == set(about)
    assert told["version"] == [f"`{about['version']}`"]
