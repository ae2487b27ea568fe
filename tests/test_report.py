"""RESULTS.md says what the files say, names what is lost, and does without files that are missing."""

import copy
import json

import pytest
from report_case import ABOUT, MEMORY, MUSIQUE, SPEED, SQUAD, row, value

from memo.errors import MemoError, SettingsError
from memo.evaluate import report
from memo.evaluate.report_targets import better_answers, trained_memory


@pytest.fixture
def written(tmp_path):
    """A function: the lines of the report about these results."""

    def write(squad=None, memory=None, speed=None, trained=None, clues=None, study=None, **sets):
        (tmp_path / "qa").mkdir(exist_ok=True)
        files = {f"qa/{name}": results for name, results in ({"squad": squad} | sets).items()}
        files |= {"memory": memory, "memory-trained": trained, "clues": clues, "study": study, "speed": speed}
        for name, results in files.items():
            if results:
                (tmp_path / f"{name}.json").write_text(json.dumps(ABOUT | {"results": results}))
        report.report(tmp_path, tmp_path / "RESULTS.md")
        return (tmp_path / "RESULTS.md").read_text().splitlines()

    return write


def part(lines, title):
    """The lines below a heading, without those that are empty."""
    start = next(i for i, line in enumerate(lines) if line.lstrip("# ") == title and line.startswith("#"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("#")), len(lines))
    return [line for line in lines[start + 1 : end] if line]


def with_lead(mean, low, high, n, metric="recall@3"):
    """SQUAD, where memorag's lead over rag is this."""
    changed = copy.deepcopy(SQUAD)
    changed["against_rag"]["memorag"][metric] = value(mean, low, high, n)
    return changed


def test_the_order_is_what_a_reader_wants_first(written):
    lines = written(SQUAD, MEMORY, SPEED)
    assert [line[3:] for line in lines if line.startswith("## ")] == [
        "Targets", "Retrieval", "Answers", "Parts of memorag", "Where memorag loses", "The memory", "Speed",
        "What the numbers do not say", "Every number",
    ]  # fmt: skip
    assert lines[-1].startswith("| speed.json |")


def test_the_opening_says_what_was_measured(written):
    opening = written(SQUAD, MEMORY, SPEED, musique=MUSIQUE)[2]
    assert opening == (
        "Measured: 2 question sets with 40 questions, 16 of them answered, by strategies that differ only in what they"
        " read; what the memory keeps of 2 texts; speed. Models: memory not told, generator SmolLM2-135M-Instruct,"
        " embedder all-MiniLM-L6-v2; memory weights: untrained. A difference is of the same questions and stands with"
        " its 95 % interval, drawn over libraries of documents, not over questions; where there are fewer than three,"
        " the mean stands alone. `*`: the interval holds no zero, and there are at least 30 questions."
    )


def test_opening_names_the_sets_that_were_searched_by_meaning_alone(written):
    before = copy.deepcopy(SQUAD)
    before["what"]["strategies"]["rag"] = "passages by the question's embedding"
    assert "before words were searched too: squad." in written(before, musique=MUSIQUE)[2]
    assert "before words" not in written(SQUAD, musique=MUSIQUE)[2]


def test_opening_names_the_sets_with_other_weights(written):
    trained = copy.deepcopy(MUSIQUE)
    trained["what"]["memory_weights"] = "books"
    assert "memory weights: books (musique), untrained (squad)." in written(SQUAD, musique=trained)[2]


def test_retrieval_puts_the_sets_beside_one_another(written):
    other = copy.deepcopy(SQUAD) | {"evidence": "where an answer stands"}
    other["strategies"]["rag"]["recall@3"] = value(0.704, 0.6, 0.8, 18)  # reads like memorag's 0.7
    del other["strategies"]["bm25"]
    lines = written(SQUAD, tatqa=other)
    assert part(lines, "Retrieval") == [
        "recall@3, the share of the evidence among the first three passages. Means; bold: the best of a row.",
        "| set | n | bm25 | rag | memorag | memorag − rag |",
        "| --- | --- | --- | --- | --- | --- |",
        "| squad | 20 | **0.90** | 0.60 | 0.70 | +0.100 [−0.010, +0.200] |",
        "| tatqa | 18 to 20 |  | **0.70** | **0.70** | +0.100 [−0.010, +0.200] |",
        "MRR, 1 / rank of the first passage that holds evidence.",
        "Not measured: set, n, memorag − rag.",
        "Evidence: given (squad), where an answer stands (tatqa).",
    ]


