"""RLGF: sampling against a plain reading, rewards and losses by hand, pairs, training, and the command line."""

import copy
import dataclasses
import json
import math
from functools import partial

import pytest
import tiny
import torch
from accelerate import Accelerator

from memo import answers, clues
from memo.attention import MemoryWeights, Row, run
from memo.cli import main
from memo.errors import SettingsError
from memo.events import Clue
from memo.generate import LocalGenerator
from memo.memory import MemoryModel
from memo.models import Models
from memo.search import Ranked, place_of
from memo.settings import Settings
from memo.train import lessons, loop, rewards, rlgf, sft
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import REWARDS, Rewarding
from memo.train.rlgf import Group, Pair
from memo.train.setup import trainable

WINDOW, END = 24, 257
SETTINGS = Settings(passage_tokens=50, context_tokens=120, answer_tokens=12)
PLAN = Rewarding(
    steps=2, batch=2, learning_rate=1e-3, window=WINDOW, ratio=4, most=12, samples=4, temperature=0.9, save_every=2,
    anchor=0.0,
)  # fmt: skip
MILL = "Anna Okafor bought the mill in 1887. Its wheel had nine blades of oak."
LAKE = "The lake froze each winter. A flood took the bridge in 1903."
SON = "Her son Piet rebuilt the east wall. He did so stone by stone."
ASKED = Asked("Tell more?", ("Anna Okafor",), ((0, 0, 36), (1, 28, 60)))
LESSON = Lesson((MILL, LAKE, SON), (ASKED,))


def memory_model(family="llama"):
    reader = tiny.memory_model(family)
    reader.weights = trainable(tiny.perturbed(reader.model))
    return reader


def ids_of(reader, *texts):
    return tuple(tuple(reader.encode(text)[0]) for text in texts)


def slots_of(reader, *texts):
    with torch.no_grad():
        return sft.memorize(reader, ids_of(reader, *texts), WINDOW, 4)


def logits_of(reader, slots, ids):
    """Of the token after these, by a reading of all of them behind the memory."""
    with torch.no_grad():
        embeddings = reader.model.get_input_embeddings()(torch.tensor([ids]))
        return reader.logits(run(reader.model, embeddings, [Row(slots)]))[0, -1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
        return rlgf.sample(reader, slots, prompt, count, most, temperature, set(ends), seeded(seed))

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
    assert rlgf.sample(reader, slots, prompt, 3, 4, temperature, set(), seeded(3)) == [row[-4:] for row in rows]


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


# --- rewards ---------------------------------------------------------------------------------------------------------


def judge_of(generator=None, **changes):
    generator = generator or LocalGenerator(tiny.memory_model(), "tiny")
    return rewards.Judge(tiny.Embedder(), generator, dataclasses.replace(SETTINGS, **changes))


def cosine(one, other):
    a, b = torch.tensor(tiny.Embedder().encode([one, other]))
    return float(a @ b)


def vectors_of(judge, passages):
    return torch.tensor(judge.embedder.encode([passage.text for passage in passages]))


@pytest.fixture(scope="module")
def judge():
    return judge_of()


@pytest.fixture(scope="module")
def passages(judge):
    """A sentence each."""
    return judge.passages(LESSON)


def test_passages_are_those_of_all_documents(passages):
    assert [(passage.document, passage.text) for passage in passages] == [
        ("0", "Anna Okafor bought the mill in 1887."), ("0", "Its wheel had nine blades of oak."),
        ("1", "The lake froze each winter."), ("1", "A flood took the bridge in 1903."),
        ("2", "Her son Piet rebuilt the east wall."), ("2", "He did so stone by stone."),
    ]  # fmt: skip
    assert all(LESSON.documents[int(one.document)][one.start : one.end] == one.text for one in passages)


def ranking_of(passages, order):
    """A ranking of the passages with these numbers."""
    return [Ranked(place_of(passages[i]), 0.5, ("question",)) for i in order]


def order_of(ranking, passages):
    """The numbers of the passages of a ranking."""
    places = [place_of(passage) for passage in passages]
    return [places.index({key: one.hit[key] for key in places[0]}) for one in ranking]


@pytest.mark.parametrize("question", ["What froze in winter?", "Whose son was Piet?", "Which bridge?"])
def test_without_clues_passages_rank_by_similarity_to_the_question(judge, passages, question):
    ranking = judge.ranked(question, (), passages, vectors_of(judge, passages))
    near = [cosine(question, passage.text) for passage in passages]
    order = order_of(ranking, passages)
    assert sorted(order) == list(range(len(passages)))
    ranked = [near[i] for i in order]
    assert ranked == pytest.approx(sorted(near, reverse=True)) and ranked[0] > ranked[1]
    assert [one.score for one in ranking] == pytest.approx(ranked, abs=1e-4)
    assert {one.found_by for one in ranking} == {("question",)}


def test_clues_count_beside_the_question_a_tenth_together(judge, passages):
    recalled = [Clue("stone by stone", "span"), Clue("the flood took a bridge", "draft")]
    ranking = judge.ranked("Tell of the mill?", recalled, passages, vectors_of(judge, passages))
    score = [
        cosine("Tell of the mill?", one.text) + 0.1 * sum(cosine(clue.text, one.text) for clue in recalled) / 2
        for one in passages
    ]
    order = order_of(ranking, passages)
    assert [score[i] for i in order] == pytest.approx(sorted(score, reverse=True), abs=1e-6)
    assert [one.score for one in ranking] == pytest.approx([score[i] / 1.1 for i in order], abs=1e-4)
    without = judge.ranked("Tell of the mill?", (), passages, vectors_of(judge, passages))
    assert order != order_of(without, passages)
    [stones] = [one for one in ranking if passages[5].start == one.hit["start"] and one.hit["document"] == "2"]
    assert "stone by stone" in stones.found_by


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ([0, 3, 1, 2, 4, 5], 1.0), ([1, 2, 0, 3, 4, 5], 0.5), ([3, 4, 5, 0, 1, 2], 0.5), ([1, 2, 4, 0, 3, 5], 0.0),
    ],
)  # fmt: skip
def test_recall_is_the_share_of_the_evidence_among_the_first_passages(judge, passages, order, found):
    assert judge.reward("recall", LESSON, ASKED, ranking_of(passages, order)) == found
    assert rewards.FIRST == 3


