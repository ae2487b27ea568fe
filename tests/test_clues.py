"""Clues: lines in any language, scores, no echoes; and where in the memory a clue comes from."""

import math

import pytest
import tiny
import torch

from memo import clues as recall
from memo.attention import Slots
from memo.clues import LINES, NEAR, background, collect, key_of, lines, parse, prompts, sources
from memo.generate import LocalGenerator, Prompt, Stream
from memo.memory import Composed, Memory, read_all
from memo.passages import Passage

QUESTION = "Who bought the mill?"


def memory_of(*sizes, usual=None):
    """Documents a, b ... of so many slots, each of which stands for ten characters."""
    owners = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    starts = torch.cat([torch.arange(size) * 10 for size in sizes])
    spans = torch.stack([starts, starts + 10], dim=1)
    return Composed(Slots([], []), tuple("abcdef"[: len(sizes)]), owners, spans, usual=usual)


def stream_of(text, mass=(), logprobs=None):
    """A finished stream, one token a character."""
    logprobs = logprobs or [-1.0] * len(text)
    marks = [(i + 1, logprob) for i, logprob in enumerate(logprobs)]
    return Stream(Prompt((("user", QUESTION),), 99), text, done=True, tokens=len(text), marks=marks, mass=list(mass))


def texts(kind, text, question=QUESTION):
    return [clue.text for clue in parse(kind, stream_of(text), question, memory_of(8), None)]


# --- parsing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "clue"),
    [
        ("1. The wheel had nine blades", "The wheel had nine blades"),
        ("(2) The wheel", "The wheel"),
        ("12) The wheel", "The wheel"),
        ("- The wheel", "The wheel"),
        ("* • The wheel", "The wheel"),
        ("3. - “The wheel”", "The wheel"),
        ('"The wheel"', "The wheel"),
        ("「방앗간은 강에 있었다」", "방앗간은 강에 있었다"),
        ("『磨坊在河边』", "磨坊在河边"),
        ("a) The wheel", "The wheel"),
        ("1887 was cold", "1887 was cold"),
        ("3.5 crowns a day", "3.5 crowns a day"),
        ("-5 degrees in winter", "-5 degrees in winter"),
        ("A mill, a river", "A mill, a river"),
    ],
)
def test_numbers_bullets_and_quotes_are_no_part_of_a_clue(line, clue):
    assert [line[a:b] for a, b in lines(line)] == [clue]


def test_lines_are_kept_in_any_language():
    text = "방앗간은 언제 지어졌는가?\n磨坊是谁买的\nいつ水車は止まった\nКто купил мельницу\nمن اشترى الطاحونة"
    assert [text[a:b] for a, b in lines(text)] == text.split("\n")
    assert texts("span", text) == text.split("\n")[:LINES]


def test_empty_lines_and_lone_marks_are_no_clues():
    assert texts("span", '\n1.\n- \n""\n…\n---\nok\n  The wheel had nine blades\n') == ["The wheel had nine blades"]


@pytest.mark.parametrize(
    "echo", ["Who bought the mill?", "1. who bought the mill", '"Who bought the mill"', "WHO, BOUGHT THE MILL?!"]
)
def test_echoes_of_the_question_are_dropped(echo):
    assert texts("question", f"{echo}\nWhen was it sold?") == ["When was it sold?"]


def test_repeats_are_dropped_within_a_kind_and_across_kinds():
    assert texts("span", "Anna bought it\n2. anna bought it.\nAnna bought it!\nIt was cold") == [
        "Anna bought it", "It was cold",
    ]  # fmt: skip
    streams = {"span": stream_of('"Anna bought it"'), "key": stream_of("- anna bought it\n- It was cold")}
    assert [(c.text, c.kind) for c in collect(streams, QUESTION, memory_of(8))] == [
        ("Anna bought it", "span"), ("It was cold", "key"),
    ]  # fmt: skip


def test_a_sentence_that_holds_the_question_and_more_is_kept():
    more = "Who bought the mill? Anna Okafor bought the mill in 1887."
    assert texts("span", more) == [more]


def test_a_draft_is_one_clue_however_many_lines():
    assert texts("draft", "Anna bought it.\nIn 1887.\n") == ["Anna bought it.\nIn 1887."]