def test_answers_and_their_costs(written):
    other = copy.deepcopy(SQUAD)
    other["strategies"]["rag"] |= {"prompt_tokens": value(600, 590, 620, 8), "cited": value(0.5, 0.4, 0.6, 8)}
    other["strategies"]["rag"]["rouge_l"] = value(0.3, 0.2, 0.4, 8)
    told = part(written(SQUAD, tatqa=other), "Answers")
    assert told[1:6] == [
        "F1:",
        "| set | n answered | closed_book | rag | memorag | memorag − rag |",
        "| --- | --- | --- | --- | --- | --- |",
        "| squad | 8 | 0.10 | **0.25** | 0.22 | −0.030 [−0.050, −0.010] |",
        "| tatqa | 8 | 0.10 | **0.25** | 0.22 | −0.030 [−0.050, −0.010] |",
    ]
    assert told[6:10] == [
        "ROUGE-L:",
        "| set | n answered | rag | memorag − rag |",
        "| --- | --- | --- | --- |",
        "| tatqa | 8 | 0.30 |  |",
    ]
    assert told[10].endswith("Seconds: of 3 questions a set, each strategy alone.")
    assert told[11:] == [
        "| strategy | prompt tokens | seconds | cited | supported |",
        "| --- | --- | --- | --- | --- |",
        "| closed_book | 50 |  |  |  |",
        "| rag | 700 | 4 | 0.50 (1 set) |  |",
        "| memorag | 1,200 | 8 |  |  |",
    ]


@pytest.mark.parametrize(("n", "star"), [(29, ""), (30, "*")])
def test_a_difference_is_starred_from_thirty_questions_on(written, n, star):
    lines = written(with_lead(-0.02, -0.03, -0.01, n))
    told = f"−0.020 [−0.030, −0.010]{star}"
    assert f"| squad | 20 | **0.90** | 0.60 | 0.70 | {told} |" in lines
    assert f"| squad | {told} | +0.050 [+0.010, +0.100] |" in part(lines, "Parts of memorag")
    judged = f"0 of 1 sets, 0 of them beyond the interval; not on squad {told} | **no** |"
    few = "rag’s on every set | fewer than 30 questions: squad | not measured |"
    assert (judged if star else few) in part(lines, "Targets")[2]
    cell = "**recall@3 −0.020**" if star else "recall@3 −0.020"
    assert f"* squad: {cell} ({n} questions); F1 −0.030 (8 questions);" in "\n".join(lines)


def test_an_interval_that_holds_zero_has_no_star(written):
    lines = written(with_lead(0.02, 0, 0.03, 200))
    assert "| squad | 20 | **0.90** | 0.60 | 0.70 | +0.020 [+0.000, +0.030] |" in lines


def test_losses_are_named(written):
    lines = part(written(with_lead(0.1, 0.02, 0.2, 8, "f1"), musique=MUSIQUE), "Where memorag loses")
    assert lines == [
        "Against rag: worse in 4 of 8 pairs of set and metric, beyond the interval in 1 of them (bold). Differences of"
        " the means, memorag − rag; of `answered anyway` less is better.",
        "* musique: **recall@3 −0.020** (40 questions); F1 −0.030 (8 questions); answered anyway +0.100 (2 questions)",
        "* squad: answered anyway +0.100 (2 questions)",
        "recall@3 of another strategy above memorag’s, difference of the means:",
        "* bm25: musique +0.200, squad +0.200 (2 of 2 sets)",
        "Cost of an answer, against rag’s, by set: prompt tokens 1.5 to 1.5 times, seconds 2.0 to 2.0 times.",
    ]


def test_sets_without_a_loss_are_named_too(written):
    won = with_lead(0.1, 0.02, 0.2, 8, "f1")
    del won["against_rag"]["memorag"]["answered_anyway"]
    won["strategies"]["bm25"]["recall@3"] = value(0.7, 0.6, 0.8)
    lines = part(written(won), "Where memorag loses")
    assert lines[0].startswith("Against rag: worse in 0 of 3 pairs of set and metric, beyond the interval in 0 of them")
    assert lines[1] == "* in no metric: squad" and lines[3] == "* bm25: nowhere, of 1 set"


def test_the_parts_of_memorag(written):
    assert part(written(SQUAD), "Parts of memorag")[1:] == [
        "| set | memorag | memorag-draft |",
        "| --- | --- | --- |",
        "| squad | +0.100 [−0.010, +0.200] | +0.050 [+0.010, +0.100] |",
    ]


