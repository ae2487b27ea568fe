"""Rewards: passages ranked by question and clues, and what the generator makes of them, by hand.

The lesson and the judge are those of `rlgf_case`.
"""

import copy
import dataclasses

import pytest
import tiny
import torch
from rlgf_case import ASKED, LESSON, SETTINGS, judge_of

from memo import answers
from memo.events import Clue
from memo.search import Ranked, place_of
from memo.train import rewards
from memo.train.lessons import Lesson


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


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_clues_count_beside_the_question_with_a_weight_together(judge, passages, weight):
    judge.clue_weight = weight
    recalled = [Clue("stone by stone", "span"), Clue("the flood took a bridge", "draft")]
    ranking = judge.ranked("Tell of the mill?", recalled, passages, vectors_of(judge, passages))
    score = [
        cosine("Tell of the mill?", one.text) + weight * sum(cosine(clue.text, one.text) for clue in recalled) / 2
        for one in passages
    ]
    order = order_of(ranking, passages)
    assert [score[i] for i in order] == pytest.approx(sorted(score, reverse=True), abs=1e-6)
    assert [one.score for one in ranking] == pytest.approx([score[i] / (1 + weight) for i in order], abs=1e-4)
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