def test_no_more_than_a_few_lines_of_a_kind():
    assert len(texts("span", "\n".join(f"Fact of the year {1800 + i * 7}" for i in range(9)))) == LINES


def test_keys_know_letters_of_all_scripts_and_forms():
    assert key_of("Ａnna’s  “MILL”!") == "annasmill" and key_of("방앗간, 1887년") == "방앗간1887년"


def test_the_score_is_the_mean_log_probability_of_the_clues_own_tokens():
    text = "- ab\n- Anna bought it"
    logprobs = [-9.0] * 7 + [-0.5] * 10 + [-1.5] * 4  # "- ab\n- " and then the clue's 14 characters
    [clue] = parse("key", stream_of(text, logprobs=logprobs), QUESTION, memory_of(8), None)
    assert clue.text == "Anna bought it" and clue.score == pytest.approx((-0.5 * 10 - 1.5 * 4) / 14)


def test_the_prompts_share_the_memory_and_ask_the_question():
    memory = memory_of(8)
    asked = prompts(QUESTION, memory, 33)
    assert set(asked) == {"span", "question", "draft", "key"} == set(recall.KINDS)
    for prompt in asked.values():
        assert prompt.slots is memory.slots and prompt.watch and prompt.max_tokens == 33
        assert QUESTION in prompt.messages[-1][1]


# --- where a clue comes from -----------------------------------------------------------------------------------------


def looks(*slots, of=60, base=0.001):
    """Attention of one token (2 layers) on these slots, on top of a little everywhere."""
    mass = torch.full((2, of), base)
    mass[:, list(slots)] += 0.3
    return mass


USUAL = torch.full((2, 60), 0.001)


def test_a_clue_comes_from_where_its_tokens_looked():
    """Token i was chosen while token i - 1 looked: the clue is tokens 3 to 6."""
    mass = [looks(50), looks(50), looks(30, 31), looks(31), looks(30, 32), looks(31), looks(10)]
    [source, *rest] = sources(stream_of("abcdefgh", mass), [3, 4, 5, 6], memory_of(60), USUAL)
    assert source.document == "a" and source.start <= 300 and source.end >= 330
    assert source.end - source.start == 10 * NEAR and source.weight > 0.99 and not rest


def test_sources_are_told_strongest_first_and_do_not_overlap():
    mass = [looks(20), looks(20), looks(20), looks(45)]
    first, second = sources(stream_of("abcde", mass), [1, 2, 3, 4], memory_of(60), USUAL)
    assert first.start <= 200 < first.end and second.start <= 450 < second.end
    assert first.weight == pytest.approx(0.75, abs=0.01) and second.weight == pytest.approx(0.25, abs=0.01)
    assert first.end <= second.start


def test_what_is_always_looked_at_is_no_source():
    usual = USUAL.clone()
    usual[:, 40] += 0.3
    [source] = sources(stream_of("abc", [looks(40, 15), looks(40, 15)]), [1, 2], memory_of(60), usual)
    assert source.start <= 150 < source.end


def test_attention_sinks_are_no_sources():
    """The first slot of each document draws attention without meaning anything."""
    assert sources(stream_of("ab", [looks(0, 30)]), [1], memory_of(30, 30), USUAL) == ()


@pytest.mark.parametrize("slot", [31, 32, 34, 59])
@pytest.mark.parametrize("sizes", [(30, 30), (30, 10, 20), (30, 1, 29)])
def test_a_source_lies_in_the_document_that_was_looked_at(slot, sizes):
    """Also just after the end of another document."""
    memory = memory_of(*sizes)
    first_slots = [sum(sizes[:i]) for i in range(len(sizes))]
    if slot in first_slots:
        return
    [source] = sources(stream_of("ab", [looks(slot)]), [1], memory, USUAL)
    owner = memory.documents[int(memory.owners[slot])]
    start = int(memory.spans[slot, 0])
    assert source.document == owner and source.start <= start < source.end
    assert source.weight == pytest.approx(1, abs=1e-3)
    assert source.end <= 10 * sizes[memory.documents.index(owner)]


def test_a_document_of_fewer_slots_than_a_place_is_found_too():
    [source] = sources(stream_of("ab", [looks(2, of=4)]), [1], memory_of(4), USUAL[:, :4])
    assert (source.document, source.start, source.end) == ("a", 0, 40)


