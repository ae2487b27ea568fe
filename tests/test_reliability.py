"""What the measurement of hard knocks does: it breaks inputs, kills, sends visitors, tells outcomes apart, reports."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo import memory_file
from memo.cli import main
from memo.documents import read_bytes
from memo.errors import CorruptDocument, MemoError, TrainingFailed
from memo.evaluate import bad_inputs, kills, visitors
from memo.evaluate.report import report
from memo.memory import read_all
from memo.settings import default_cache

GENEROUS = settings(max_examples=60, deadline=10_000, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


# --- bad inputs ------------------------------------------------------------------------------------------------------


def test_whole_files_are_read_and_broken_ones_differ():
    for ending, data in bad_inputs.originals().items():
        assert read_bytes(data, f"whole{ending}", **bad_inputs.LIMITS).text
        made = [bad_inputs.broken(data, random.Random(seed)) for seed in range(20)]
        assert sum(one != data for one in made) > 15 and all(made)
        assert made == [bad_inputs.broken(data, random.Random(seed)) for seed in range(20)]


def test_a_crash_is_told_from_a_refusal():
    def refuses(draw):
        raise CorruptDocument("no")

    def fails(draw):
        raise ValueError("of a reader")

    told = []
    found = bad_inputs.measured({"a": refuses, "b": fails, "c": lambda draw: None}, 6, random.Random(0), told.append)
    became = {kind: next(iter(counts)) for kind, counts in found["kinds"].items()}
    assert became == {"a": "refused", "b": "crashed", "c": "read"} and found["kinds"]["a"]["refused"] == 2
    assert found["errors"] == {"CorruptDocument": 2} and len(found["crashes"]) == len(told) == 2


@GENEROUS
@given(st.binary(max_size=400), st.sampled_from([".txt", ".md"]))
def test_any_bytes_are_a_text_or_refused(data, ending):
    try:
        read_bytes(data, f"a{ending}", **bad_inputs.LIMITS)
    except MemoError as error:
        assert error.message


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A memory file and the reader that made it."""
    reader, path = tiny.memory_model(), tmp_path_factory.mktemp("memory") / "mill"
    memory_file.save(read_all(reader.memorize(tiny.TEXT, "mill", 4, 64, text_sha256="0" * 64)), path)
    return reader, path


@GENEROUS
@given(st.data())
def test_a_memory_with_anything_changed_is_refused(memory, data):
    reader, path = memory
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    some = data.draw(st.binary(max_size=12).filter(lambda some: some != whole[place : place + len(some)]))
    changed = path.with_name("changed")
    changed.write_bytes(whole[:place] + some + whole[place + len(some) :] if some else whole[:place])
    with pytest.raises(MemoError):
        memory_file.load(changed, reader)


def test_bad_inputs_from_the_command_line_to_the_report(tmp_path):
    out = tmp_path / "results" / "reliability.json"
    command = ["evaluate", "reliability", "--inputs", "36", "--kills", "0", "--visitors", "0", "--out", str(out)]
    assert main(command) == 0
    found = json.loads(out.read_text())["results"]["inputs"]
    assert found["count"] == 36 and not found["crashes"] and len(found["kinds"]) == 12
    assert sum(kind.get("read", 0) + kind.get("refused", 0) for kind in found["kinds"].values()) == 36
    report(out.parent, tmp_path / "RESULTS.md")
    assert "36 bad inputs" in (tmp_path / "RESULTS.md").read_text()
    out.unlink()
    assert main([*command[:3], "0", *command[4:]]) == 0  # what is measured already is kept
    assert json.loads(out.read_text())["results"]["inputs"] == found


# --- kills -----------------------------------------------------------------------------------------------------------


def test_what_must_be_there_follows_from_what_was_told():
    def told(*lines):
        return [{"stage": stage, "name": name} for stage, name in lines]

    assert kills.certain({"a", "b"}, []) == ({"a", "b"}, set())
    assert kills.certain({"a", "b"}, told(("forgetting", "a"))) == ({"b"}, {"a"})
    assert kills.certain({"a", "b"}, told(("forgetting", "a"), ("forgotten", "a"))) == ({"b"}, set())
    assert kills.certain({"a"}, told(("indexing", "c"), ("memorizing", "c"))) == ({"a"}, {"c"})
    assert kills.certain({"a"}, told(("indexing", "c"), ("ready", "c"))) == ({"a", "c"}, set())
    assert kills.certain({"a"}, told(("ready", "a"), ("indexing", "c"), ("storing", ""))) == ({"a"}, {"c"})


