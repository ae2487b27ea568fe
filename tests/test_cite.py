"""Citations: exact spans on both sides, in several languages, and none for what no passage says."""

import pytest
import tiny

from memo.cite import cite, words
from memo.events import Found

FILLER = "Wool prices fell that year. The parish kept its own records of births."


def passages(*texts, start=100):
    return [Found(f"d{i}", start, start + len(text), None, text, 1.0) for i, text in enumerate(texts)]


def cited(answer, found):
    """(sentence of the answer, sentence of the passage) pairs, after checking the numbers."""
    pairs = []
    for citation in cite(answer, found):
        passage = found[citation.passage]
        assert citation.source.document == passage.document
        first, last = citation.source.start - passage.start, citation.source.end - passage.start
        assert 0 <= first < last <= len(passage.text) and 0 < citation.source.weight <= 1
        pairs.append((answer[citation.start : citation.end], passage.text[first:last]))
    return pairs


def test_each_sentence_points_to_the_sentence_that_says_so():
    answer = "Anna Okafor bought the mill in 1887. A flood took the bridge in 1903."
    assert cited(answer, passages(FILLER, tiny.TEXT)) == [
        (
            "Anna Okafor bought the mill in 1887.",
            "Anna Okafor bought it in 1887 for 412 crowns; nobody knew why.",
        ),
        (
            "A flood took the bridge in 1903.",
            "In 1903 a flood took the bridge, the boat house and the east wall.",
        ),
    ]


def test_a_sentence_that_no_passage_supports_gets_none():
    answer = "Penguins live in Antarctica and eat fish. A flood took the bridge in 1903."
    assert [sentence for sentence, _ in cited(answer, passages(tiny.TEXT))] == ["A flood took the bridge in 1903."]


def test_a_sentence_with_one_shared_name_gets_none():
    assert cited("Anna Okafor wrote seven operas about volcanoes in Peru.", passages(tiny.TEXT)) == []


def test_of_several_passages_the_best_is_cited():
    weak, strong = "A bridge was there.", "In 1903 a flood took the bridge."
    [citation] = cite("A flood took the bridge in 1903.", passages(weak, strong))
    assert citation.passage == 1 and citation.source.document == "d1" and citation.source.weight == 1


def test_the_same_words_verbatim_are_supported_whole():
    sentence = "Its wheel had nine blades of oak, and the tenth was missing."
    [citation] = cite(sentence, passages(tiny.TEXT))
    assert citation.source.weight == 1 and (citation.start, citation.end) == (0, len(sentence))


def test_korean_is_cited():
    answer = "안나는 1887년도에 412 크로네를 내고 샀다. 펭귄은 남극에서 물고기를 먹고 산다."
    assert cited(answer, passages("날씨가 좋았다. 아무도 오지 않았다.", tiny.KOREAN)) == [
        ("안나는 1887년도에 412 크로네를 내고 샀다.", "1887년에 안나가 412 크로네에 샀다."),
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("磨坊建于一八八七年。", "这座磨坊建于一八八七年。河水结冰了。"),
        ("水車は川の曲がり角にあった。", "水車は川の曲がり角にあった。冬に凍る。"),
    ],
)
def test_scripts_without_spaces_are_cited(answer, text):
    [(sentence, support)] = cited(answer, passages(FILLER, text))
    assert sentence == answer and support == text[: text.index("。") + 1]


def test_white_space_around_sentences_is_no_part_of_a_citation():
    [(sentence, support)] = cited("  \n A flood took the bridge in 1903. \n", passages(f"\n\n  {tiny.TEXT}"))
    assert sentence == "A flood took the bridge in 1903." and support.startswith("In 1903") and support.endswith(".")


@pytest.mark.parametrize("answer", ["", "   ", "…?!", "42"])
def test_what_says_nothing_gets_no_citation(answer):
    assert cite(answer, passages(tiny.TEXT)) == ()


def test_without_passages_there_are_no_citations():
    assert cite("Anna bought the mill.", []) == () and cite("Anna bought the mill.", passages("", " \n ")) == ()


def test_words_are_folded_and_korean_comes_in_pairs():
    assert words("The MILLS, Ｓtreet's 3.5") == ["the", "mill", "street", "s", "3", "5"]
    assert words("방앗간은") == ["방앗", "앗간", "간은"] and words("강") == ["강"]
    assert words("1887년에 AI가, bạn!") == ["1887", "년에", "ai", "가", "bạn"]