def test_without_attention_or_background_there_are_no_sources():
    assert sources(stream_of("ab"), [1], memory_of(60), USUAL) == ()
    assert sources(stream_of("ab", [looks(3)]), [1], memory_of(60), None) == ()
    assert sources(stream_of("ab", [looks(3)]), [0], memory_of(60), USUAL) == ()


def test_the_background_is_the_mean_over_all_tokens():
    streams = [stream_of("ab", [looks(1), looks(2)]), stream_of("a", [looks(1)])]
    mean = background(streams)
    assert torch.allclose(mean, (2 * looks(1) + looks(2)) / 3) and background([stream_of("a")]) is None


def at(document, start, end):
    return Passage(document, start, end, None, "x" * (end - start))


def test_pointers_are_what_a_question_looks_at_more_than_usual():
    # slots of ten characters each: 20 of document a, then 10 of b
    memory = memory_of(20, 10)
    usual = torch.full((2, 30), 0.01)
    looked = usual.clone()
    looked[:, 7] += 0.08  # characters 70 to 80 of a
    looked[0, 25] += 0.04  # characters 50 to 60 of b, in one of the two layers
    looked[:, 20] += 5  # the sink of b
    memory.usual_look = usual
    passages = [at("a", 0, 70), at("a", 70, 100), at("b", 0, 50), at("b", 55, 65), at("c", 70, 80)]
    strengths = recall.pointers(looked, memory, passages)
    whole = 0.08 / math.sqrt(0.03 + 1e-6)  # three slots are usually looked at with .03
    half = 0.02 / math.sqrt(0.01 + 1e-6) / 2  # half of two slots; the mean over two layers
    assert strengths == [0, 1, 0, pytest.approx(half / whole, rel=1e-3), 0]


def test_without_a_look_there_are_no_pointers():
    memory = memory_of(5)
    assert recall.pointers(None, memory, [at("a", 0, 9)]) == [0.0]
    assert recall.pointers(torch.ones(2, 5), memory, [at("a", 0, 9)]) == [0.0]  # what is usual is not known
    memory.usual_look = torch.ones(2, 5)
    assert recall.pointers(torch.ones(2, 5), memory, []) == []
    assert recall.pointers(torch.ones(2, 5), memory, [at("a", 0, 30)]) == [0.0]  # looked as usual


def test_a_slot_that_is_always_looked_at_says_little():
    memory = memory_of(20)
    memory.usual_look = torch.full((1, 20), 0.01)
    memory.usual_look[0, 5] = 0.25
    looked = memory.usual_look.clone()
    looked[0, 5] += 0.1
    looked[0, 15] += 0.1
    often, seldom = recall.pointers(looked, memory, [at("a", 50, 60), at("a", 150, 160)])
    assert seldom == 1 and often == pytest.approx(0.1 / 0.5 / (0.1 / 0.1), rel=1e-3)


def test_recalling_from_a_real_memory_yields_clues_with_places_in_its_documents():
    reader = tiny.memory_model()
    memory = Memory(reader)
    for name, text in (("mill", tiny.TEXT), ("강", tiny.KOREAN)):
        memory.add(read_all(reader.memorize(text, name, 4, 64)))
    composed = memory.compose()
    run = LocalGenerator(reader, "tiny").open()
    kinds = {kind: run.add(prompt) for kind, prompt in prompts(QUESTION, composed, 24).items()}
    usual = run.add(recall.neutral(composed))
    while run.step():
        pass
    recall.learn_usual(composed, usual)
    assert kinds["draft"].looked.shape == composed.usual_look.shape == composed.usual.shape
    strengths = recall.pointers(kinds["draft"].looked, composed, [at("mill", 0, 100), at("강", 0, 30)])
    assert max(strengths) == 1 and min(strengths) >= 0
    assert composed.usual.shape == (3, len(composed.slots)) and composed.usual.sum(dim=1).max() <= 1
    lengths = {"mill": len(tiny.TEXT), "강": len(tiny.KOREAN)}
    clues = collect(kinds, QUESTION, composed)
    assert clues and any(clue.sources for clue in clues)
    for clue in clues:
        assert clue.score < 0 and math.isfinite(clue.score)
        weights = [source.weight for source in clue.sources]
        assert sum(weights) <= 1.001
        for source in clue.sources:
            assert 0 <= source.start < source.end <= lengths[source.document]
