"""The speed of everything, measured with tiny models: the structure, and that ratios are what their pieces say."""

import json

import pytest
import tiny
import torch

from memo.answers import DEFAULT_COMPARISON
from memo.errors import MemoryTooLong, SettingsError
from memo.evaluate import speed, speed_asking, speed_memory, turns
from memo.evaluate.rows import Rows
from memo.generate import LocalGenerator
from memo.models import Models
from memo.settings import Settings

SIZES = {
    "repeats": 1, "lengths": (128, 256, 9000), "long_lengths": (3000,), "exponent_lengths": (256, 512, 3000),
    "passages": (20, 50), "visitors": (1, 2),
}  # fmt: skip


def near(number):
    return pytest.approx(number, rel=2e-3)  # each of them has four digits


def test_rounds_are_counted_after_one_that_warms_up():
    order = []
    timed = turns.in_turns(2, lambda: order.append("a"), lambda: order.append("b"))
    assert "".join(order) == "ababab"
    assert [len(seconds) for seconds in timed] == [2, 2]
    turns.in_turns(1, lambda: order.append("c"), warm=False)
    assert order[6:] == ["c"]


def test_a_ratio_is_the_median_of_its_rounds():
    assert turns.times([2.0, 9.0, 8.0], [1.0, 3.0, 1.0]) == {"ratio": 3.0, "low": 2.0, "high": 8.0}
    assert turns.short(12345.6) == 12350


def test_the_exponent_is_a_slope():
    assert speed_memory.slope([(n, 3e-3 * n) for n in (10, 100, 5000)]) == pytest.approx(1)
    assert speed_memory.slope([(n, n**1.7) for n in (10, 30, 70)]) == pytest.approx(1.7)


def test_a_text_is_cut_to_tokens_and_repeated_where_it_is_too_short():
    model = tiny.memory_model()
    assert speed_memory.cut(model, tiny.TEXT, 100) == tiny.TEXT[:100]  # a token a byte
    long = speed_memory.cut(model, tiny.TEXT, 1000)
    assert len(model.encode(long)[0]) == 1000
    assert long.startswith(tiny.TEXT)
    assert tiny.TEXT * 2 not in long


@pytest.fixture(scope="module")
def results(tiny_folder, tmp_path_factory):
    """One run of everything, and the same again from the rows it kept."""
    settings = Settings(
        answer_tokens=6, clue_tokens=6, context_tokens=200, window=64, ratio=4, passage_tokens=60, device="cpu",
        memory_model=str(tiny_folder), dtype="float32",
    )  # fmt: skip
    models = Models(settings)
    models.__dict__["_embedder"] = tiny.Embedder()
    told = []

    def run(name):
        folder = tmp_path_factory.mktemp(name)
        return speed.evaluate(models, settings, folder, text=tiny.TEXT, rows=rows, tell=told.append, **SIZES)

    rows = tmp_path_factory.mktemp("rows") / "speed.jsonl"
    first, before = run("first"), len(told)
    assert run("second") == first
    assert len(told) == before  # nothing was measured again
    return json.loads(json.dumps(first))


def test_every_part_has_rows_and_every_ratio_its_spread(results):
    parts = ["memorize", "first_clue", "bytes", "load", "exponent", "compare", "search", "visitors", "walk", "peak"]
    assert list(results) == ["what", *parts]
    for part in parts:
        assert results[part], part
        for row in results[part]:
            assert all(isinstance(value, str | int | float) for value in row.values())
            if "low" in row:
                assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert results["what"]["repeats"] == 1
    assert results["what"]["models"]["memory"]
    assert set(results["what"]["notes"]) <= {"text", *parts}


PARTS = {
    "memorize": speed_memory, "rereading": speed_memory, "documents": speed_memory, "compare": speed_asking,
    "walk": speed_asking, "visitors": speed_asking, "search": speed_asking,
}  # fmt: skip