def shown(passages, order):
    """Passages as a prompt shows them."""
    return "\n\n".join(f"[{int(passages[i].document) + 1}]\n{passages[i].text}" for i in order)


@pytest.mark.parametrize(
    ("budget", "order", "fitting"),
    [
        (1, [0, 1, 2, 3, 4, 5], [0]), (69, [0, 1, 2, 3, 4, 5], [0, 1]), (96, [0, 1, 2, 3, 4, 5], [0, 1, 2]),
        # what does not fit is passed over for what does, until the budget is about full
        (68, [0, 1, 2, 3, 4, 5], [0, 2]), (95, [0, 1, 2, 3, 4, 5], [0, 1, 5]), (9999, [5, 3, 1, 4, 2, 0], range(6)),
        (1, [2, 0], [2]), (63, [2, 0], [0, 2]),
    ],
)  # fmt: skip
def test_the_best_passages_that_fit_are_shown_in_the_documents_order(judge, passages, budget, order, fitting):
    assert [len(passage.text) for passage in passages] == [36, 33, 27, 32, 35, 25]
    prompt = judge_of(judge.generator, context_tokens=budget).prompt(LESSON, "Who?", ranking_of(passages, order))
    user = answers.ASK.format(passages=shown(passages, fitting), question="Who?")
    assert prompt.messages == (("system", answers.SYSTEM), ("user", user))
    assert prompt.max_tokens == SETTINGS.answer_tokens


def test_documents_go_by_their_numbers(judge):
    lesson = Lesson(tuple(f"The {number}th." for number in range(12)), (ASKED,))
    there = judge.passages(lesson)
    wide = judge_of(judge.generator, context_tokens=9999)
    [_, (_, user)] = wide.prompt(lesson, "Which?", ranking_of(there, range(12))[::-1]).messages
    assert user.startswith("[1]\nThe 0th.\n\n[2]\nThe 1th.") and "[11]\nThe 10th.\n\n[12]\nThe 11th.\n" in user


def plain_log_p(model, ids, answer):
    """Mean log p of the answer after the ids, by transformers' own attention."""
    plain = copy.deepcopy(model.model)
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        chances = plain(torch.tensor([ids + answer])).logits.log_softmax(-1)[0]
    return sum(float(chances[len(ids) + i - 1, token]) for i, token in enumerate(answer)) / len(answer)


