"""The timed walk writes what it says, and where it comes from."""

import json
import subprocess
import sys


def test_the_walk_writes_results_with_their_origin(tiny_folder, tmp_path, monkeypatch):
    text = tmp_path / "text.md"
    text.write_text("The pump stands behind the old chapel. " * 40)
    monkeypatch.setenv("MEMO_MEMORY_MODEL", str(tiny_folder))
    for name, value in {"WINDOW": "64", "ANSWER_TOKENS": "4", "CLUE_TOKENS": "4", "CONTEXT_TOKENS": "100"}.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    out = tmp_path / "walk.json"

    def walk(*arguments):
        command = [sys.executable, "-m", "memo.evaluate.walk", *arguments, "--out", out]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
        return json.loads(out.read_text())

    told = walk("--text", text, "--repeats", 1)
    assert told["machine"]["cores"] >= 1
    assert told["command"].startswith("python -m memo.evaluate.walk")
    results = told["results"]
    assert results["memorize"]["full_bytes"] > results["memorize"]["memory_bytes"] > 0
    assert set(results["question"]["answers"]) == {"memorag", "rag", "full_context", "closed_book"}
    long = walk("--long", text)["results"]["long"]
    assert long["slots"] < long["tokens"]
