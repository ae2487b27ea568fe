"""The command line of the measurements: a tiny run of each, what is written, and wrong use."""

import json

import pytest
import tiny

from memo.cli import main
from memo.evaluate.report import report

MILL = tiny.document("mill.txt", tiny.TEXT)
RIVER = tiny.document("river.txt", "The river rose on the fifth of May. The ferryman Tomas drowned. " * 4)


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_folder):
    """A set on disk, and a tiny model in the environment."""
    for name, value in {
        "MEMORY_MODEL": str(tiny_folder), "WINDOW": "64", "RATIO": "4", "ANSWER_TOKENS": "4", "CLUE_TOKENS": "4",
        "CONTEXT_TOKENS": "100", "PASSAGE_TOKENS": "40",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MEMO_{name}", value)
    docs = [{"doc_id": d.name, "title": "", "text": d.text} for d in (MILL, RIVER)]
    asked = [
        {"id": "1", "doc_id": "mill.txt", "question": "Who bought the mill?", "answers": ["Anna Okafor"]},
        {"id": "2", "doc_id": "river.txt", "question": "Who drowned?", "answers": ["Tomas"]},
    ]
    (tmp_path / "set").mkdir()
    for name, lines in (("docs", docs), ("dev", asked)):
        (tmp_path / "set" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "set"


def run(*arguments):
    return main(["evaluate", *map(str, arguments)])


def test_the_command_writes_results_with_their_origin_and_resumes(folder, tmp_path, capsys):
    out = tmp_path / "results" / "tiny.json"
    command = ("qa", "--data", folder, "--split", "dev", "--context", "corpus", "--timed", 0, "--out", out)
    assert run(*command) == 0
    assert "memorag-pointers" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told["command"].startswith("python -m memo") and told["machine"]["cores"]
    assert told["results"]["context"] == "corpus" and told["results"]["set"] == "set"
    assert run(*command) == 0  # nothing is left to do
    assert json.loads(out.read_text())["results"] == told["results"]
    assert run(*command, "--strategies", "rag") == 2  # another run: not mixed with these rows
    assert "strategies differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--strategies", "rag,magic"), "No strategy is named 'magic'"),
        (("--split", "test"), "There is no test.jsonl"),
        (("--where", "kind"), "FIELD=VALUE"),
        (("--data", "nowhere"), "There is no"),
        (("--memory-weights", "nowhere.safetensors"), "memory weights"),
    ],
)
def test_wrong_use_is_told_in_a_line_and_leaves_nothing(folder, tmp_path, capsys, arguments, told):
    out = tmp_path / "out.json"
    assert run("qa", "--data", folder, "--split", "dev", "--out", out, *arguments) == 2
    said = capsys.readouterr().err
    assert told in said.splitlines()[-1] and "Traceback" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("--limit", "-1"), ("--ratio", "65"), ("--ratio", "0"), ("--answer-every", "0"), ("--each", "x"), ("--seed", "?")],
)
def test_numbers_out_of_range_are_refused(folder, tmp_path, capsys, name, value):
    with pytest.raises(SystemExit) as stopped:
        run("qa", "--data", folder, "--split", "dev", "--out", tmp_path / "out.json", name, value)
    assert stopped.value.code == 2 and f"{value!r} is no whole number from" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["results.txt", "folder.json", "file/results.json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(folder, tmp_path, capsys, out):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    assert run("qa", "--data", "nowhere", "--split", "dev", "--out", tmp_path / out) == 2
    said = capsys.readouterr().err
    assert ("--out is" in said or "Nothing can be written to" in said) and "nowhere" not in said


def test_files_that_cannot_be_read_are_told_in_a_line(tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for text in (tmp_path / "latin.txt", tmp_path / "none.txt", tmp_path):
        assert run("memory", "--texts", text, "--out", tmp_path / "out.json") == 2
        said = capsys.readouterr().err
        assert said.startswith("memo: ") and "Traceback" not in said
    (tmp_path / "empty").mkdir()
    assert run("report", "--results", tmp_path / "empty") == 2
    assert "There are no results in" in capsys.readouterr().err


def test_memory_speed_and_report_write_what_they_measured(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEMO_WINDOW", "64")
    results, text = tmp_path / "results", tmp_path / "text.txt"
    text.write_text(tiny.TEXT * 3)
    sizes = ("--ratios", "4,8", "--windows", "64", "--lengths", "300", "--documents", "1,2")
    assert run("memory", "--texts", text, *sizes, "--out", results / "memory.json") == 0
    told = json.loads((results / "memory.json").read_text())["results"]
    assert {row["measure"] for row in told["rows"]} >= {"loss", "copy", "lookup", "composition"}
    assert told["what"]["models"]["memory_weights"] == "untrained"
    few = ("--lengths", "128", "--long-lengths", "256", "--exponent-lengths", "128,256", "--passages", "20",
           "--visitors", "1,2", "--repeats", "1")  # fmt: skip
    assert run("speed", "--text", text, *few, "--out", results / "speed.json") == 0
    told = json.loads((results / "speed.json").read_text())["results"]
    assert told["memorize"] and told["visitors"] and told["compare"]
    out = results / "qa" / "set.json"
    assert run("qa", "--data", folder, "--split", "dev", "--timed", 1, "--strategies", "rag,memorag", "--out", out) == 0
    assert run("report", "--results", results) == 0
    written = (results / "RESULTS.md").read_text()
    assert "memorag" in written and "Speed" in written
    assert run("memory", "--texts", text, "--ratios", "4;8", "--out", results / "x.json") == 2
    assert "--ratios is '4;8'" in capsys.readouterr().err
    report(results, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == written


def test_documents_of_a_set_are_measured_by_split(folder, tmp_path):
    sizes = ("--ratios", "4", "--windows", "64", "--lengths", "64", "--documents", "1")
    (folder / "docs.jsonl").write_text(
        "".join(
            json.dumps({"doc_id": name, "title": "", "text": tiny.TEXT * 2 + name, "split": split}) + "\n"
            for name, split in (("a", "train"), ("b", "valid"))
        )
    )
    assert run("memory", "--data", folder, "--split", "valid", *sizes, "--out", tmp_path / "memory.json") == 0
    assert json.loads((tmp_path / "memory.json").read_text())["results"]["what"]["texts"] == ["b"]
    assert run("memory", "--data", folder, "--split", "none", *sizes, "--out", tmp_path / "none.json") == 2