def test_likelihood_is_that_of_the_answer_after_the_passages_that_fit(judge, passages):
    order, model = [3, 0, 2, 1, 4, 5], judge.generator.model
    fitting = shown(passages, (0, 2, 3))  # 32 + 36 + 27 of 100 tokens; in the documents' order
    user = answers.ASK.format(passages=fitting, question=ASKED.question)
    messages = [{"role": "system", "content": answers.SYSTEM}, {"role": "user", "content": user}]
    text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    answer = model.encode(ASKED.answers[0], start=False)[0]
    narrow = judge_of(judge.generator, context_tokens=100)
    expected = plain_log_p(model, ids, answer)
    found = narrow.reward("likelihood", LESSON, ASKED, ranking_of(passages, order))
    assert found == pytest.approx(expected, abs=1e-4)
    other = narrow.reward("likelihood", LESSON, ASKED, ranking_of(passages, order[::-1]))
    assert abs(other - expected) > 1e-3 and other < 0


def test_f1_is_that_of_what_the_generator_answers(passages):
    says = tiny.Says(lambda prompt: "It was the Anna Okafor of 1887")
    judge = judge_of(says, context_tokens=8)  # words
    asked = dataclasses.replace(ASKED, answers=("Nobody", "Anna Okafor"))
    # "it was anna okafor of 1887" (no articles): both words of the answer, among six
    ranking = ranking_of(passages, [2, 0, 1])
    assert judge.reward("f1", LESSON, asked, ranking) == pytest.approx(2 * 2 / (6 + 2))
    assert says.prompts == [judge.prompt(LESSON, asked.question, ranking)]
    assert shown(passages, [2]) in says.prompts[0].messages[1][1]


def test_f1_of_the_local_model_is_a_number(judge, passages):
    assert 0 <= judge.reward("f1", LESSON, ASKED, ranking_of(passages, [0, 1, 2])) <= 1


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch):
    """A function: has sets of clues say these texts, in all kinds, in place of sampling them."""

    def put(*texts):
        def sample(reader, slots, prompt, count, most, temperature, ends, draw):
            assert count == len(texts)
            return [reader.encode(text, start=False)[0] for text in texts]

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

    def sample(reader, slots, prompt, count, most, temperature, ends, draw):
        asked.append(reader.tokenizer.decode(prompt))
        assert (count, most, temperature, ends) == (4, 12, 0.9, {END})
        assert torch.allclose(slots.keys[2], expected.keys[2], atol=1e-5)
        return [[65 + i] for i in range(count)]

    monkeypatch.setattr(rlgf, "sample", sample)
    pairs_of(reader, with_rewards(0.0, 1.0, 0.0, 0.0))
    for prompt, kind in zip(asked, clues.KINDS, strict=True):
        assert prompt.endswith(f"assistant\n{clues.KINDS[kind][2]}")
        assert clues.KINDS[kind][1].format(ASKED.question) in prompt


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "worst", "margin", "loss"),
    [(-1.0, -2.5, 1.0, 0.0), (-2.0, -1.5, 1.0, 1.5), (-2.0, -2.0, 1.0, 1.0), (-1.0, -1.5, 2.0, 1.5)],
)
def test_hinge_by_hand(best, worst, margin, loss):
    a, b = (torch.tensor(value, requires_grad=True) for value in (best, worst))
    found = rlgf.hinge(a, b, margin)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert (float(a.grad), float(b.grad)) == ((-1.0, 1.0) if loss else (0.0, 0.0))


def test_dpo_by_hand():
    values = [torch.tensor(value, requires_grad=True) for value in (-3.0, -5.0, -4.0, -4.5)]
    found = rlgf.dpo(*values, beta=0.1)
    found.backward()
    z = 0.1 * ((-3 + 4) - (-5 + 4.5))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-z)))
    slope = 0.1 / (1 + math.exp(z))
    assert [float(value.grad) for value in values] == pytest.approx([-slope, slope, slope, -slope])


def group_of(reader, best=None, worst=None):
    encoder = sft.Encoder(reader, PLAN.most)
    best, worst = best or {"span": 'Anna"', "draft": "Anna Okafor."}, worst or {"span": "No", "draft": "Not at all."}
    return Group(ids_of(reader, MILL, LAKE), *(encoder.written(ASKED.question, one) for one in (best, worst)))


def log_p(reader, group):
    """Of every token of the best and of the worst, as numbers."""
    with torch.no_grad():
        slots = slots_of(reader, MILL, LAKE)
        return [
            [float(value) for one in sft.log_probs(reader, slots, targets) for value in one]
            for targets in (group.best, group.worst)
        ]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("anchor", [0.0, 0.25])
