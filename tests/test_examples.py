"""The example documents are long enough, and their questions fit them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from pypdf import PdfReader

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "examples"
MINIMUM_WORDS = {
    "harrowmere.md": 8000,
    "minutes.md": 2000,
    "kettlewick-manual.pdf": 1500,
    "bukchon-library.txt": 700,
}
QUESTION_FILES = sorted(EXAMPLES.glob("*.questions.json"))
ENGLISH = """
a about after all although am an and any are as at be been before but by can could did do does for from had has have
he her him his how i if in into is it its many may me might much must my no not of off on one or other our out over
she should so some such than that the their them then there these they this those to too under until up was we were
what when where which while who whom whose why will with would you your
"""
KOREAN = "왜 어떻 무엇 누구 어디 언제 얼마 몇 그 이 한 것은 하나 있나 때"
STOP_WORDS = frozenset(ENGLISH.split())
STOP_PREFIXES = frozenset(KOREAN.split())


def squeeze(text: str) -> str:
    return " ".join(text.split())


def pdf_pages(path: Path) -> list[str]:
    return [squeeze(page.extract_text()) for page in PdfReader(path).pages]


def pieces(path: Path) -> list[str]:
    """The document's text, in pieces which a quote may not cross: a PDF's pages, or else the whole."""
    return pdf_pages(path) if path.suffix == ".pdf" else [squeeze(path.read_text(encoding="utf-8"))]


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def content_words(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+(?:[.,]\d+)*", text.lower().replace("'s", " "))
    short = re.compile("[a-z]{1,2}")
    return {word for word in words if word not in STOP_WORDS and not short.fullmatch(word)}


def same_stem(a: str, b: str, language: str) -> bool:
    """A crude test: equal first letters, or one word is the beginning of the other."""
    if language == "ko":
        return a[:2] == b[:2] and a[:2] not in STOP_PREFIXES
    return a[:5] == b[:5] or (min(len(a), len(b)) >= 4 and (a.startswith(b) or b.startswith(a)))


def shared(question: str, quotes: list[str], language: str) -> set[str]:
    evidence = content_words(" ".join(quotes))
    return {w for w in content_words(question) if any(same_stem(w, other, language) for other in evidence)}


def test_there_is_a_question_file_for_every_document():
    assert {load(path)["document"] for path in QUESTION_FILES} == set(MINIMUM_WORDS)


@pytest.mark.parametrize("name", MINIMUM_WORDS)
def test_document_is_long_enough(name):
    assert sum(len(piece.split()) for piece in pieces(EXAMPLES / name)) >= MINIMUM_WORDS[name]


@pytest.mark.parametrize("path", QUESTION_FILES, ids=lambda path: path.name)
def test_questions_are_complete(path):
    data = load(path)
    assert path.name == Path(data["document"]).stem + ".questions.json"
    assert data["title"] and data["language"] in ("en", "ko")
    questions = data["questions"]
    assert len(questions) >= 12 and len({q["question"] for q in questions}) == len(questions)
    for q in questions:
        assert q.keys() == {"question", "answer", "evidence", "indirect"}
        assert 1 <= len(q["answer"].split()) <= 12 and q["evidence"], q
        assert all(5 <= len(quote.split()) <= 40 for quote in q["evidence"]), q


@pytest.mark.parametrize("path", QUESTION_FILES, ids=lambda path: path.name)
def test_every_quote_is_in_its_document(path):
    data = load(path)
    text = pieces(EXAMPLES / data["document"])
    for q in data["questions"]:
        for quote in q["evidence"]:
            assert any(quote in piece for piece in text), quote


@pytest.mark.parametrize("path", QUESTION_FILES, ids=lambda path: path.name)
def test_a_third_is_indirect_and_shares_no_word_with_its_evidence(path):
    data = load(path)
    indirect = [q for q in data["questions"] if q["indirect"]]
    assert 3 * len(indirect) >= len(data["questions"])
    for q in indirect:
        assert not shared(q["question"], q["evidence"], data["language"]), q["question"]


@pytest.mark.parametrize("path", QUESTION_FILES, ids=lambda path: path.name)
def test_the_answer_of_a_direct_question_is_in_its_evidence(path):
    data = load(path)
    for q in data["questions"]:
        if not q["indirect"]:
            assert shared(q["answer"], q["evidence"], data["language"]), q["answer"]


def test_the_manual_is_what_its_script_makes(tmp_path):
    pytest.importorskip("reportlab")
    spec = importlib.util.spec_from_file_location("make_manual", EXAMPLES / "make_manual.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.make(tmp_path / "manual.pdf")
    pages = pdf_pages(EXAMPLES / "kettlewick-manual.pdf")
    assert pdf_pages(made) == pages and 8 <= len(pages) <= 12
