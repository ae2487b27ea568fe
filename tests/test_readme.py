"""The README does what it says: its commands and code blocks are executed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README + "\n" + DOCS, re.MULTILINE | re.DOTALL)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


@pytest.fixture
def place(tmp_path, tiny_folder):
    """A folder as the README's reader has it, and an environment with a tiny model."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    environment = os.environ | {
        "MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_ANSWER_TOKENS": "6", "MEMO_CLUE_TOKENS": "6",
        "MEMO_CONTEXT_TOKENS": "200", "MEMO_CACHE": str(tmp_path / "cache"), "MEMO_RATIO": "32",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    return tmp_path, environment


def test_the_first_lines_are_the_two_commands():
    body = README.split("---", 2)[2].strip()
    first = [line.split("#")[0].strip() for line in body.splitlines()[1:3]]
    assert body.startswith("```bash")
    assert first == ["make demo", "make test"]


def test_the_shell_commands_run(place):
    folder, environment = place
    shell = "".join(block for kind, block in BLOCKS if kind == "bash")
    commands = [line for line in shell.splitlines() if line.startswith("memo ")]
    assert {line.split()[1] for line in commands} == {"memorize", "documents", "ask", "compare", "forget", "models"}
    for command in commands:
        result = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_the_python_blocks_run(place, block):
    folder, environment = place
    command = [sys.executable, "-c", block]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_files_and_settings_that_the_readme_names_exist():
    from memo.settings import PRESETS, Settings

    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"`MEMO_([A-Z_]+)`", README):
        assert name == "PRESET" or hasattr(Settings(), name.lower()), name
    assert "gpu" in PRESETS


@pytest.mark.models
def test_make_demo_starts_the_app_and_prints_its_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    demo = subprocess.Popen(
        ["make", "demo", f"PORT={port}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        for line in demo.stdout:
            if address in line:
                break
        else:
            pytest.fail("the address was not printed")
        page, deadline = "", time.monotonic() + 120
        while not page and time.monotonic() < deadline:
            try:
                page = urllib.request.urlopen(address, timeout=10).read().decode()
            except OSError:
                time.sleep(0.2)
        assert "memo" in page
    finally:
        os.killpg(demo.pid, signal.SIGTERM)
        demo.wait(60)


def table_lines(page):
    return [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| ")]


def test_what_is_found_is_what_the_results_say():
    ways = {"words alone (BM25)": "bm25", "meaning alone (embeddings)": "dense", "plain RAG: both": "rag",
            "HyDE": "hyde", "RQ-RAG": "rq_rag", "RAG with names that lead on": "rag-names",
            "**memorag**": "memorag"}  # fmt: skip
    files = [ROOT / "assets" / "results" / "qa" / f"{name}.json" for name in ("hotpotqa", "2wiki", "musique")]
    results = [json.loads(file.read_text())["results"] for file in files]
    told = {line[0]: line[1:] for line in table_lines(README)}
    for name, way in ways.items():
        assert told[name] == [f"{one['strategies'][way]['recall@3']['mean']:.2f}" for one in results], name
    leads = [one["against_rag"]["memorag"]["recall@3"] for one in results]
    assert told["memorag less plain RAG"] == [
        f"{lead['mean']:+.2f} [{lead['low']:+.2f}, {lead['high']:+.2f}]".replace("-", "−") for lead in leads
    ]
    assert {one["questions"] for one in results} == {40}


def test_perplexities_are_those_of_the_results():
    ways = {"SmolLM2-135M-Instruct alone": "base", "RAG, a passage in the prompt": "rag", "DAPT, all weights": "dapt",
            "Memory Decoder, mixed at one alpha": "decoder_mixed", "Memory Decoder, mixed by its router": "router",
            "kNN-LM, its teacher: a search for every token": "knn_lm", "LoRA, as many weights": "lora"}  # fmt: skip
    files = ("law", "biomedicine", "finance", "wikitext2")
    results = [json.loads((ROOT / "assets" / "results" / "decoder" / f"{name}.json").read_text()) for name in files]
    means = [{row["way"]: row["perplexity"]["mean"] for row in one["results"]["test"]} for one in results]
    page = (ROOT / "docs" / "memory-decoder.md").read_text(encoding="utf-8")
    told = {line[0]: line[1:] for line in table_lines(page) if line[0] in ways}
    assert told == {name: [f"{one[way]:.2f}" for one in means] for name, way in ways.items()}


def test_both_languages_say_the_same_in_code_numbers_and_links():
    korean = (ROOT / "README.ko.md").read_text(encoding="utf-8")

    def code(page):
        blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        return [re.sub(r"#.*", "", block) for block in blocks]

    def links(page):
        return [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("README")]

    def figures(page):
        return [line[1:] for line in table_lines(page) if re.fullmatch(r"[−+]?0\.\d\d.*", line[-1])]

    assert code(korean) == code(README) and sorted(links(korean)) == sorted(links(README))
    assert figures(korean) == figures(README) != []
    assert len(re.findall(r"^## ", korean, re.MULTILINE)) == len(re.findall(r"^## ", README, re.MULTILINE))