@pytest.mark.parametrize("kept", [False, True], ids=["before it is kept", "right after"])
@pytest.mark.parametrize("killed", PARTS)
def test_a_run_killed_at_any_unit_goes_on_where_it_was(tiny_models, tiny_settings, tmp_path, monkeypatch, killed, kept):
    measured, add, rows = [], Rows.add, tmp_path / "speed.jsonl"
    document = {
        "length": 256, "tokens": 256, "slots": 64, "memory_ratio": 4, "bytes": 1, "full_bytes": 4, "file_bytes": 2,
        "memorize_seconds": 2.0, "save_seconds": 0.1, "load_seconds": [0.1], "clue_seconds": [0.2],
    }  # fmt: skip
    found = {part: [{"part": part, "row": row} for row in range(2)] for part in PARTS} | {"documents": [document]}
    for part, module in PARTS.items():
        monkeypatch.setattr(module, part, lambda *_, part=part: measured.append(part) or found[part])

    def dies(self, key, rows):
        if key != killed or kept:
            add(self, key, rows)
        if key == killed:
            raise KeyboardInterrupt

    def run():
        folder = tmp_path / "files"
        return speed.evaluate(tiny_models, tiny_settings, folder, text=tiny.TEXT, rows=rows, tell=str, **SIZES)

    monkeypatch.setattr(Rows, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(Rows, "add", add)
    results = run()
    again = [] if kept else [killed]
    assert sorted(measured) == sorted([*PARTS, *again])
    assert [row["after"] for row in results["peak"]] == list(PARTS)
    for part in ("memorize", "compare", "walk", "visitors", "search"):
        assert results[part] == found[part]
    assert results["first_clue"] == found["rereading"]
    assert [row["tokens"] for row in results["bytes"]] == [256]
    assert run() == results and len(measured) == len(PARTS) + len(again)


def test_rows_measured_in_another_way_are_refused(tiny_models, tiny_settings, tmp_path, monkeypatch):
    rows = tmp_path / "speed.jsonl"
    for part, module in PARTS.items():
        monkeypatch.setattr(module, part, lambda *_: [])

    def run():
        speed.evaluate(tiny_models, tiny_settings, tmp_path, text=tiny.TEXT, rows=rows, tell=str, **SIZES)

    run()
    monkeypatch.setitem(speed.NOTES, "first_clue", "The slower of two ways.")
    with pytest.raises(SettingsError, match="notes differ"):
        run()


def test_memorizing_against_prefill_stays_within_the_positions(results):
    assert [row["tokens"] for row in results["memorize"]] == [128, 256, 2048]
    for row in results["memorize"]:
        assert row["ratio"] == near(row["memorize_tokens_per_second"] / row["prefill_tokens_per_second"])


def test_the_first_clue_is_compared_with_reading_again_and_beyond_the_positions_with_memorizing_anew(results):
    *within, long = results["first_clue"]
    assert [row["tokens"] for row in within[:2]] == [128, 256]
    assert 1700 < within[2]["tokens"] < 2048  # the question takes the rest of the positions
    assert {row["instead"] for row in within} == {"reading the text again"}
    assert (long["tokens"], long["instead"]) == (3000, "memorizing anew")
    for row in results["first_clue"]:
        assert row["ratio"] == near(row["instead_seconds"] / row["clue_seconds"])
    for row in within:
        assert row["instead_seconds"] == min(row["run_seconds"], row["prefill_seconds"])
    assert "run_seconds" not in long
    assert long["ratio"] > 1


def test_the_faster_way_of_reading_again_counts_in_each_round(tiny_models, tmp_path, monkeypatch):
    rounds = ([1.0, 1.0, 1.0], [4.0, 9.0, 3.0], [8.0, 5.0, 2.0])  # clue, run, prefill
    monkeypatch.setattr(speed_memory, "in_turns", lambda repeats, *works, warm: rounds)
    bench = speed_memory.Bench(tiny_models.memory_model(), tiny_models.settings, tmp_path, tiny.TEXT, 3, str)
    [row] = speed_memory.rereading(bench, [100])
    assert (row["ratio"], row["low"], row["high"]) == (4, 2, 5)
    assert (row["instead_seconds"], row["run_seconds"], row["prefill_seconds"]) == (4, 4, 5)


def test_the_prefill_reads_the_prompt_that_the_run_reads_and_says_the_same(tiny_models, tmp_path):
    model = tiny_models.memory_model()
    bench = speed_memory.Bench(model, tiny_models.settings, tmp_path, tiny.TEXT, 1, str)
    generator, prompt, chosen = LocalGenerator(model, "memory"), speed_memory._reread(tiny.TEXT), []
    argmax = torch.Tensor.argmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "argmax", lambda *all, **more: chosen.append(argmax(*all, **more)) or chosen[-1])
        bench.prefill(generator.encode(prompt), word=True)
        bench.first_word(prompt)
    assert len(chosen) == 2 and int(chosen[0]) == int(chosen[1])