@pytest.mark.parametrize("margin", [0.01, 3.0])
def test_the_hinge_is_of_means_over_all_tokens_of_a_set(reader, margin, anchor):
    group = group_of(reader)
    best, worst = log_p(reader, group)
    assert len(best) == 6 + 12 and len(worst) == 3 + 12  # cut at the most; the shorter ones have an end
    with torch.no_grad():
        found = rlgf.losses(reader, group, dataclasses.replace(PLAN, margin=margin, anchor=anchor))
    expected = max(0, margin - mean(best) + mean(worst)) - anchor * mean(best)
    assert found["loss"].tolist() == pytest.approx([expected], abs=1e-4)
    assert found["gain"].tolist() == pytest.approx([mean(best) - mean(worst)], abs=1e-4)
    assert found.keys() == {"loss", "gain"}


def before_of(reader):
    return MemoryModel(reader.model, reader.tokenizer, copy.deepcopy(reader.weights).requires_grad_(False))


@pytest.mark.parametrize("anchor", [0.0, 0.25])
def test_dpo_is_of_sums_and_compares_with_the_weights_of_the_start(anchor):
    reader = memory_model()
    group, before = group_of(reader), before_of(reader)
    with torch.no_grad():
        reader.weights.vector += 0.3
    (best, worst), (best_before, worst_before) = log_p(reader, group), log_p(before, group)
    plan = dataclasses.replace(PLAN, dpo=1, beta=0.3, anchor=anchor)
    with torch.no_grad():
        found = rlgf.losses(reader, group, plan, before)
    z = 0.3 * (sum(best) - sum(best_before) - sum(worst) + sum(worst_before))
    assert abs(z) > 0.01
    assert found["loss"].tolist() == pytest.approx([math.log(1 + math.exp(-z)) - anchor * mean(best)], abs=1e-3)
    assert found["gain"].tolist() == pytest.approx([mean(best) - mean(worst)], abs=1e-4)


def test_dpo_of_untouched_weights_is_the_logarithm_of_two():
    reader = memory_model()
    found = rlgf.losses(reader, group_of(reader), dataclasses.replace(PLAN, dpo=1), before_of(reader))
    assert found["loss"].item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("dpo", [0, 1])
def test_gradients_reach_all_weights_that_are_trained_and_no_others(dpo):
    reader = memory_model()
    before = before_of(reader)
    plan = dataclasses.replace(PLAN, dpo=dpo, margin=9.0)
    rlgf.losses(reader, group_of(reader), plan, before)["loss"].sum().backward()
    unused = f"layers.{len(reader.weights.layers) - 1}.q_proj"
    for name, weight in reader.weights.named_parameters():
        if name.startswith(unused):
            assert weight.grad is None
        else:
            assert weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-8, name
    assert all(weight.grad is None for one in (reader.model, before.weights) for weight in one.parameters())


@pytest.mark.parametrize("dpo", [0, 1])
def test_training_makes_good_clues_likelier_than_bad_ones(tmp_path, dpo):
    reader, lines = memory_model(), []
    model, before = copy.deepcopy(reader.model.state_dict()), before_of(reader)
    start = copy.deepcopy(before.weights.state_dict())
    plan = dataclasses.replace(PLAN, steps=8, batch=1, learning_rate=2e-3, dpo=dpo, margin=9.0, warmup=0.0)
    known = [Pair((MILL, LAKE), ASKED.question, {"draft": "Anna Okafor."}, {"draft": "Not at all."}, (1.0, 0.0))]
    loop.train(
        reader.weights, rlgf.groups(reader, known, plan), partial(rlgf.losses, reader, plan=plan, before=before), plan,
        tmp_path, {}, Accelerator(cpu=True), lines.append,
    )  # fmt: skip
    assert lines[-1]["gain"] > lines[0]["gain"] + 0.2 and lines[-1]["loss"] < lines[0]["loss"]
    assert all(torch.equal(weight, model[name]) for name, weight in reader.model.state_dict().items())
    assert all(torch.equal(weight, start[name]) for name, weight in before.weights.state_dict().items())


# --- groups ----------------------------------------------------------------------------------------------------------


def pair_of(number):
    return Pair((f"Document {number}.", "More."), f"{number}?", {"key": f"good {number}"}, {"key": "bad"}, (1.0, 0.0))