def test_targets_are_judged_by_the_numbers(written):
    lines = part(written(SQUAD, speed=SPEED, musique=MUSIQUE), "Targets")[2:]
    assert [line.split(" | ")[-2:] for line in lines] == [
        ["0 of 1 sets, 0 of them beyond the interval; not on musique −0.020 [−0.030, −0.010]*; fewer than 30 questions:"
         " squad", "**no** |"],
        ["0 of 1 sets, 0 of them beyond the interval; not on musique −0.020 [−0.030, −0.010]*", "**no** |"],
        *[["", "not measured |"]] * 4,
        ["0.7 [0.6, 0.8] at 8,192 tokens, the least", "**no** |"],
        ["tokens^1.23", "**no** |"],
        ["44 [40, 50] at 8,000 tokens", "yes |"],
        ["1.5 [1.4, 1.7]", "yes |"],
    ]


def test_better_answers_are_better_than_every_rivals():
    means = {"memorag": 0.3, "rag": 0.2, "hyde": 0.1, "rq_rag": 0.2, "full_context": 0.25}
    won = {"strategies": {name: {"f1": {"mean": mean}} for name, mean in means.items()}}
    lost = {"strategies": won["strategies"] | {"hyde": {"f1": {"mean": 0.31}}}}
    some = {str(number): won for number in range(5)}
    assert better_answers(some)[1:] == ("on 5 of 5 sets: 0, 1, 2, 3, 4", True)
    assert better_answers(some | {"0": lost})[1:] == ("on 4 of 5 sets: 1, 2, 3, 4", False)
    assert better_answers({"0": {"strategies": {}}})[1:] == ("", None)


def test_what_the_trained_memory_keeps_is_judged_ratio_by_ratio():
    row = {"measure": "loss", "method": "memory", "tokens": 4096, "window": 512}
    rows = [row | {"wanted_ratio": ratio, "recovery": {"mean": mean}} for ratio, mean in ((2, 0.98), (4, 0.944))]
    rows.append(row | {"wanted_ratio": 2, "tokens": 1024, "recovery": {"mean": 0.1}})
    results = {"rows": rows, "what": {"base": {"ratio": 8, "window": 512, "tokens": 4096}}}
    recovery, copy, facts = trained_memory(results)
    assert recovery[1:] == ("0.98 (2), 0.94 (4)", False)
    assert copy[1:] == facts[1:] == ("", None)


def test_every_number_of_a_set_is_folded_away(written):
    lines = part(written(SQUAD), "Every number")
    assert lines[: lines.index("</details>") + 1] == [
        "<details><summary>squad</summary>",
        "squad, dev, language en: 20 questions, 8 of them answered, 3 libraries of a group each.",
        "Failed and left out: hyde 2.",
        "| strategy | recall@1 | recall@3 | n |",
        "| --- | --- | --- | --- |",
        "| bm25 | 0.50 [0.45, 0.55] | 0.90 [0.86, 0.95] | 20 |",
        "| rag | 0.30 [0.20, 0.40] | 0.60 [0.50, 0.70] | 20 |",
        "| memorag | 0.40 [0.30, 0.42] | 0.70 [0.60, 0.80] | 20 |",
        "memorag − rag: recall@1 +0.100 [+0.020, +0.200]*, recall@3 +0.100 [−0.010, +0.200].",
        "| strategy | F1 | answered anyway | prompt tokens | seconds | n |",
        "| --- | --- | --- | --- | --- | --- |",
        "| closed_book | 0.10 [0.00, 0.20] |  | 50 |  | 8 |",
        "| rag | 0.25 [0.20, 0.30] | 0.40 [0.30, 0.50] | 800 | 4 | 2 to 8 |",
        "| memorag | 0.22 [0.20, 0.24] | 0.50 [0.30, 0.70] | 1,200 | 8 | 2 to 8 |",
        "memorag − rag: F1 −0.030 [−0.050, −0.010], answered anyway +0.100 [−0.100, +0.300].",
        "</details>",
    ]
    raw = written(SQUAD)  # Markdown within HTML needs the empty line
    assert raw[raw.index("<details><summary>squad</summary>") + 1] == ""


def test_the_memory(written):
    lines = written(memory=MEMORY)
    told = part(lines, "The memory")
    assert "| memory | 0.60 [0.50, 0.80] |" in told and "| no context | 0.00 [0.00, 0.00] |" in told
    assert "| 512 | 0.60 [0.50, 0.80] | 0.50 [0.40, 0.60] | 0.40 [0.30, 0.50] | 8 | 2 |" in told
    assert part(lines, "Several documents in one memory")[2:] == [
        "| 2 | drawn | 0.50 [0.40, 0.60] |  |  | 8 | 2 |",
        "Taking a document out leaves the others exactly as they were: yes; largest difference 0, 2 texts.",
    ]
    assert part(lines, "Looking one sentence up") == [
        "| fact, by depth | 25 % | all depths | whole answer right | texts |",
        "| --- | --- | --- | --- | --- |",
        "| memory, ratio 8 | 0.50 [0.20, 0.80] | 0.75 [0.50, 1.00] | 0.50 [0.00, 1.00] | 2 |",
        "Not measured: 65,536 tokens: No text is that long.",
    ]


