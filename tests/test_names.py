"""Names: which words are one, which lead on, what is found by them."""

import dataclasses

import pytest
import tiny

from memo import clues as recall
from memo import names
from memo.answers import clue_queries
from memo.documents import Document
from memo.events import Clue, Source
from memo.pipeline import finish
from memo.search import fuse


def texts(text):
    return [text[words[0].start() : words[-1].end()] for _, words, _ in names.runs(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It was made by M. J. Parsons in 1968.", ["It", "M. J. Parsons"]),
        ("They met Anna Okafor and Piet.", ["They", "Anna Okafor", "Piet"]),
        ("the Order of the Garter, of old", ["Order of the Garter"]),
        ("painted by Leonardo da Vinci", ["Leonardo da Vinci"]),
        ("He saw Rome. Paris was far.", ["He", "Rome", "Paris"]),
        ("He met Dr. Lindqvist in St. Louis.", ["He", "Dr. Lindqvist", "St. Louis"]),
        ("read J.R.R. Tolkien and the U.S. Army", ["J.R.R. Tolkien", "U.S. Army"]),
        ("directed by Vera\nLindqvist in 1931", ["Vera\nLindqvist"]),
        ("Anna\n\nPiet", ["Anna", "Piet"]),
        ("from Rome--Paris, _Anna Berg_", ["Rome", "Paris", "Anna Berg"]),
        ("what I and Anna-Lena saw at O'Brien's", ["Anna-Lena", "O'Brien's"]),
        ("Apollo 11 of 1969", ["Apollo"]),
        ("Édith Piaf und Žižek", ["Édith Piaf", "Žižek"]),
        ("강이 얼고 방앗간은 잠들었다", []),
        ("", []),
    ],
)
def test_names_are_words_with_capitals_side_by_side(text, found):
    assert texts(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The director lives in the town of New York, a new town.", ["New York"]),
        ("The New York of the past was small.", ["New York"]),
        ("Here Vera came. Here she was.", ["Here Vera"]),
        ("Vera came. She left for Lund.", ["Lund"]),
        ("It is Lindqvist's, and Vera Lindqvist’s.", ["Vera Lindqvist", "Lindqvist"]),
        ("it was written by Vera\nLindqvist.", ["Vera Lindqvist"]),
    ],
)
def test_what_is_read_as_a_name(text, found):
    assert [clue.text for clue in names.read("Why?", [(hit("a", 0.5), text)])] == found


def hit(document, similarity, start=0):
    return {"document": document, "start": start, "end": start + 99, "page": 0, "similarity": similarity}


def test_names_are_weighed_by_where_they_stand_and_by_what_the_question_has_of_them():
    question = "When did the director of Low Tide die?"
    passages = [
        (hit("film", 0.7, 40), "The film Low Tide was directed by Vera Lindqvist. The tide was low."),
        (hit("other", 0.5), "Vera Lindqvist and Low Water."),
    ]
    found = {clue.text: clue for clue in names.read(question, passages)}
    assert list(found) == ["Vera Lindqvist", "Low Tide", "Low Water"]
    assert {clue.kind for clue in found.values()} == {"name"}
    assert found["Vera Lindqvist"].score == pytest.approx(names.START)
    assert found["Low Water"].score == pytest.approx(names.START - 0.2 * names.NEAR - names.KNOWN / 2)
    assert found["Low Tide"].score == pytest.approx(names.START - names.KNOWN)
    [alone] = names.read(question, [(hit("film", 0.7), "It was made by Vera.")])
    assert alone.score == pytest.approx(names.START - names.ALONE)
    assert found["Vera Lindqvist"].sources == (Source("film", 40, 40 + 49),)  # the sentence
    [said] = names.read("What is Low Tide's end?", [(hit("film", 0.7), "It is Low Tide.")])
    assert said.score == pytest.approx(names.START - names.KNOWN)


def test_only_the_strongest_of_the_nearest_passages_are_kept():
    people = [f"{first} {last}" for first in ("Ada", "Bo", "Cy") for last in ("Ash", "Elm", "Fir", "Oak")]
    passages = [(hit(str(i), 0.9 - i / 100), f"Here is {people[i % 12]}.") for i in range(40)]
    assert [clue.text for clue in names.read("Who?", passages)] == people[: names.NAMES]
    assert names.read("Who?", passages[names.READ :])[0].score == pytest.approx(names.START)
    assert names.read("Who?", []) == ()


