"""The command line, as people and programs use it: real processes, a small local model, exit codes, JSON."""

import json
import os
import subprocess
import sys

import pytest
import tiny

CONTENT = "# Minutes\n\nThe orchard was planted in 1911 by Ida Quill.\n\nThe pump stands behind the old chapel.\n"


@pytest.fixture(scope="module")
def memo(tiny_folder, tmp_path_factory):
    """Runs `python -m memo` with a tiny model; returns (exit status, stdout, stderr)."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {
        "MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_CACHE": str(cache), "MEMO_ANSWER_TOKENS": "8",
        "MEMO_CLUE_TOKENS": "8", "MEMO_WINDOW": "64", "MEMO_CONTEXT_TOKENS": "150",
    }  # fmt: skip

    def run(*arguments, **more):
        result = subprocess.run(
            [sys.executable, "-m", "memo", *map(str, arguments)], capture_output=True, text=True,
            env=environment | more, timeout=300,
        )  # fmt: skip
        return result.returncode, result.stdout, result.stderr

    return run


@pytest.fixture(scope="module")
def library(memo, tmp_path_factory):
    """A library with one document, and what `memorize --json` said about it."""
    folder = tmp_path_factory.mktemp("library")
    file = folder / "minutes.md"
    file.write_text(CONTENT, encoding="utf-8")
    status, out, err = memo("memorize", file, "--library", folder / "lib", "--ratio", 4, "--json")
    assert (status, err) == (0, "")
    [document] = json.loads(out)["documents"]
    return folder / "lib", document


def test_help_names_every_command_and_loads_no_model(memo):
    status, out, _ = memo("--help")
    assert status == 0
    for command in ("serve", "memorize", "documents", "forget", "ask", "compare", "models"):
        assert command in out
    code = "import sys, memo.cli; memo.cli.parser(); print({'torch', 'gradio', 'chromadb', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_memorize_tells_what_it_made(library):
    _, document = library
    assert document["name"] == "minutes.md"
    assert document["ratio"] == 4
    assert document["slots"] < document["tokens"] <= 5 * document["slots"]
    assert document["full_bytes"] > document["bytes"] > 0
    assert set(document) == {"name", "id", "tokens", "slots", "ratio", "bytes", "full_bytes", "seconds"}


def test_documents_lists_what_memorize_made(memo, library):
    folder, document = library
    status, out, _ = memo("documents", "--library", folder, "--json")
    assert status == 0
    assert json.loads(out) == {"documents": [document]}
    status, out, _ = memo("documents", "--library", folder)
    assert status == 0
    assert document["id"] in out


def test_ask_prints_one_json_object_with_exact_offsets(memo, library):
    folder, document = library
    status, out, err = memo("ask", "Who planted the orchard?", "--library", folder, "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert set(answer) == {
        "question", "strategy", "answer", "clues", "passages", "citations", "timings", "prompt_tokens",
        "answer_tokens", "models", "notes",
    }  # fmt: skip
    assert answer["strategy"] == "memorag"
    assert answer["passages"]
    for passage in answer["passages"]:
        assert passage["document"] == document["id"]
        assert CONTENT[passage["start"] : passage["end"]] == passage["text"]
        assert passage["found_by"]
    for clue in answer["clues"]:
        assert set(clue) == {"text", "kind", "score", "sources"}
    assert answer["prompt_tokens"] > 0
    assert answer["timings"]["total"] > 0


def test_compare_answers_by_every_strategy(memo, library):
    folder, _ = library
    asked = ("compare", "Where is the pump?", "--library", folder, "--strategies")
    status, out, _ = memo(*asked, "rag,closed_book", "--json")
    told = json.loads(out)
    assert status == 0
    assert list(told["answers"]) == ["rag", "closed_book"]
    assert told["answers"]["closed_book"]["passages"] == []
    status, out, _ = memo(*asked, "rag")
    assert status == 0
    assert "[rag]" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "required"),
        (["fly"], "invalid choice"),
        (["ask", "  ", "--library", "LIBRARY"], "no question"),
        (["ask", "Why?", "--library", "NOWHERE"], "no library"),
        (["ask", "Why?", "--library", "LIBRARY", "--strategy", "magic"], "invalid choice"),
        (["compare", "Why?", "--library", "LIBRARY", "--strategies", "rag,magic"], "magic"),
        (["forget", "other.md", "--library", "LIBRARY"], "other.md"),
        (["memorize", "missing.md", "--library", "LIBRARY"], "missing.md"),
        (["memorize", "EMPTY", "--library", "LIBRARY"], "empty"),
        (["memorize", "GOOD", "EMPTY", "--library", "LIBRARY"], "empty"),
        (["memorize", "GOOD", "--library", "LIBRARY", "--ratio", "3"], "invalid choice"),
    ],
)
def test_wrong_use_and_bad_input_are_one_line_and_change_nothing(memo, library, tmp_path, arguments, said):
    folder, document = library
    (tmp_path / "empty.md").write_bytes(b"")
    (tmp_path / "good.md").write_text("A second document, about bees.")
    names = {name: tmp_path / f"{name.lower()}.md" for name in ("EMPTY", "GOOD")}
    names |= {"LIBRARY": folder, "NOWHERE": tmp_path / "none"}
    status, out, err = memo(*[names.get(argument, argument) for argument in arguments])
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert said.lower() in err.lower()
    assert not (tmp_path / "none").exists()
    assert json.loads(memo("documents", "--library", folder, "--json")[1]) == {"documents": [document]}


def test_the_ratio_of_the_environment_is_used_unless_one_is_given(memo, tmp_path):
    file = tmp_path / "bees.txt"
    file.write_text("Bees dance to tell where the flowers are. " * 5)
    for given, ratio in (((), 2), (("--ratio", 16), 16)):
        status, out, _ = memo("memorize", file, "--library", tmp_path / "lib", "--json", *given, MEMO_RATIO="2")
        assert status == 0 and [d["ratio"] for d in json.loads(out)["documents"]] == [ratio]


def test_a_file_too_long_for_the_model_stops_the_command_before_anything_is_changed(memo, tmp_path):
    small = {"MEMO_MEMORY_MODEL": str(tiny.save(tmp_path / "small", max_position_embeddings=256))}
    library = ("--library", tmp_path / "lib", "--json")
    texts = {"first": "The mill stood at the bend.", "good": "Bees dance.", "too_long": "x" * (64 * 192 + 1)}
    first, good, too_long = (tmp_path / f"{name}.txt" for name in texts)
    for path, text in zip((first, good, too_long), texts.values(), strict=True):
        path.write_text(text)
    status, out, _ = memo("memorize", first, *library, **small)
    assert status == 0
    status, nothing, err = memo("memorize", good, too_long, *library, **small)
    assert (status, nothing, err.count("\n")) == (2, "", 1), err
    assert "12,289 tokens" in err
    assert json.loads(memo("documents", *library, **small)[1]) == json.loads(out)


@pytest.mark.parametrize("command", [("memorize", "GOOD"), ("documents",), ("ask", "Why?")])
def test_a_file_in_place_of_the_librarys_folder_is_one_line(memo, tmp_path, command):
    file, good = tmp_path / "file", tmp_path / "good.txt"
    file.write_text("mine")
    good.write_text("Bees dance.")
    status, out, err = memo(*(good if word == "GOOD" else word for word in command), "--library", file)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert str(file) in err and file.read_text() == "mine"


def test_a_setting_that_cannot_be_read_is_named(memo, library):
    status, _, err = memo("documents", "--library", library[0], MEMO_WINDOW="wide")
    assert status == 2
    assert "MEMO_WINDOW" in err


def test_forget_deletes_text_memory_and_passages(memo, tmp_path):
    file = tmp_path / "bees.txt"
    file.write_text("Bees dance to tell where the flowers are.")
    memo("memorize", file, "--library", tmp_path / "lib", "--json")
    status, out, _ = memo("forget", "bees.txt", "--library", tmp_path / "lib", "--json")
    assert status == 0
    assert json.loads(out)["forgotten"]["name"] == "bees.txt"
    assert list((tmp_path / "lib" / "documents").iterdir()) == []
    status, _, err = memo("ask", "How do bees tell?", "--library", tmp_path / "lib")
    assert status == 2
    assert "no document" in err


def test_study_trains_the_memory_of_a_document(memo, tmp_path):
    file, library = tmp_path / "bees.txt", tmp_path / "lib"
    file.write_text("Bees dance to tell where the flowers are. " * 4)
    memo("memorize", file, "--library", library, "--json")
    [memory] = library.glob("documents/*/memory.safetensors")
    before = memory.read_bytes()
    changes = ("steps=2", "part=64", "span=16", "asked=8", "answered=8")
    small = [word for change in changes for word in ("--set", change)]
    status, out, _ = memo("study", "bees.txt", "--library", library, "--json", *small)
    assert status == 0 and json.loads(out)["studied"] | {"id": ""} == {"id": "", "name": "bees.txt", "steps": 2}
    assert memory.read_bytes() != before
    status, _, err = memo("study", "bees.txt", "--library", library, "--set", "pace=2")
    assert status == 2 and "pace" in err


def test_models_tells_what_is_used(memo, tiny_folder):
    told = json.loads(memo("models", "--json")[1])
    assert told["memory_model"] == tiny_folder.name
    assert told["memory_weights"] == "untrained"
