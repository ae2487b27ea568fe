"""What the measurement of hard knocks does: it breaks files, tells outcomes apart, kills, and reports."""

from __future__ import annotations

import json
import random
import sys

import pytest

from memo.cli import main
from memo.errors import TrainingFailed
from memo.evaluate import bad_inputs
from memo.evaluate.kills import Killing, make_texts
from memo.evaluate.report import report


def test_whole_files_are_read_and_broken_ones_differ():
    for ending, data in bad_inputs.originals().items():
        assert bad_inputs.outcome(data, f"whole{ending}")[0] == "read"
        made = [bad_inputs.broken(data, random.Random(seed)) for seed in range(20)]
        assert sum(one != data for one in made) > 15 and all(made)
        assert made == [bad_inputs.broken(data, random.Random(seed)) for seed in range(20)]


def test_a_crash_is_told_from_a_refusal(monkeypatch):
    assert bad_inputs.outcome(b"%PDF-1.4 no more", "a.pdf")[0] == "refused"

    def fails(*_, **__):
        raise ValueError("of a reader")

    monkeypatch.setattr(bad_inputs, "read_bytes", fails)
    assert bad_inputs.outcome(b"text", "a.txt")[:2] == ("crashed", "ValueError: of a reader")


def test_broken_files_from_the_command_line_to_the_report(tmp_path):
    out = tmp_path / "results" / "reliability.json"
    assert main(["evaluate", "reliability", "--inputs", "21", "--kills", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["results"]["inputs"]
    assert found["count"] == 21 and not found["crashes"]
    assert sum(kind.get("read", 0) + kind.get("refused", 0) for kind in found["kinds"].values()) == 21
    report(out.parent, tmp_path / "RESULTS.md")
    assert "21 broken files" in (tmp_path / "RESULTS.md").read_text()


def test_a_process_is_killed_while_it_works_or_has_ended(tmp_path):
    killing = Killing(tmp_path, random.Random(0))
    assert killing.killed(["-c", "import time; time.sleep(60)"], 0.1, 0.1)
    assert not killing.killed(["-c", ""], 30, 1)
    assert killing.whole("-c", "print(1)").stdout == "1\n"
    with pytest.raises(TrainingFailed, match="after a kill: no"):
        killing.whole("-c", "import sys; sys.exit('no')")
    assert sys.executable and len(make_texts(tmp_path / "texts", random.Random(1))) == 12
