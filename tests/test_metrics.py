"""Metrics against hand-worked cases and the reference implementations."""

import random

import pytest

from memo.evaluate import metrics


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [  # as SQuAD's own evaluation script scores them
        ("the Denver Broncos", ["Denver Broncos"], 1, 1.0),
        ("Denver Broncos!", ["Denver Broncos", "The Denver Broncos"], 1, 1.0),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("Santa Clara, California", ["Levi's Stadium in Santa Clara, California", "Santa Clara"], 0, 0.8),
        ("a cat sat", ["cat cat sat down"], 0, 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4)),
        ("nothing at all", ["something else"], 0, 0.0),
        ("", ["an answer"], 0, 0.0),
        ("A.", ["the"], 1, 1.0),  # both are nothing once articles and punctuation are gone
        ("co-operate", ["cooperate"], 1, 1.0),
        ("1,000", ["1000"], 1, 1.0),
    ],
)
def test_exact_match_and_f1_are_squads(prediction, answers, exact, f1):
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.f1(prediction, answers) == pytest.approx(f1)


def test_korean_f1_counts_characters():
    # 3 of the 4 characters of the answer, all 3 of the prediction
    assert metrics.f1("방앗간", ["방앗간에"], "ko") == pytest.approx(2 * 3 / 7)
    assert metrics.exact_match("《방앗간》.", ["방앗간"], "ko") == 1
    assert metrics.exact_match("3.5%", ["35"], "ko") == 1  # KorQuAD's script deletes ASCII punctuation


@pytest.mark.parametrize(
    ("prediction", "answer", "contained"),
    [
        ("그것은 방앗간이었다.", "방앗간", 1),
        ("물레방앗간에 갔다.", "방앗간", 1),
        ("1887년에 샀다.", "1887", 1),
        ("그는 1983년에 태어났다.", "3", 0),
        ("KBS에서 일했다.", "KBS", 1),
        ("KBSN에서 일했다.", "KBS", 0),
    ],
)
def test_a_korean_answer_is_contained_before_a_particle_a_number_not_in_a_longer_one(prediction, answer, contained):
    assert metrics.contains(prediction, [answer], "ko") == contained


def test_an_answer_is_contained_at_word_borders_only():
    assert metrics.contains("She paid 412 crowns.", ["412 crowns"]) == 1
    assert metrics.contains("She paid 4120 crowns.", ["412"]) == 0
    assert metrics.contains("Anything.", ["the"]) == 0  # an answer of nothing but an article is in no text


def test_rouge_l_is_the_reference_implementations():
    from rouge_score.rouge_scorer import RougeScorer

    scorer, draw = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    vocabulary = ["the", "mill", "stood", "1887", "Anna's", "wheel-house,", "froze", "winter.", "why;", "it's", "The"]
    for _ in range(200):
        prediction = " ".join(draw.choices(vocabulary, k=draw.randrange(0, 14)))
        answers = [" ".join(draw.choices(vocabulary, k=draw.randrange(1, 14))) for _ in range(draw.randrange(1, 4))]
        reference = max(scorer.score(answer, prediction)["rougeL"].fmeasure for answer in answers)
        assert metrics.rouge_l(prediction, answers) == pytest.approx(reference)


def test_rouge_l_of_korean_is_that_of_its_characters():
    # longest common subsequence of 강이얼고 and 강이굽이치고: 강 이 고
    assert metrics.rouge_l("강이 얼고", ["강이 굽이치고"], "ko") == pytest.approx(2 * 3 / (4 + 6))


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("The passages do not mention it.", True),
        ("There is no information about that.", True),
        ("It cannot be determined from the text.", True),
        ("  . ", True),
        ("본문에는 언급되지 않았습니다.", True),
        ("She bought it in 1887.", False),
        ("No, he did not sell it.", False),
        ("Nobody knew why she bought it.", False),
        ("Genghis is not known by that name.", False),
        ("The casino knows him.", False),
        ("The piano answer is Bach.", False),
        ("The law does not provide exceptions; the fine is 5 dollars.", False),
        ("It is unclear from the passages.", True),
        ("Unknown.", True),
        ("The passages don't say who did it.", True),
        ("The name is not mentioned in the text.", True),
    ],
)
def test_refusals_are_told_from_answers(answer, refuses):
    assert metrics.refuses(answer) == refuses


PIECE = (("a", 100, 140),)


@pytest.mark.parametrize(
    ("passage", "holds"),
    [
        (("a", 90, 200), True),
        (("a", 120, 300), True),  # half of it
        (("a", 121, 300), False),
        (("a", 110, 120), True),  # a short passage inside it
        (("a", 10, 105), False),
        (("b", 100, 140), False),
    ],
)
def test_a_passage_holds_evidence_by_half(passage, holds):
    assert metrics.holds(passage, PIECE) == holds


def test_recall_and_reciprocal_rank_by_hand():
    pieces = [PIECE, (("b", 0, 10), ("b", 50, 60))]
    ranking = [("c", 0, 90), ("b", 40, 70), ("c", 90, 200), ("a", 95, 150)]
    assert [metrics.recall(ranking, pieces, k) for k in (1, 2, 3, 4, 10)] == [0, 0.5, 0.5, 1, 1]
    assert metrics.reciprocal_rank(ranking, pieces) == 1 / 2
    assert metrics.reciprocal_rank(ranking[:1], pieces) == 0


def test_the_interval_of_a_constant_is_a_point_and_of_coins_is_binomials():
    assert metrics.interval([0.25] * 7) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 7}
    found = metrics.interval([0.0, 1.0] * 50)
    # 1.96 * sqrt(.25 / 100) = .098
    assert found["low"] == pytest.approx(0.402, abs=0.02) and found["high"] == pytest.approx(0.598, abs=0.02)
    assert found == metrics.interval([0.0, 1.0] * 50)  # seeded


def test_clusters_widen_the_interval_to_that_of_their_number():
    # ten clusters of ten equal values carry as much as ten values
    values, clusters = [float(i % 2) for i in range(10) for _ in range(10)], [i for i in range(10) for _ in range(10)]
    assert metrics.interval(values, clusters)["low"] == metrics.interval([float(i % 2) for i in range(10)])["low"]
    assert metrics.interval(values, clusters)["low"] < metrics.interval(values)["low"]


def test_fewer_than_three_clusters_have_no_interval():
    assert metrics.interval([0.0, 1.0] * 9, [i % 2 for i in range(18)]) == {
        "mean": 0.5, "low": None, "high": None, "n": 18,
    }  # fmt: skip
    assert metrics.interval([0.0, 1.0])["low"] is None and metrics.interval([0.0, 1.0, 1.0])["low"] == 0


def test_no_values_no_interval():
    with pytest.raises(ValueError, match="no values"):
        metrics.interval([])
