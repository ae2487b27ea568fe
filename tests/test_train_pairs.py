"""The making of pairs: clues sampled against a plain reading, the best and the worst set of them."""

import dataclasses

import pytest
import tiny
import torch
from rlgf_case import ASKED, END, LAKE, LESSON, MILL, PLAN, judge_of, logits_of, memory_model, seeded, slots_of

from memo import clues
from memo.events import Clue
from memo.train import rewards, rlgf, sft
from memo.train.lessons import Lesson
from memo.train.recipe import REWARDS

# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    return memory_model()


@pytest.fixture(scope="module")
def slots(reader):
    return slots_of(reader, MILL, LAKE)


@pytest.fixture(scope="module")
def samples(reader, slots):
    """A function: continuations of a prompt."""

    def draw(count=6, most=10, temperature=1.0, ends=(), seed=0):
        prompt = reader.encode("Who bought it? ", start=False)[0]
        return rlgf.sample(reader, slots, count * [prompt], most, temperature, set(ends), seeded(seed))

    return draw


def test_the_same_draw_gives_the_same_texts_and_rows_differ(samples):
    assert samples() == samples() != samples(seed=1)
    assert len(set(map(tuple, samples()))) == 6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_are_drawn_from_what_a_plain_reading_predicts(family):
    reader, temperature, generator = memory_model(family), 0.7, seeded(3)
    slots, prompt = slots_of(reader, MILL, LAKE), reader.encode("Who? ", start=False)[0]
    rows = [list(prompt) for _ in range(3)]
    for _ in range(4):
        chances = torch.stack([(logits_of(reader, slots, row) / temperature).softmax(-1) for row in rows])
        for row, token in zip(rows, torch.multinomial(chances, 1, generator=generator)[:, 0].tolist(), strict=True):
            row.append(token)
    assert rlgf.sample(reader, slots, 3 * [prompt], 4, temperature, set(), seeded(3)) == [row[-4:] for row in rows]


def test_prompts_of_one_batch_are_read_each_for_itself(reader, slots):
    prompts = [reader.encode(text, start=False)[0] for text in ("Who bought it? ", "When? ", "Who bought it? ")]
    together = rlgf.sample(reader, slots, prompts, 6, 1e-4, set(), seeded())
    assert together == [rlgf.sample(reader, slots, [one], 6, 1e-4, set(), seeded())[0] for one in prompts]
    assert together[0] == together[2] != together[1]


def test_at_a_low_temperature_the_likeliest_is_said(reader, slots, samples):
    ids = reader.encode("Who bought it? ", start=False)[0]
    for _ in range(8):
        ids.append(int(logits_of(reader, slots, ids).argmax()))
    assert samples(3, 8, 1e-4) == 3 * [ids[-8:]]


def test_a_text_ends_with_its_end_which_is_no_part_of_it(samples):
    ends = set(range(0, 258, 4))
    free, ended = samples(12, 10), samples(12, 10, ends=ends)
    assert all(len(one) == 10 for one in free)
    assert all(len(one) <= 10 and not ends & set(one) for one in ended)
    lengths = {len(one) for one in ended}
    assert len(lengths) > 3 and min(lengths) < 3
    # as long as all of them go on they are the same
    first = min(lengths)
    assert [one[:first] for one in ended] == [one[:first] for one in free]
    assert samples(4, ends=range(258)) == [[], [], [], []]
    assert [len(one) for one in samples(3, 1)] == [1, 1, 1]


def test_the_memory_is_left_as_it_was(slots, samples):
    before = [tensor.clone() for tensor in (*slots.keys, *slots.values)]
    samples()
    assert all(torch.equal(a, b) for a, b in zip(before, (*slots.keys, *slots.values), strict=True))


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge():
    return judge_of()


@pytest.fixture
def said(monkeypatch):
    """A function: has sets of clues say these texts, in all kinds, in place of sampling them."""

    def put(*texts):
        def sample(reader, slots, prompts, most, temperature, ends, draw):
            assert len(prompts) == len(clues.KINDS) * len(texts)
            return [reader.encode(text, start=False)[0] for _ in clues.KINDS for text in texts]

        monkeypatch.setattr(rlgf, "sample", sample)

    return put


def everything(text):
    return dict.fromkeys(clues.KINDS, text)


def pairs_of(reader, judge, lesson=LESSON, reward="recall", number=0, **changes):
    plan = dataclasses.replace(PLAN, **changes)
    return list(rlgf.pairs(reader, judge, lesson, plan, reward, number))


def sets_of(reader, **changes):
    plan = dataclasses.replace(PLAN, **changes)
    return rlgf._sets(reader, sft.Encoder(reader, plan.most), slots_of(reader, MILL), "Tell more?", plan, seeded())


def read(streams):
    return clues.collect(streams, "Tell more?", None)


def test_a_sampled_set_is_read_as_recalled_clues_are(reader, said):
    """Without echoes and repeats; and what was said is kept as it was, without its beginnings."""
    texts = ("The mill.\n2. the MILL\n- Anna", "tell more", " ")
    said(*texts)
    sets = sets_of(reader, samples=3, most=99)
    for streams, text in zip(sets, texts, strict=True):
        assert {kind: stream.text for kind, stream in streams.items()} == {
            kind: begin + text for kind, (_, _, begin) in clues.KINDS.items()
        }
        assert rlgf._written(streams) == everything(text)
    assert read(sets[0]) == (Clue("The mill.", "span"), Clue("Anna", "span"), Clue(texts[0], "draft"))
    assert read(sets[1]) == read(sets[2]) == ()