def test_sizes_loads_and_growth_are_read_off_the_same_documents(results):
    documents = [row["tokens"] for row in results["bytes"]]
    assert documents == [128, 256, 512, 3000, 9000] == [row["tokens"] for row in results["load"]]
    for row in results["bytes"]:
        assert row["ratio"] == near(row["bytes"] / row["full_bytes"]) == near(row["slots"] / row["tokens"])
        assert row["file_bytes"] > row["bytes"]
    assert results["bytes"][-1]["memory_ratio"] > 4  # raised, or it would not fit
    for row in results["load"]:
        assert row["ratio"] == near(row["load_seconds"] / row["memorize_seconds"])
    *points, fit = results["exponent"]
    assert [row["tokens"] for row in points] == [256, 512, 3000]
    slope = speed_memory.slope([(row["tokens"], row["memorize_seconds"]) for row in points])
    assert fit == {"exponent": near(slope)}


def test_four_answers_are_compared_with_their_sum_and_with_the_slowest(results):
    total, slowest = results["compare"]
    alone = [total[f"{name}_seconds"] for name in DEFAULT_COMPARISON]
    assert total["over_seconds"] == near(sum(alone))
    assert slowest["over_seconds"] == near(max(alone))
    for row in results["compare"]:
        assert row["ratio"] == near(row["together_seconds"] / row["over_seconds"])


def test_a_search_is_told_from_embedding_its_query(results):
    asked = [(row["passages"], row["queries"]) for row in results["search"]]
    assert asked == [(20, 1), (20, 10), (50, 1), (50, 10)]
    assert all(row["search_milliseconds"] > 0 < row["embedding_milliseconds"] for row in results["search"])


def test_visitors_wait_for_their_first_clue(results):
    rows = results["visitors"]
    assert [(row["visitors"], row["of"]) for row in rows] == [(1, "median"), (1, "last"), (2, "median"), (2, "last")]
    assert rows[0]["ratio"] == 1
    assert rows[2]["first_clue_seconds"] <= rows[3]["first_clue_seconds"]
    for row in rows:
        assert row["ratio"] == near(row["first_clue_seconds"] / row["alone_seconds"])


def test_the_walk_tells_when_what_was_there(results):
    walk = {row["strategy"]: row for row in results["walk"]}
    assert set(walk) == set(DEFAULT_COMPARISON)
    memorag = walk["memorag"]
    assert memorag["clues_seconds"] <= memorag["passages_seconds"] <= memorag["total_seconds"]
    assert all(row["total_seconds"] > 0 for row in walk.values())


def test_the_peak_never_falls(results):
    peaks = [row["peak_bytes"] for row in results["peak"]]
    assert peaks == sorted(peaks)
    for row in results["peak"]:
        assert row["above_loaded_bytes"] == row["peak_bytes"] - row["loaded_bytes"] >= 0


def test_a_length_that_no_memory_holds_is_refused_before_anything_is_measured(tiny_models, tiny_settings, tmp_path):
    told = []
    with pytest.raises(MemoryTooLong):
        speed.evaluate(
            tiny_models, tiny_settings, tmp_path, text=tiny.TEXT, lengths=(10_000_000,), rows=None, tell=told.append
        )
    assert not told