def test_kills_at_every_stage_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "SENTENCES", 8)
    told = []
    found = kills.evaluate(tmp_path, 8, 0, default_cache(), told.append)
    assert sum(found["library"]["kills"].values()) == 4 == sum(found["decoder"]["kills"].values())
    assert found["library"]["kills"].keys() == set(kills.LIBRARY) and len(told) >= 8
    assert found["decoder"]["another_decoder"] == found["library"]["lost"] == 0


def test_a_job_that_fails_is_told(tmp_path):
    kills.make_model(tmp_path / "model", default_cache())
    with kills.Workers(tmp_path / "model", random.Random(0)) as workers:
        with pytest.raises(TrainingFailed, match="memorize failed"):
            workers.peace(work="memorize", library=str(tmp_path / "l"), texts=[str(tmp_path / "none.txt")], forget=[])
        assert workers.peace(work="look", library=str(tmp_path / "l")) == [{"documents": {}, "strange": []}]


# --- visitors --------------------------------------------------------------------------------------------------------


def test_visitors_have_secrets_of_their_own_and_a_mix_up_is_seen():
    one, two = visitors.invented(2, random.Random(0))
    secrets = frozenset({one.secret, two.secret})
    one.document = "d1"
    assert one.secret in one.text and two.secret not in one.text and one.secret != two.secret

    def reply(**changes):
        passage = {"document": "d1", "text": one.text[:40]}
        return {"answer": "It is so.", "passages": [passage | changes], "citations": [], "clues": []}

    assert visitors.strange(reply(), one, secrets) == []
    assert visitors.strange({"rag": reply()}, one, secrets) == []
    assert visitors.strange(reply() | {"answer": f"It is {two.secret}."}, one, secrets) == [two.secret]
    assert visitors.strange(reply(document="d2"), one, secrets) == ["passage of d2"]
    assert visitors.strange(reply(text="Other words."), one, secrets) == ["passage of d1"]
    cited = reply() | {"citations": [{"source": {"document": "d2"}}]}
    assert visitors.strange(cited, one, secrets) == ["place in d2"]


def test_the_warm_up_asks_in_every_way_that_is_measured_later():
    asked = []

    class Heard(visitors.Crowd):
        def request(self, kind, name, *values):
            asked.append((kind, values[-1]))

    draw = random.Random(0)
    crowd = Heard(None, visitors.invented(2 * 8, draw, apart=True), visitors.Seen(), draw)
    for visitor in crowd.visitors:
        crowd.ask(visitor)
    assert {way for kind, way in asked if kind == "ask"} == set(visitors.WAYS)
    assert {kind for kind, _ in asked} >= {"ask", "compare", "documents", "nonsense"}


def test_outcomes_and_seconds_are_counted():
    seen = visitors.Seen()
    for number in range(19):
        seen.note("ask", "answered", float(number))
    seen.note("ask", "refused", 100.0, "No.")
    seen.note("forget", "failed", 1.0, "500")
    told = seen.told()
    assert told["ask"] == {"answered": 19, "refused": 1, "failed": 0, "p50_seconds": 9.5, "p95_seconds": 22.1}
    assert told["forget"]["p95_seconds"] == 1.0
    assert seen.sentences == Counter({"ask: No.": 1}) and seen.failures == ["forget: 500"]


def test_visitors_of_the_real_app_are_answered_and_kept_apart(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr(visitors, "PAUSE", 0.5)
    environment = {
        "MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_DTYPE": "float32", "MEMO_DEVICE": "cpu", "MEMO_WINDOW": "64",
        "MEMO_RATIO": "4", "MEMO_PASSAGE_TOKENS": "60", "MEMO_CONTEXT_TOKENS": "200", "MEMO_CLUE_TOKENS": "8",
        "MEMO_ANSWER_TOKENS": "6", "MEMO_MEMORY_DECODER": "none",
    }  # fmt: skip
    found = visitors.evaluate(tmp_path, 6, 3, 0.05, 0, lambda line: None, environment)
    assert found["let_in"] == 6 and not found["mixed_up"] and not found["failures"]
    for kind in ("memorize", "ask", "documents", "forget"):
        assert found["kinds"][kind]["answered"] >= 6 and not found["kinds"][kind]["failed"]
        assert not found["kinds"][kind]["refused"]
    assert found["kinds"]["nonsense"]["refused"] >= 6 and not found["kinds"]["nonsense"]["answered"]
    assert found["memory"]["with_all"]["sessions"] == 6 and found["memory"]["after"]["sessions"] == 0
    assert found["memory"]["after"]["bytes"] > 0