def test_each_pair_comes_once_an_epoch_in_an_order_of_its_own(reader):
    known = [pair_of(number) for number in range(6)]
    micro_batches, encoder = rlgf.groups(reader, known, PLAN), sft.Encoder(reader, PLAN.most)
    epochs = [[group for step in range(first, first + 3) for group in micro_batches(step)] for first in (0, 3, 6)]
    expected = {
        Group(ids_of(reader, *one.documents), *(encoder.written(one.question, x) for x in (one.best, one.worst)))
        for one in known
    }
    for epoch in epochs:
        assert len(epoch) == 6 and set(epoch) == expected
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    again = rlgf.groups(reader, known, PLAN)
    assert [again(step) for step in (4, 0)] == [epochs[1][2:4], epochs[0][:2]]
    assert all(len(group) == 1 and group.tokens == len("Document 1.More.") for group in epochs[0])


def test_too_few_pairs_are_refused(reader):
    with pytest.raises(SettingsError, match="1 pairs do not fill a step of 2"):
        rlgf.groups(reader, [pair_of(1)], PLAN)


# --- files -----------------------------------------------------------------------------------------------------------


def written(path, *units):
    rows = [[dataclasses.asdict(pair) for pair in unit] for unit in units]
    lines = [{"about": {}}, *({"key": str(i), "rows": unit} for i, unit in enumerate(rows))]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_come_back_from_a_file(tmp_path):
    known = [pair_of(1), pair_of(2), dataclasses.replace(pair_of(3), question="누가\n“x”?", rewards=(0.5, -1.25))]
    assert rlgf.load(written(tmp_path / "pairs.jsonl", known[:2], [], known[2:])) == known


@pytest.mark.parametrize("character", ["\u2028", "\x85"])
def test_a_text_with_another_kind_of_line_end_comes_back(tmp_path, character):
    known = [dataclasses.replace(pair_of(1), documents=(f"One line.{character}Another.",))]
    assert rlgf.load(written(tmp_path / "pairs.jsonl", known)) == known


@pytest.mark.parametrize(
    "held",
    [None, b"", b"{", b"\xff\xfe\n", b'{"about": {}}\n[]\n', b'{"about": {}}\n{"key": "0", "rows": [{"f1": 0.5}]}\n',
     b'{"documents": ["a"], "questions": []}\n{"documents": ["a"], "questions": []}\n',
     b'{"about": {}}\n{"key": "0", "rows": [{"documents": ["a"]',
     b'{"documents": ["a"], "questions": []}\n'],
    ids=["missing", "empty", "cut", "no text", "no units", "other rows", "lessons", "a unit that is cut", "a lesson"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, held):
    path = tmp_path / "pairs.jsonl"
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(SettingsError, match=r"pairs\.jsonl is no file of pairs"):
        rlgf.load(path)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, tiny_folder):
    """A function: runs a stage with numbers of its plan, a tiny model and an embedder of word counts."""
    settings = {"MEMORY_MODEL": str(tiny_folder), "DEVICE": "cpu", "DTYPE": "float32", "CACHE": str(tmp_path / "cache"),
                "PASSAGE_TOKENS": "40", "CONTEXT_TOKENS": "40", "ANSWER_TOKENS": "8"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    monkeypatch.setattr(Models, "embedder", lambda self: tiny.Embedder())
    monkeypatch.setattr(answers, "CLUE_WEIGHT", 100.0)  # what a random model says must matter

    def call(stage, data, out, *numbers, more=()):
        changes = [word for number in numbers for word in ("--set", number)]
        return main(["train", stage, "--data", str(tmp_path / data), "--out", str(tmp_path / out), *changes, *more])

    return call


SAMPLING = ("samples=6", "most=12", "window=64", "ratio=4", "least_gain=1e-6")


@pytest.fixture
def three_lessons(tmp_path):
    """With four questions; the last has neither evidence nor an answer."""
    known = [LESSON, Lesson((tiny.TEXT, SON), (dataclasses.replace(ASKED, evidence=((0, 0, 9),)),) * 2),
             Lesson((MILL,), (Asked("Nothing?", (), ()),))]  # fmt: skip
    lessons.write(tmp_path / "lessons.jsonl", known)
    return known


def test_sampling_goes_on_after_a_kill(tmp_path, command, three_lessons, capsys):
    more = ("--reward", "likelihood")
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
    assert f"3 pairs: {tmp_path / 'pairs.jsonl'}" in capsys.readouterr().out
    path = tmp_path / "pairs.jsonl"
    whole = path.read_bytes()
    known = rlgf.load(path)
    assert [pair.documents for pair in known] == [LESSON.documents, (tiny.TEXT, SON), (tiny.TEXT, SON)]
    assert all(len(pair.rewards) == 6 and min(pair.rewards) < max(pair.rewards) < 0 for pair in known)
    assert all(pair.best.keys() == pair.worst.keys() == clues.KINDS.keys() for pair in known)
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    for cut in (b"".join(lines[:2]), b"".join(lines[:1]) + lines[1][:40], b"".join(lines[:3]) + lines[3][:-1]):
        path.write_bytes(cut)
        assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
        assert path.read_bytes() == whole
    held = path.stat().st_mtime_ns
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=more) == 0
    assert path.stat().st_mtime_ns == held