def test_speed(written):
    told = part(written(speed=SPEED), "Speed")
    assert "| 1,024 | 1.35 [1.28, 1.42] | 538 | 399 |" in told
    assert "| 8,000 | reading the text again | 44 [40, 50] | 0.5 | 22 |  |  |" in told
    assert "| 8,192 | 8 | 20 | 160 | 20 | 0.125 |" in told
    assert "Not measured: visitors at once, of them, first clue / alone, seconds." in told
    notes = ["* first clue: From a memory in RAM.", "* search: Random unit vectors."]
    assert told[-3:] == ["How it was measured:", *notes]
    ways = copy.deepcopy(SPEED)
    ways["first_clue"][0] |= {"run_seconds": 30, "prefill_seconds": 22}
    del ways["what"]["notes"]
    told = part(written(speed=ways), "Speed")
    assert "| 8,000 | reading the text again | 44 [40, 50] | 0.5 | 22 | 30 | 22 |" in told
    assert "How it was measured:" not in told


def test_a_mean_of_fewer_than_three_stands_alone(written):
    few = with_lead(0.1, None, None, 40) | {"libraries": 2}
    few["strategies"]["rag"]["recall@3"] = value(0.6, None, None)
    lines = written(few, MEMORY | {"rows": [
        row("loss", "memory", ratio=8, wanted_ratio=8, window=512, recovery=value(0.6, None, None)),
        row("loss", "snapkv", ratio=8, wanted_ratio=8, recovery=None),
    ]})  # fmt: skip
    assert "| squad | 20 | **0.90** | 0.60 | 0.70 | +0.100 |" in lines
    assert "| rag | 0.30 [0.20, 0.40] | 0.60 | 20 |" in lines
    assert "memorag − rag: recall@1 +0.100 [+0.020, +0.200]*, recall@3 +0.100." in lines
    assert "1 of 1 sets, 0 of them beyond the interval" in part(lines, "Targets")[2]
    assert "| memory | 0.60 |" in lines and "| snapkv |  |" in lines
    lost = written(with_lead(-0.1, None, None, 40))
    assert any("squad: recall@3 −0.100 (40 questions)" in line for line in lost)  # not bold
    assert not any("so that even a star says little" in line for line in lines)


def test_the_memory_names_its_weights(written):
    what = MEMORY["what"]
    for more, told in (
        ({}, "2 texts;"),
        ({"weights": "0aff"}, "Memory weights with the fingerprint 0aff. 2 texts;"),
        ({"weights": "0aff", "models": {"memory": "SmolLM2", "memory_weights": "books"}},
         "Model SmolLM2, memory weights books. 2 texts;"),
    ):  # fmt: skip
        assert part(written(memory=MEMORY | {"what": what | more}), "The memory")[0].startswith(told)
    untrained = {"models": {"memory": "SmolLM2", "memory_weights": "untrained"}}
    lines = written(memory=MEMORY | {"what": what | untrained})
    assert "the memory: measured with untrained" in "\n".join(part(lines, "What the numbers do not say"))


def stage(loss, recall):
    values = {"question": value(0.5, 0.4, 0.6), "loss": value(loss, 1, 3), "recall": value(recall, 0.4, 0.8),
              "in_use": value(0.55, 0.5, 0.6), "f1": value(0.1, 0, 0.2), "contains": value(0.05, 0, 0.1)}  # fmt: skip
    return {"all": values}


def change(recall):
    return {"all": dict.fromkeys(("loss", "recall", "in_use", "f1", "contains"), recall)}


