"""What `evaluate memory` measures: each figure against the plain model; that it resumes; that removal is exact."""

import itertools
import json
import random

import pytest
import tiny
import torch

from memo.errors import NothingToAsk, SettingsError
from memo.evaluate import lookup, memory, memory_measures, probes
from memo.evaluate.eviction import METHODS
from memo.evaluate.lookup import Needle
from memo.evaluate.memory_measures import Bench, beside, composition, looking_up, removal
from memo.evaluate.probes import Case, Context, cut, nothing, remembered_alone, score
from memo.memory import read_all

SMALL = {"ratios": (2, 4), "windows": (32, 64), "lengths": (128, 192), "documents": (1, 2, 3)}
BASE = {"ratio": 4, "window": 32, "length": 128}


def book(seed: int, letters: int = 3000) -> str:
    """Sentences of made-up words."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefghijklmnop", k=drawn.randint(2, 7))) for _ in range(letters // 4)]
    text = " ".join(f"{word.capitalize()}" if i % 7 == 0 else word for i, word in enumerate(words))
    return "".join(f". {c}" if c.isupper() else c for c in text)[2:letters]


TEXTS = [(f"book {i}", book(i)) for i in range(3)]


@pytest.fixture(scope="module")
def model():
    return tiny.memory_model()


@pytest.fixture(scope="module")
def trained():
    """With weights as training might leave them."""
    plain = tiny.memory_model()
    return tiny.MemoryModel(plain.model, plain.tokenizer, tiny.perturbed(plain.model))


@torch.no_grad()
def plain_scores(model, ids, first, **more):
    """-log p and hits of ids[first:], by transformers alone."""
    model.model.set_attn_implementation("eager")
    logs = model.model(torch.tensor([ids]), **more).logits[0].log_softmax(-1)
    model.model.set_attn_implementation("memo")
    losses = [-logs[i - 1, ids[i]].item() for i in range(first, len(ids))]
    return losses, [logs[i - 1].argmax().item() == ids[i] for i in range(first, len(ids))]


def evaluate(model, texts=TEXTS, **more):
    return memory.evaluate(texts, model, **{**SMALL, **BASE, **more})


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_scores_are_the_plain_models_with_no_context_and_with_the_full_one(model):
    case = Case(model, "book", TEXTS[0][1], 100, seed=0)
    new = list(b"The mill stood")
    for context, before in ((nothing(model), []), (case.full, case.ids)):
        losses, hits = score(model, context, new, 1)
        expected, expected_hits = plain_scores(model, before + new, len(before) + 1)
        assert losses.tolist() == pytest.approx(expected, abs=1e-3)
        assert hits.tolist() == expected_hits


def test_a_start_token_is_read_where_there_is_no_context(model):
    new = list(b"The mill")
    losses, _ = score(model, Context(start=(256,)), new, 1)
    assert losses.tolist() == pytest.approx(plain_scores(model, [256, *new], 2)[0], abs=1e-3)


@pytest.mark.parametrize("method", ["streaming", "every_nth"])
def test_after_an_eviction_scores_are_the_plain_models_with_the_evicted_tokens_hidden(model, method):
    """What is read next stands where the text ended, not where the entries that are left would end."""
    case, entries, new = Case(model, "book", TEXTS[0][1], 100, seed=0), 20, list(b"The mill stood")
    read, count = len(case.ids), len(new)
    first = METHODS[method](case.prefill.layers[0], entries)[0].tolist()
    seen = torch.ones(read + count, read + count, dtype=torch.bool).tril()
    seen[read:, [j for j in range(read) if j not in first]] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
    expected, expected_hits = plain_scores(model, case.ids + new, read + 1, attention_mask=mask)
    losses, hits = score(model, case.evicted(method, entries), new, 1)
    assert losses.tolist() == pytest.approx(expected, abs=1e-3)
    assert hits.tolist() == expected_hits


def test_an_untrained_memory_at_ratio_one_scores_as_the_full_context(model):
    case = Case(model, "book", TEXTS[0][1], 100, seed=0)
    one = read_all(model.memorize(case.text, "book", ratio=1, window=32))
    new = list(b"The mill stood")
    losses = [score(model, context, new, 1)[0] for context in (remembered_alone(model, one), case.full)]
    assert torch.allclose(*losses, atol=2e-3)


def test_a_case_measures_what_follows_and_what_is_repeated(model):
    """Against loops over the plain model with everything in one sequence."""
    text = TEXTS[1][1]
    case = Case(model, "book", text, 200, seed=3)
    ids, repeat = model.encode(text)[0], model.encode("Repeat:")[0]
    assert case.text == text[:200] and case.ids == ids[:200] and case.next_ids == ids[200:457]
    copied, facts = [], []
    for at in case.spans:
        span = ids[at : at + 48]
        _, hits = plain_scores(model, ids[:200] + repeat + span, 200 + 7 + 8)
        surprise, _ = plain_scores(model, ids[: at + 48], at + 8)
        hard = sorted(range(40), key=lambda i: -surprise[i])[:10]
        copied.append(sum(hits) / 40)
        facts.append(sum(hits[i] for i in hard) / 10)
    found = case.measure(case.full)
    losses, _ = plain_scores(model, ids[:457], 201)
    assert len(losses) == 256
    assert found["loss"] == pytest.approx(sum(losses) / 256, abs=1e-3)
    assert found["copy"] == pytest.approx(sum(copied) / 4) and found["facts"] == pytest.approx(sum(facts) / 4)


def test_spans_depend_on_seed_text_and_length_only(model):
    def spans(name="a", tokens=200, seed=0):
        return Case(model, name, TEXTS[0][1], tokens, seed).spans

    assert spans() == spans()
    assert len({tuple(s) for s in (spans(), spans(name="b"), spans(tokens=201), spans(seed=1))}) == 4
    assert all(0 <= at <= 200 - 48 for at in spans())


def test_beyond_the_positions_surprise_is_that_of_the_plain_model_over_the_tokens_before(monkeypatch):
    short = tiny.memory_model(max_position_embeddings=256)
    monkeypatch.setattr(probes, "NEAR", 50)
    case = Case(short, "book", TEXTS[0][1], 400, seed=0)
    assert not case.fits
    for at, hard in zip(case.spans, case.hard, strict=True):
        before = case.ids[max(0, at - 50) : at + 48]
        surprise, _ = plain_scores(short, before, len(before) - 40)
        assert sorted(hard.tolist()) == sorted(sorted(range(40), key=lambda i: -surprise[i])[:10])


@pytest.mark.parametrize(("text", "tokens"), [("abcdef", 4), ("abcdef", 6), ("abcdef", 9), (tiny.KOREAN, 30)])
def test_a_text_is_cut_at_a_token(model, text, tokens):
    first, rest = cut(model, text, tokens)
    assert first + rest == text
    assert abs(len(first.encode()) - min(tokens, len(text.encode()))) < 3  # Korean letters have three bytes


def test_a_text_with_few_tokens_a_letter_is_cut_too(model):
    class Wide:
        """Ten letters are a token."""

        @staticmethod
        def encode(text):
            offsets = [(i, min(i + 10, len(text))) for i in range(0, len(text), 10)]
            return list(range(len(offsets))), offsets

    assert cut(Wide(), "x" * 500, 20) == ("x" * 200, "x" * 300)


# --- looking up ------------------------------------------------------------------------------------------------------


def test_needles_stand_between_sentences_at_their_depth():
    text = "".join(f"Sentence number {i:03}. " for i in range(100)) + "And an unfinished"
    key, fact = Needle("passkey", "The pass key is", "48213", ". Remember it."), lookup.make("fact", "x")
    whole = text[: text.rindex(".") + 1]
    for depth in lookup.DEPTHS:
        found = lookup.insert(text, [(key, depth), (fact, 50)])
        assert found.count("The pass key is 48213. Remember it.") == found.count(fact.sentence) == 1
        without = found.replace(f" {fact.sentence}", "")
        at = without.index("The pass key")
        assert at == pytest.approx(depth / 100 * len(whole), abs=25)
        assert at == 0 or without[at - 2 : at] == ". "
        assert without.replace(key.sentence, "").split() == whole.split()


def test_needles_are_drawn_by_seed_and_each_text_and_variant_has_its_own():
    assert lookup.make("passkey", "1") == lookup.make("passkey", "1")
    assert len({lookup.make("passkey", str(i)).answer for i in range(20)}) == 20
    facts = [lookup.make("fact", str(i)) for i in range(60)]
    assert len({fact.stem for fact in facts}) > 30
    assert all(fact.answer not in fact.stem and "{" not in fact.sentence for fact in facts)


def test_looking_up_scores_the_answers_tokens_after_the_stem(model):
    case = Case(model, "book", TEXTS[0][1], 100, seed=0)
    key = lookup.make("passkey", "1")
    found = lookup.look_up(model, case.full, key)
    prompt = model.encode(f"The pass key is {key.answer}")[0]
    _, hits = plain_scores(model, case.ids + prompt, len(case.ids) + len(prompt) - 5)
    assert found == {"share": sum(hits) / 5, "exact": float(all(hits))}


def test_over_the_variants_both_kinds_come_to_every_depth(trained):
    bench = Bench(trained, TEXTS, ratio=4, window=32, seed=0)
    rows = list(itertools.chain(*(looking_up(bench, 0, 128, variant, [4]) for variant in range(5))))
    places = {(row["method"], row["kind"], row["depth"]) for row in rows}
    methods = ("none", "full", "memory", "streaming", "snapkv")
    assert places == set(itertools.product(methods, lookup.KINDS, lookup.DEPTHS)) and len(rows) == len(places)
    entries = {(row["depth"], row["kind"]): row["slots"] for row in rows if row["method"] == "memory"}
    assert all(row["slots"] == entries[row["depth"], row["kind"]] for row in rows if row["method"] == "snapkv")


# --- several documents -----------------------------------------------------------------------------------------------


def test_composed_with_none_a_document_is_as_alone(trained):
    bench = Bench(trained, TEXTS, ratio=4, window=32, seed=0)
    rows = composition(bench, 0, 128, [1, 2, 3])
    assert [(row["method"], row.get("documents"), row.get("place")) for row in rows] == [
        ("none", None, None), ("full", None, None), ("memory", 1, "first"), ("memory", 2, "first"),
        ("memory", 2, "drawn"), ("memory", 3, "first"), ("memory", 3, "drawn"),
    ]  # fmt: skip
    assert [row["slots"] for row in rows[2:]] == [32, 64, 64, 96, 96]
    loss, _ = memory_measures.by_memory(bench, *TEXTS[0], 128, 4, 32)
    assert rows[2]["loss"] == loss["loss"]
    assert rows[3]["loss"] != loss["loss"]


def test_what_stands_beside_a_document_is_of_other_texts(model):
    bench = Bench(model, TEXTS, ratio=4, window=32, seed=0)
    assert beside(bench, 1, 128, 5) == [(0, 0), (2, 0), (0, 1), (2, 1), (0, 2)]
    pieces = [bench.part(0, number, 128)[:128] for number in range(3)]
    assert pieces == [TEXTS[0][1][start : start + 128] for start in (0, 640, 1280)]
    assert len(beside(bench, 1, 128, 100)) == 2 * 5  # of each text as many whole ones as it has
    alone = Bench(model, TEXTS[:1], ratio=4, window=32, seed=0)
    assert beside(alone, 0, 128, 3) == [(0, 1), (0, 2), (0, 3)]  # not the text that follows A


def test_documents_that_do_not_fit_together_are_not_measured():
    short = tiny.memory_model(max_position_embeddings=512)
    rows = composition(Bench(short, TEXTS, ratio=2, window=32, seed=0), 0, 128, [1, 6, 7, 50])
    assert {row.get("documents") for row in rows} == {None, 1, 6}  # 64 slots each, and 384 positions


def test_removal_is_exact(trained):
    rows = removal(Bench(trained, TEXTS, ratio=4, window=32, seed=0), 0, 128)
    assert [(row["exact"], row["largest_difference"]) for row in rows] == [(True, 0.0)]


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(trained):
    return evaluate(trained)


def test_one_thing_varies_at_a_time(results):
    found = {
        (row["method"], row.get("wanted_ratio"), row.get("window"), row["tokens"])
        for row in results["rows"] if row["measure"] == "loss"
    }  # fmt: skip
    expected = {(method, None, None, tokens) for method in ("none", "full") for tokens in (128, 192)}
    expected |= {("memory", 2, 32, 128), ("memory", 4, 32, 128), ("memory", 4, 64, 128), ("memory", 4, 32, 192)}
    expected |= {(method, ratio, None, 128) for method in METHODS for ratio in (2, 4)}
    assert found == expected | {(method, 4, None, 192) for method in METHODS}
    assert {row["measure"] for row in results["rows"]} == set(memory.MEASURES)


def test_all_methods_keep_as_many_entries_as_the_memory_has_slots(results):
    slots = {}
    for row in results["rows"]:
        if row["measure"] == "copy" and "ratio" in row and row.get("window") != 64:
            slots.setdefault((row["tokens"], row["ratio"]), set()).add(row["slots"])
    assert slots == {(128, 2): {64}, (128, 4): {32}, (192, 4): {48}}


def test_values_have_intervals_over_texts_and_recovery_is_a_ratio_of_means(results):
    losses = {
        row["method"]: row for row in results["rows"]
        if row["measure"] == "loss" and row["tokens"] == 128 and row.get("wanted_ratio") in (None, 2)
    }  # fmt: skip
    none, full = losses["none"]["loss"]["mean"], losses["full"]["loss"]["mean"]
    for row in losses.values():
        assert row["n"] == row["loss"]["n"] == 3
        assert row["loss"]["low"] <= row["loss"]["mean"] <= row["loss"]["high"]
        assert row["recovery"]["mean"] == pytest.approx((none - row["loss"]["mean"]) / (none - full), abs=0.01)
    assert losses["none"]["recovery"]["mean"] == 0 and losses["full"]["recovery"]["mean"] == 1
    assert json.loads(json.dumps(results)) == results


def test_recovery_divides_means_not_texts():
    rows = []
    for text, (none, some, full) in {"a": (4.0, 3.0, 2.0), "b": (3.0, 2.9, 2.8), "c": (5.0, 5.0, 1.0)}.items():
        for method, loss in (("none", none), ("memory", some), ("full", full)):
            rows.append({"measure": "loss", "text": text, "tokens": 9, "method": method, "loss": loss})
    summary = {row["method"]: row for row in memory.summarise(rows)}
    assert summary["memory"]["recovery"]["mean"] == pytest.approx(1.1 / 6.2, abs=1e-4)
    assert 0 <= summary["memory"]["recovery"]["low"] < summary["memory"]["recovery"]["high"] <= 0.5


def test_without_a_full_context_there_is_no_recovery():
    short = tiny.memory_model(max_position_embeddings=512)
    rows = evaluate(short, lengths=(128, 400), limit=1)["rows"]
    beyond = [row for row in rows if row["measure"] == "loss" and row["tokens"] == 400]
    assert [row["method"] for row in beyond] == ["none", "memory"]
    assert all("recovery" not in row for row in beyond)


def test_the_real_ratio_is_told_where_it_had_to_be_raised():
    short = tiny.memory_model(max_position_embeddings=512)
    rows = evaluate(short, lengths=(128, 2000), limit=1)["rows"]
    (row,) = [r for r in rows if r["measure"] == "loss" and r["tokens"] == 2000 and r["method"] == "memory"]
    assert (row["wanted_ratio"], row["ratio"], row["slots"]) == (4, 8, 250)  # 62 windows of 4 slots, and 2


def test_of_longer_texts_there_are_fewer(model, monkeypatch):
    monkeypatch.setattr(memory, "BUDGET", 400)
    counts = {row["tokens"]: row["n"] for row in evaluate(model)["rows"] if row["measure"] == "loss"}
    assert counts == {128: 3, 192: 2}


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_gives_the_same(trained, results, tmp_path):
    path, told = tmp_path / "rows.jsonl", []

    def die_sometimes(row):
        told.append(row["unit"])
        if len(told) % 9 == 0:
            raise Killed

    again, kills = None, 0
    while again is None:
        try:
            again = evaluate(trained, rows=path, tell=die_sometimes)
        except Killed:
            path.write_bytes(path.read_bytes() + b'{"key": "half a li')
            kills += 1
    assert kills > 2
    assert len(told) == len(set(told)) == len(path.read_text().splitlines()) - 1  # nothing was done twice
    assert again == results
    with pytest.raises(SettingsError, match="another run"):
        evaluate(trained, rows=path, seed=1)
    with pytest.raises(SettingsError, match=r"another run \(content differ"):
        evaluate(trained, texts=[(name, text + "!") for name, text in TEXTS], rows=path)


def test_the_limit_draws_texts_that_are_long_enough(model):
    short = [(f"short {i}", book(i, 200)) for i in range(5)]
    small = {"ratios": (4,), "windows": (32,), "lengths": (128,), "documents": (1,)}
    names = [evaluate(model, [*short, *TEXTS], **small, limit=2, seed=seed)["what"]["texts"] for seed in (0, 0, 1)]
    assert names[0] == names[1] and all(len(some) == 2 and "short" not in str(some) for some in names)
    with pytest.raises(NothingToAsk, match="No text has 384 tokens"):
        evaluate(model, short, **small)


def test_what_cannot_be_measured_is_told(model):
    told = evaluate(model, TEXTS[:1], lengths=(128, 100000), windows=(32, 4096))["what"]["left_out"]
    assert {(one["tokens"], one.get("window")) for one in told} == {(128, 4096), (100000, None), (100000, 32)}
    assert all(one["why"] for one in told)


@pytest.mark.parametrize("wrong", [{"ratios": ()}, {"windows": (0,)}, {"lengths": (10,)}, {"documents": (-1, 2)}])
def test_impossible_grids_are_refused(model, wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        evaluate(model, **wrong)


def test_two_texts_of_one_name_are_refused(model):
    with pytest.raises(SettingsError, match="same name"):
        evaluate(model, [TEXTS[0], TEXTS[0]])