def test_another_way_of_sampling_is_refused(tmp_path, command, three_lessons, capsys):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--limit", "1")) == 0
    whole = (tmp_path / "pairs.jsonl").read_bytes()
    for numbers, more, told in (
        ((*SAMPLING, "temperature=2.0"), (), "plan differ"), (SAMPLING, ("--reward", "f1"), "reward differ"),
    ):  # fmt: skip
        capsys.readouterr()
        assert command("pairs", "lessons.jsonl", "pairs.jsonl", *numbers, more=more) == 2
        assert told in capsys.readouterr().err
    lessons.write(tmp_path / "lessons.jsonl", three_lessons[:1])
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING) == 2
    assert "lessons differ" in capsys.readouterr().err
    assert (tmp_path / "pairs.jsonl").read_bytes() == whole


@pytest.mark.parametrize("dpo", [0, 1])
def test_the_command_trains_on_pairs(tmp_path, command, three_lessons, dpo):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--reward", "likelihood")) == 0
    plan = ("steps=3", "batch=2", "most=12", "window=64", "ratio=4", "save_every=2", f"dpo={dpo}", "anchor=0")
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    out = tmp_path / "run"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(math.isfinite(line["gain"]) for line in lines)
    if dpo:
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert lines[1]["loss"] != lines[0]["loss"]
    plain = tiny.memory_model().model
    assert MemoryWeights.load(out / "weights.safetensors", plain).vector.abs().max() > 0
    # weights to go on from recall other clues
    start = ("--reward", "likelihood", "--start", str(out / "weights.safetensors"))
    assert command("pairs", "lessons.jsonl", "more.jsonl", *SAMPLING, more=start) == 0
    heads = [(tmp_path / name).read_text().splitlines()[0] for name in ("pairs.jsonl", "more.jsonl")]
    assert len({json.loads(head)["about"]["weights"] for head in heads}) == 2
    # and a run that goes on compares with the weights of its start
    assert command("rlgf", "pairs.jsonl", "again", *plan, more=start[2:]) == 0
    first = json.loads((tmp_path / "again" / "log.jsonl").read_text().splitlines()[0])
    assert not dpo or first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_run_of_dpo_that_was_killed_goes_on_as_if_it_never_was(tmp_path, command, three_lessons):
    assert command("pairs", "lessons.jsonl", "pairs.jsonl", *SAMPLING, more=("--reward", "likelihood")) == 0
    plan = ("steps=3", "batch=1", "most=12", "window=64", "ratio=4", "save_every=2", "dpo=1", "learning_rate=1e-3")
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    log, whole = tmp_path / "run" / "log.jsonl", (tmp_path / "run" / "weights.safetensors").read_bytes()
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    (tmp_path / "run" / "weights.safetensors").unlink()
    last = tmp_path / "run" / "checkpoint-000003"
    last.rename(tmp_path / "gone")  # as if killed after the second step
    assert command("rlgf", "pairs.jsonl", "run", *plan) == 0
    assert [json.loads(line)["loss"] for line in log.read_text().splitlines()] == pytest.approx(losses, abs=1e-6)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == whole


def test_wrong_use_is_told_in_one_line(tmp_path, command, three_lessons, capsys):
    for stage, data, numbers, told in (
        ("pairs", "nowhere.jsonl", (), "nowhere.jsonl cannot be read"),
        ("pairs", "lessons.jsonl", ("sample=3",), "no 'sample'"),
        ("rlgf", "lessons.jsonl", (), "lessons.jsonl is no file of pairs"),
        ("rlgf", "nowhere.jsonl", (), "nowhere.jsonl is no file of pairs"),
    ):
        capsys.readouterr()
        assert command(stage, data, "out", *numbers) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