@pytest.mark.parametrize(("most", "found"), [(22, "Anna bought it."), (23, "Anna bought it. In 188")])
def test_of_a_set_that_was_cut_whole_sentences_are_read(reader, said, most, found):
    text = "Anna bought it. In 188"
    said(text)
    [streams] = sets_of(reader, samples=1, most=most)
    assert read(streams) == (Clue(found, "span"),) and rlgf._written(streams) == everything(text)


def test_the_best_and_the_worst_set_make_a_pair(reader, judge, said):
    said(
        "Piet rebuilt the east wall", "bridge flood 1903 / Anna Okafor bought the mill", "the flood took a bridge",
        "stone by stone / the wall / the lake froze each winter",
    )  # fmt: skip
    [pair] = pairs_of(reader, judge)
    assert pair.rewards == (0.5, 1.0, 0.5, 0.0)
    assert pair.best == everything("bridge flood 1903 / Anna Okafor bought the mill")
    assert pair.worst == everything("stone by stone / the wall / the lake froze each winter")
    assert (pair.documents, pair.question) == (LESSON.documents, ASKED.question)


def with_rewards(*values):
    """A judge that gives these, one after the other."""
    judge, left = judge_of(), list(values)
    judge.reward = lambda kind, lesson, asked, ranking: left.pop(0)
    return judge


def test_a_set_is_rewarded_for_the_clues_that_are_read_in_it(reader, said, monkeypatch):
    said("a", "The mill.", "tell more?", "Anna")
    judge, rank, recalled = with_rewards(0.0, 1.0, 0.0, 0.0), rewards.Judge.ranked, []

    def ranked(question, found, *rest):
        recalled.append([clue.text for clue in found])
        return rank(judge, question, found, *rest)

    monkeypatch.setattr(judge, "ranked", ranked)
    [pair] = pairs_of(reader, judge)
    assert recalled == [[], ["The mill."], [], ["Anna"]] and pair.best == everything("The mill.")


@pytest.mark.parametrize(
    ("given", "best", "worst"),
    [((0.25, 0.5, 0.0, 0.5), 1, 2), ((-3.0, -1.0, -2.0, -0.5), 3, 0), ((1.0, 0.0, 0.0, 1.0), 0, 1)],
)
def test_pairs_hold_the_highest_and_the_lowest_reward(reader, said, given, best, worst):
    said("a", "b", "c", "d")
    [pair] = pairs_of(reader, with_rewards(*given))
    assert (pair.best, pair.worst) == (everything("abcd"[best]), everything("abcd"[worst]))
    assert pair.rewards == given


def test_sets_that_hardly_differ_make_no_pair(reader, said):
    said("a", "b", "c", "d")
    assert pairs_of(reader, with_rewards(0.5, 0.5, 0.5, 0.5)) == []
    assert pairs_of(reader, with_rewards(0.5, 0.5, 0.5, 0.5), least_gain=0.0) == []  # no set beside itself
    assert len(pairs_of(reader, with_rewards(0.5, 0.5001, 0.5, 0.5), least_gain=0.0)) == 1
    assert pairs_of(reader, with_rewards(0.5, 0.625, 0.5, 0.5), least_gain=0.25) == []
    assert len(pairs_of(reader, with_rewards(0.5, 0.75, 0.5, 0.5), least_gain=0.25)) == 1


def test_questions_that_cannot_be_rewarded_are_left_out(reader, said):
    said("a", "b", "c", "d")
    no_evidence = dataclasses.replace(ASKED, question="Without evidence?", evidence=())
    no_answer = dataclasses.replace(ASKED, question="Without answer?", answers=())
    lesson = Lesson(LESSON.documents, (no_evidence, ASKED, no_answer))
    given = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    asked = [[pair.question for pair in pairs_of(reader, with_rewards(*given), lesson, one)] for one in REWARDS]
    assert asked == [[ASKED.question], ["Without evidence?", ASKED.question], ["Without evidence?", ASKED.question]]
    assert pairs_of(reader, with_rewards(), Lesson(("a",), (no_evidence, no_answer))) == []
    assert pairs_of(reader, with_rewards(), Lesson((" \n",), (ASKED,)), "f1") == []


def test_what_is_sampled_follows_from_the_lessons_number_and_the_seed(reader):
    def sampled(**more):
        [pair] = pairs_of(reader, with_rewards(0.0, 1.0, 0.5, 0.5), **more)
        return pair.best, pair.worst

    found = sampled()
    assert found == sampled() and found not in (sampled(number=1), sampled(seed=1))
    assert all(one.keys() == clues.KINDS.keys() for one in found)


def test_sets_are_sampled_after_the_prompts_of_recalling(reader, monkeypatch):
    """Behind the memory of all documents, at the plan's temperature and length."""
    asked, expected = [], slots_of(reader, *LESSON.documents)

    def sample(reader, slots, prompts, most, temperature, ends, draw):
        assert prompts[0::4] == prompts[3::4] and len(prompts) == 4 * len(clues.KINDS)
        asked.extend(reader.tokenizer.decode(prompt) for prompt in prompts[::4])
        assert (most, temperature, ends) == (12, 0.9, {END})
        assert torch.allclose(slots.keys[2], expected.keys[2], atol=1e-5)
        return [[65 + i] for i in range(len(prompts))]

    monkeypatch.setattr(rlgf, "sample", sample)
    pairs_of(reader, with_rewards(0.0, 1.0, 0.0, 0.0))
    for prompt, kind in zip(asked, clues.KINDS, strict=True):
        assert prompt.endswith(f"assistant\n{clues.KINDS[kind][2]}")
        assert clues.KINDS[kind][1].format(ASKED.question) in prompt