def test_training_is_told_stage_by_stage(written):
    clues = {
        "what": {"ratio": 8}, "sets": {"squad": 20, "musique": 11},
        "weights": {"untrained": stage(4, 0.5), "sft": stage(2, 0.6), "rlgf": stage(1.9, 0.7)},
        "against": {"sft": {"untrained": change(value(0.1, 0.05, 0.2, 31))},
                    "rlgf": {"untrained": change(value(9, 9, 9)), "sft": change(value(0.1, -0.05, 0.2, 31))}},
    }  # fmt: skip
    lines = written(SQUAD, memory=MEMORY, trained=MEMORY, clues=clues)
    told = part(lines, "What is recalled")
    assert "(squad 20, musique 11)" in told[0] and "question alone: 0.50 [0.40, 0.60]" in told[0]
    assert any(line.startswith("| rlgf | 1.90 [1.00, 3.00] | 0.70 [0.40, 0.80] |") for line in told)
    assert any(line.startswith("| sft − untrained | +0.100 [+0.050, +0.200]* |") for line in told)
    assert any(line.startswith("| rlgf − sft | +0.100 [−0.050, +0.200] |") for line in told)
    assert part(lines, "The trained memory")[0] == part(lines, "The memory")[0]
    assert any("| clues.json |" in line for line in lines)


def test_studying_is_told_with_its_gain_a_minute(written):
    kept = {metric: value(0.4, 0.3, 0.5) for metric in ("copy", "facts", "f1", "contains")}
    rows = [
        {"steps": 0, "texts": ["mill", "lake"], **kept, "seconds": value(0, 0, 0)},
        {"steps": 50, "texts": ["mill", "lake"], **kept, "seconds": value(90, 80, 100),
         "per_minute": {metric: value(0.1, 0.05, 0.15) for metric in kept}},
        {"steps": None, "texts": ["mill"], "copy": value(0.9, 0.8, 1), "facts": value(0.8, 0.7, 0.9)},
    ]  # fmt: skip
    told = part(written(study={"what": {"ratio": 8}, "rows": rows}), "Studying a document harder")
    assert told[0] == "Ratio 8; seconds of this machine."
    assert any(line.startswith("| 50 | 0.40 [0.30, 0.50] |") and line.endswith("| 90 | mill, lake |") for line in told)
    assert any(line.startswith("| the full text | 0.90 [0.80, 1.00] | 0.80 [0.70, 0.90] |  |") for line in told)
    assert any(line.startswith("| 50 | +0.100 [+0.050, +0.150] |") for line in told)


def test_what_was_run_and_what_the_numbers_do_not_say(written):
    lines = written(SQUAD, korquad1=MUSIQUE | {"libraries": 30})
    assert "| qa/squad.json | `python -m memo evaluate qa --data squad` | abc | 2030-01-01 | Z80, 2 cores |" in lines
    assert any("ratio 4 (korquad1), 8 (squad); seed 0." in line for line in lines)
    assert "| memorag | passages by clues |" in lines
    limits = "\n".join(part(lines, "What the numbers do not say"))
    assert "korquad1, squad: measured with untrained memory weights" in limits
    assert "English: korquad1 rests on shared characters" in limits
    assert "starred, and a loss bold, only with at least 30 questions" in limits
    assert "fewer than 30, they tend to be too narrow, so that even a star says little: squad 3." in limits
    assert "Seconds of answers rest on very few questions" in limits


def test_files_that_are_missing_are_named(written):
    lines = written()
    assert "Nothing is measured yet." in lines and "## Every number" not in lines
    missing = {"Retrieval and answers": "file in `qa/`", "The memory": "`memory.json`", "Speed": "`speed.json`"}
    for title, file in missing.items():
        assert part(lines, title) == [f"Not measured: there is no {file}."]
    assert all(line.endswith("| not measured |") for line in part(lines, "Targets")[2:])
    without_rag = copy.deepcopy(SQUAD)
    del without_rag["strategies"]["rag"]
    del without_rag["evidence"]  # as files had none before
    lines = written(without_rag | {"against_rag": {}})
    assert "Against rag: worse in 0 of 0" in "\n".join(lines)
    assert "| squad | 20 | **0.90** | 0.70 |  |" in lines and "Evidence: not told." in lines


def test_the_same_files_make_the_same_bytes(written):
    assert written(SQUAD, MEMORY, SPEED) == written(SQUAD, MEMORY, SPEED)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("speed", "{", "not a file of results"),
        ("qa/squad", "[]", "not a file of results"),
        ("qa/squad", '{"results": 3}', "not a file of results"),
        ("memory", json.dumps(ABOUT | {"results": {"what": {}}}), "lacks rows"),
        ("qa/squad", json.dumps({"results": SQUAD}), "lacks command"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path, name, text, told):
    (tmp_path / "qa").mkdir()
    (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(SettingsError, match=told) as caught:
        report.report(tmp_path, tmp_path / "RESULTS.md")
    assert f"{name}.json" in str(caught.value) and isinstance(caught.value, MemoError)
    assert not (tmp_path / "RESULTS.md").exists()
