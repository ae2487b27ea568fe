"""Words: BM25 by hand, other scripts, documents that come and go, files that are broken."""

import math

import pytest
import tiny

from memo.documents import Document
from memo.errors import BackendError
from memo.library import Library
from memo.passages import Passage
from memo.pipeline import finish
from memo.search import Query
from memo.words import WordIndex


def passages(document, *texts):
    return [Passage(document, 100 * i, 100 * i + len(text), None, text) for i, text in enumerate(texts)]


def starts(hits):
    return [hit["start"] for hit in hits]


def test_bm25_by_hand():
    texts = ["the mill stood", "the river froze and the river ran", "a mill by a river", "nothing here", "nor here"]
    index = WordIndex()
    index.put("d", passages("d", *texts))
    hits = index.rank("Which mill by the river?", 9, ["d"])
    mean = sum(len(text.split()) for text in texts) / 5

    def score(text):
        bag, total = text.split(), 0.0
        for word in ("which", "mill", "by", "the", "river"):
            holding, times = sum(word in other.split() for other in texts), bag.count(word)
            idf = max(1e-6, math.log((5 - holding + 0.5) / (holding + 0.5)))
            total += idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * len(bag) / mean))
        return total

    assert starts(hits) == [200, 100, 0]
    assert hits[1]["similarity"] == pytest.approx(score(texts[1]) / score(texts[2]), abs=1e-6)
    assert hits[0]["similarity"] == 1 and index.rank("Quantum chromodynamics?", 9, ["d"]) == []
    assert starts(index.rank("Which mill by the river?", 1, ["d"])) == [200]


def test_korean_is_found_by_parts_of_words():
    index = WordIndex()
    index.put("d", passages("d", "방앗간은 강가에 있다", "다리는 무너졌다"))
    assert starts(index.rank("방앗간이 어디에?", 9, ["d"])) == [0]


ODD = ["", "?!", '" OR NEAR(', "a AND NOT b*", "'; DROP TABLE places; --", "\ud800", "\x00"]


@pytest.mark.parametrize("asked", ODD)
def test_whatever_is_asked_is_looked_up_as_words(asked):
    index = WordIndex()
    index.put("d", passages("d", "a mill by a river", "near or far"))
    index.rank(asked, 9, ["d"])
    assert index.sizes() == {"d": 2}


def test_documents_come_and_go(tmp_path):
    both, alone = WordIndex(tmp_path / "both"), WordIndex(tmp_path / "alone")
    for index in (both, alone):
        index.put("b", passages("b", "a mill by a river", "the river froze"))
    both.put("a", passages("a", "a river of gold", "mills"))
    assert {hit["document"] for hit in both.rank("river", 9, ["a", "b"])} == {"a", "b"}
    assert {hit["document"] for hit in both.rank("river", 9, ["b"])} == {"b"}
    both.put("a", [])
    assert both.rank("the river mill", 9, ["a", "b"]) == alone.rank("the river mill", 9, ["a", "b"]) != []
    both.put("b", passages("b", "gold"))  # in place of what it had
    assert both.sizes() == {"b": 1} and both.rank("river", 9, ["b"]) == []
    both.close()
    again = WordIndex(tmp_path / "both")
    assert starts(again.rank("gold", 9, ["b"])) == [0]


def test_what_is_deleted_is_not_in_the_file_any_more(tmp_path):
    place = tmp_path / "words.sqlite"
    index = WordIndex(place)
    for number in range(20):
        index.put(f"d{number}", passages(f"d{number}", f"the secret{number}zanzibar", "a mill by a river"))
    assert b"zanzibar" in place.read_bytes()
    for number in range(20):
        index.put(f"d{number}", passages(f"d{number}", "a mill") if number % 2 else [])
    left = [path for path in tmp_path.iterdir() if b"zanzibar" in path.read_bytes()]
    assert left == [] and sum(index.sizes().values()) == 10


def test_a_file_that_is_broken_is_begun_anew(tmp_path):
    place = tmp_path / "words.sqlite"
    place.write_bytes(b"this is no database" * 100)
    index = WordIndex(place)
    index.put("d", passages("d", "a mill"))
    assert starts(index.rank("mill", 9, ["d"])) == [0]


def test_a_file_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(BackendError):
        WordIndex(tmp_path / "nowhere" / "words.sqlite")


def test_a_disk_that_is_full_is_told_and_what_was_there_stays(tmp_path):
    index = WordIndex(tmp_path / "words.sqlite")
    index.put("d", passages("d", "a mill"))
    index._base.execute("PRAGMA max_page_count = 20")
    with pytest.raises(BackendError):
        index.put("e", passages("e", *(f"word{i} " * 50 for i in range(1000))))
    assert index.sizes() == {"d": 1} and starts(index.rank("mill", 9, ["d", "e"])) == [0]


def test_a_number_that_no_embedder_knows_is_found(tmp_path, tiny_rag):
    texts = [tiny.TEXT, tiny.TEXT.replace("the", "one"), f"{tiny.TEXT} The part is XQ4471. {tiny.TEXT}"]
    for number, text in enumerate(texts):
        finish(tiny_rag.memorize([Document(f"d{number}", f"{number}.txt", text)]))
    [found] = tiny_rag.library.rank_words([Query("question", ("Which is XQ4471?",))])
    assert found[0]["document"] == "d2"
    tiny_rag.library.words.put("d2", [])  # what a process that was killed could leave
    root, embedder = tiny_rag.library.root, tiny_rag.library._embedder
    tiny_rag.library.close()
    with Library(root, embedder) as library:
        [found] = library.rank_words([Query("question", ("Which is XQ4471?",))])
        assert found[0]["document"] == "d2"
        library.remove("d2")
        assert library.rank_words([Query("question", ("Which is XQ4471?",))]) == [[]]