def test_a_ranking_takes_the_best_name_of_each_passage_and_has_a_floor():
    vera, low = Clue("Vera", "name", 0.6), Clue("Low", "name", 0.1)
    found = names.ranking([vera, low], [[hit("a", 0.5), hit("b", 0.1)], [hit("b", 0.9), hit("c", 0.3)]])
    told = [(one["document"], one["clue"], one["similarity"]) for one in found]
    assert told == [("a", "Vera", pytest.approx(1.1)), ("b", "Low", pytest.approx(1.0)), ("c", "Low", names.NOTHING)]
    assert names.ranking([], []) == []


def test_passages_of_the_document_that_a_name_was_read_in_share_the_best_of_them():
    vera = Clue("Vera", "name", 0.6, (Source("film", 5, 9),))
    others = [hit("film", 0.9, 0), hit("film", 0.2, 100), hit("b", 0.9)]
    found = names.ranking([vera], [[hit("film", 0.5, 100), hit("a", 0.7)]], others)
    told = {(one["document"], one["start"]): one["similarity"] for one in found}
    assert told == {("a", 0): pytest.approx(1.3), ("film", 0): pytest.approx(1.1), ("film", 100): pytest.approx(1.1)}


def test_a_passage_tells_which_name_led_to_it():
    leading = [{**hit("b", 1.1), "clue": "Vera"}, {**hit("a", 0.8), "clue": "Low"}]
    [first, second] = fuse([("question", 1.0, [hit("a", 0.5), hit("b", 0.4)]), ("names", 1.0, leading)])
    assert (first.hit["document"], first.found_by) == ("b", ("question", "Vera"))
    assert (second.hit["document"], second.found_by) == ("a", ("question", "Low"))


FILM = Document("film", "film.txt", "Low Tide is a film of 1931. It was directed by Vera Lindqvist.")
VERA = Document("vera", "vera.txt", "Vera Lindqvist lived at the coast until she died in 1977.")


def asked(rag, clues=None):
    return finish(rag.ask("Who directed Low Tide?", clues=clues))["memorag"]


def test_memorag_looks_up_names_where_there_are_several_documents(tiny_rag):
    list(tiny_rag.memorize([FILM]))
    assert not [clue for clue in asked(tiny_rag).clues if clue.kind == "name"]
    list(tiny_rag.memorize([VERA]))
    answer = asked(tiny_rag)
    leading = [clue.text for clue in answer.clues if clue.kind == "name"]
    assert "Vera Lindqvist" in leading
    assert "Vera Lindqvist" in {label for found in answer.passages for label in found.found_by}
    again = asked(tiny_rag, answer.clues)  # clues that were chosen, and not changed, find the same
    assert again.passages == answer.passages
    without = asked(tiny_rag, [clue for clue in answer.clues if clue.kind != "name"])
    assert not set(leading) & {label for found in without.passages for label in found.found_by}


def test_a_long_document_does_not_hide_where_its_names_lead(tiny_rag):
    many = "\n\n".join(f"and Vera Lindqvist saw Low Tide {i} times, the sea and the mill." for i in range(60))
    list(tiny_rag.memorize([Document("film", "film.txt", many), VERA]))
    tiny_rag.settings = dataclasses.replace(tiny_rag.settings, context_tokens=2000)
    ask = tiny_rag._new_ask("What of Low Tide?", "memorag", ())
    leading = [clue for clue in ask.names() if clue.text == "Vera Lindqvist"]
    ask.search(clue_queries(ask.question, []), leading=leading)
    assert "vera" in {found.hit["document"] for found in ask.ranked if "Vera Lindqvist" in found.found_by}


def test_a_name_that_was_recalled_too_is_one_clue(tiny_rag, monkeypatch):
    monkeypatch.setattr(recall, "collect", lambda *_: (Clue("vera lindqvist.", "key"), Clue("a mill", "span")))
    list(tiny_rag.memorize([FILM, VERA]))
    kinds = [(clue.text, clue.kind) for clue in asked(tiny_rag).clues]
    assert ("Vera Lindqvist", "name") in kinds and ("a mill", "span") in kinds
    assert "vera lindqvist." not in dict(kinds)


def test_a_name_is_not_looked_up_as_another_clue_is():
    clues = [Clue("Vera", "name", 0.6), Clue("a mill", "span", -1.0)]
    assert [query.label for query in clue_queries("Who?", clues)] == ["question", "a mill"]
    assert clue_queries("Who?", clues)[1] == clue_queries("Who?", clues[1:])[1]


def test_without_capitals_there_are_no_names(tiny_rag):
    list(tiny_rag.memorize([tiny.document("강.txt", tiny.KOREAN * 3), tiny.document("물.txt", tiny.KOREAN)]))
    assert not [clue for clue in asked(tiny_rag).clues if clue.kind == "name"]
