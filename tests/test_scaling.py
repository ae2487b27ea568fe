"""Two workers make the library that one process makes; a library elsewhere comes back as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from safetensors import safe_open

from memo import remote
from memo.cli import main
from memo.errors import BackendError, DamagedMemory, NothingToAsk, SettingsError
from memo.evaluate.report_scaling import BEGIN, written
from memo.library import Library
from memo.pipeline import MemoRAG, finish

ROOT = Path(__file__).parent.parent
COUNT = 16

# --- Ray


@pytest.fixture(scope="module")
def memo(tiny_folder, tmp_path_factory):
    """A function that starts the command line with a tiny model in a process of its own."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "memo[scale]"')
    environment = os.environ | {
        "MEMO_MEMORY_MODEL": str(tiny_folder), "MEMO_MEMORY_DECODER": "none", "MEMO_DTYPE": "float32",
        "MEMO_DEVICE": "cpu", "MEMO_WINDOW": "64", "MEMO_RATIO": "4", "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1",  # as a worker has: more of them add float32 in another order
    }  # fmt: skip

    def start(*words):
        command = [sys.executable, "-m", "memo", *map(str, words)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Texts of several lengths, in two languages, and one that is damaged, one that is empty, one that is not there."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(COUNT):
        text = (tiny.KOREAN if number % 3 == 2 else tiny.TEXT) * (1 + number % 4)
        (folder / f"{number:02}.txt").write_text(f"Document {number}. {text}")
    (folder / "3.pdf").write_bytes(b"%PDF-1.7 and no more")
    (folder / "5.md").write_text("")
    return folder


def content(folder):
    """Of each document in a library, in their order: its name, the checksum of its memory, its passages, its files."""
    found = []
    for path in (folder / "documents").iterdir():
        about = json.loads((path / "document.json").read_text())
        with safe_open(path / "memory.safetensors", "pt") as file:
            checksum = file.metadata()["sha256"]
        entry = {name: value for name, value in about["entry"].items() if name not in ("seconds", "added")}
        found.append((about["entry"]["added"], entry, checksum, about["passages"], (path / "text.txt").read_bytes()))
    return [one[1:] for one in sorted(found, key=lambda one: one[0])]


def vectors(folder, models):
    with Library(folder, models.embedder) as library:
        return {d: library.index.vectors(library.passages(d)) for d in library.documents}, dict(library.words.sizes())


@pytest.fixture(scope="module")
def peace(memo, files, tmp_path_factory):
    """The library that one process makes of the good files."""
    folder = tmp_path_factory.mktemp("peace") / "library"
    process = memo("memorize", *sorted(files.glob("*.txt")), "--library", folder)
    assert process.communicate()[1] == "" and process.returncode == 0
    return folder


@pytest.mark.models
def test_two_workers_make_the_library_of_one_process(memo, files, peace, tmp_path, models):
    folder = tmp_path / "library"
    process = memo("memorize", files, files / "gone.txt", "--library", folder, "--engine", "ray", "--json")
    out, err = process.communicate()
    assert process.returncode == 2
    assert [line.split(":")[1].split()[0] for line in err.splitlines()] == ["3.pdf", "5.md", "gone.txt"]
    assert [one["name"] for one in json.loads(out)["documents"]] == [f"{n:02}.txt" for n in range(COUNT)]
    assert content(folder) == content(peace)
    assert vectors(folder, models) == vectors(peace, models)


@pytest.mark.models
def test_a_killed_run_goes_on_where_it_was(memo, files, peace, tmp_path, models):
    folder, words = tmp_path / "library", ("--library", tmp_path / "library", "--engine", "ray")
    process = memo("memorize", files, *words)
    while process.poll() is None and len(list((folder / "documents").glob("[0-9a-f]*"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Library(folder, models.embedder) as library:
        done = {entry.id: entry.added for entry in library.documents.values()}
    assert process.returncode == -signal.SIGKILL and 3 <= len(done) < COUNT
    process = memo("memorize", files, *words)
    assert process.communicate() and process.returncode == 2
    assert content(folder) == content(peace)
    assert vectors(folder, models) == vectors(peace, models)
    with Library(folder, models.embedder) as library:  # what was there was not made again
        assert done.items() <= {entry.id: entry.added for entry in library.documents.values()}.items()


def test_without_ray_it_says_how_to_get_it(monkeypatch, tiny_settings):
    from memo import scale

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"memo\[scale\]"), scale.pool(tiny_settings, 2):
        pass


# --- growth, measured


@pytest.fixture
def tiny_environment(tiny_folder, monkeypatch):
    """For `main`: a tiny model, and an embedder of word counts."""
    for name, value in {"MEMORY_MODEL": tiny_folder, "MEMORY_DECODER": "none", "DTYPE": "float32", "WINDOW": "64",
                        "DEVICE": "cpu"}.items():  # fmt: skip
        monkeypatch.setenv(f"MEMO_{name}", str(value))
    counting = tiny.Embedder()
    monkeypatch.setattr("memo.models.Models.embedder", lambda self: counting)


def test_growth_is_measured_and_reported(tmp_path, tiny_environment, capsys):
    out = tmp_path / "results" / "scaling.json"
    words = ["evaluate", "scaling", "--documents", "1,3", "--lengths", "64,128", "--visitors", "1,2", "--entries",
             "200,400", "--workers", "", "--files", "2", "--repeats", "1", "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    found = json.loads(out.read_text())["results"]
    assert [row["documents"] for row in found["documents"]] == [1, 3]
    assert [row["memory_bytes_ratio"] for row in found["documents"]] == [1, 3]  # of the same length
    assert [row["tokens_ratio"] for row in found["tokens"]] == [1, 2] == [row["bytes_ratio"] for row in found["tokens"]]
    assert [row["entries"] for row in found["store"]] == [199, 399]
    memory, slots = found["costs"]["bytes"]["memory"], 3 * 2 * 16 * 2 * 4  # layers, heads, size, K and V, float32
    assert memory == pytest.approx(1e6 / 8 * slots, rel=0.02)
    assert main(["evaluate", "report", "--results", str(out.parent)]) == 0
    told = (out.parent / "RESULTS.md").read_text()
    assert "## Growth" in told and "A billion tokens" in told and "documents of 128 tokens" in told
    assert main(words) == 0 and "Measuring" not in capsys.readouterr().out.split("Wrote")[-2]  # all is there


def test_the_numbers_of_the_page_are_those_of_the_results():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "assets" / "results" / "scaling.json").read_text())["results"]
    for name in ("growth", "million", "takes over", "billion"):
        assert BEGIN.format(name) in page
    assert written(page, results) == page and page.count("|") > 100
    assert all(row["same"] for row in results["engines"] if row["workers"])


# --- places elsewhere


@pytest.fixture(params=["memory", "file"])
def place(request, tmp_path):
    """An empty place that fsspec knows."""
    if request.param == "file":
        yield (tmp_path / "elsewhere").as_uri()
        return
    import fsspec

    yield "memory://elsewhere/library"
    store = fsspec.filesystem("memory")
    if store.exists("/elsewhere"):
        store.rm("/elsewhere", recursive=True)


def opened(place):
    """Its file system, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(place)


def put(rag, *documents):
    assert not [step.error for step in rag.memorize(documents) if step.error]


def test_a_library_comes_back_from_elsewhere_as_it_was(tiny_rag, tiny_models, tiny_settings, tmp_path, place):
    first, second = tiny.document(), tiny.document("Ünter.txt", tiny.KOREAN)
    put(tiny_rag, first, second)
    question = "Did a flood take the bridge?"
    answer = finish(tiny_rag.ask(question))["memorag"]
    assert remote.push(tiny_rag.library, place) == [first.id, second.id]
    assert remote.push(tiny_rag.library, place) == []  # it is there already
    embedded, encode = [], tiny_models.embedder().encode
    with Library(tmp_path / "there", tiny_models.embedder) as library:
        tiny_models.embedder().encode = lambda texts: embedded.extend(texts) or encode(texts)
        assert remote.pull(library, place) == [first.id, second.id] and not embedded
        assert remote.pull(library, place) == []
        assert library.documents == tiny_rag.library.documents
        again = finish(MemoRAG(library, tiny_models, tiny_settings).ask(question))["memorag"]
        assert (again.text, again.clues, again.passages) == (answer.text, answer.clues, answer.passages)
    assert content(tmp_path / "there") == content(tmp_path / "library")


def test_push_and_pull_from_the_command_line(tmp_path, tiny_environment, place, capsys):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.md", "deep/c.csv"):
        (tmp_path / "texts" / name).write_text(tiny.TEXT)
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    assert main(["memorize", str(tmp_path / "texts"), "--library", here]) == 0
    assert main(["push", place, "--library", here]) == 0
    assert main(["pull", place, "--library", there]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told[:2]] == ["a.txt", "b.md"]  # what cannot be read in a folder is left out
    assert told[2:] == ["2 documents are there, 2 of them were sent.", "2 documents are here, 2 of them came."]
    assert content(Path(here)) == content(Path(there))
    assert main(["push", place, "--library", str(tmp_path / "nothing")]) == 2
    assert main(["pull", f"{place}/nothing", "--library", there]) == 2
    assert "There is no library at that place." in capsys.readouterr().err


def test_what_changes_follows_and_what_was_before_goes(tiny_rag, tiny_models, tmp_path, place):
    first, second = tiny.document(), tiny.document("b.txt", tiny.KOREAN)
    put(tiny_rag, first, second)
    remote.push(tiny_rag.library, place)
    with Library(tmp_path / "there", tiny_models.embedder) as library:
        remote.pull(library, place)
        model = tiny_models.memory_model()
        assert library.memory(model)[first.id].ratio == 4
        assert not [s.error for s in tiny_rag.memorize([first], ratio=16) if s.error]
        tiny_rag.forget(second.id)
        assert remote.push(tiny_rag.library, place) == [first.id]
        store, root = opened(place)
        assert len(store.ls(f"{root}/documents")) == 1 and len(store.ls(root)) == 2
        assert remote.pull(library, place) == [first.id]
        assert library.memory(model)[first.id].ratio == 16
        assert set(library.documents) == {first.id, second.id}  # pulling takes nothing away


def test_a_push_that_is_cut_off_leaves_what_was_there(tiny_rag, tiny_models, tmp_path, place, monkeypatch):
    first, second = tiny.document(), tiny.document("b.txt", tiny.KOREAN)
    put(tiny_rag, first)
    remote.push(tiny_rag.library, place)
    put(tiny_rag, second)
    store, _ = opened(place)
    write, left = type(store).pipe_file, [2]

    def cut_off(self, path, data, **more):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the line is down")
        return write(self, path, data, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "pipe_file", cut_off)
        with pytest.raises(BackendError, match="the line is down"):
            remote.push(tiny_rag.library, place)
    with Library(tmp_path / "there", tiny_models.embedder) as library:
        assert remote.pull(library, place) == [first.id]
        assert remote.push(tiny_rag.library, place) == [second.id]
        assert remote.pull(library, place) == [second.id]


@pytest.mark.parametrize("name", [*remote.FILES, remote.VECTORS])
def test_a_file_that_was_altered_is_refused(tiny_rag, tiny_models, tmp_path, place, name):
    document = tiny.document()
    put(tiny_rag, document)
    remote.push(tiny_rag.library, place)
    store, root = opened(place)
    [path] = store.glob(f"{root}/documents/*/{name}")
    data = bytearray(store.cat_file(path))
    data[-1] ^= 1
    store.pipe_file(path, bytes(data))
    with Library(tmp_path / "there", tiny_models.embedder) as library:
        with pytest.raises(DamagedMemory, match="damaged at that place"):
            remote.pull(library, place)
        assert not library.documents and not list(library.folder.iterdir()) and not library.index.count()


@pytest.mark.parametrize("change", [
    lambda about: about | {"version": 2},
    lambda about: [],
    lambda about: about | {"documents": {"../../etc": next(iter(about["documents"].values()))}},
    lambda about: about | {"documents": {name: files | {"x": "0" * 64} for name, files in about["documents"].items()}},
    lambda about: about | {"documents": {name: {} for name in about["documents"]}},
])  # fmt: skip
def test_a_list_that_is_not_ours_is_refused(tiny_rag, tiny_models, tmp_path, place, change):
    put(tiny_rag, tiny.document())
    remote.push(tiny_rag.library, place)
    store, root = opened(place)
    about = json.loads(store.cat_file(f"{root}/library.json"))
    store.pipe_file(f"{root}/library.json", json.dumps(change(about)).encode())
    with Library(tmp_path / "there", tiny_models.embedder) as library, pytest.raises(DamagedMemory, match="no library"):
        remote.pull(library, place)
    with pytest.raises(DamagedMemory, match="no library"):  # nor is it overwritten
        remote.push(tiny_rag.library, place)


def test_vectors_of_another_embedder_are_not_taken(tiny_rag, tiny_models, tmp_path, place):
    document = tiny.document()
    put(tiny_rag, document)
    remote.push(tiny_rag.library, place)
    other, embedded = tiny.Embedder(), []
    other.name, encode = "another", other.encode
    other.encode = lambda texts: embedded.extend(texts) or encode(texts)
    with Library(tmp_path / "there", lambda: other) as library:
        remote.pull(library, place)
        assert embedded == [passage.text for passage in library.passages(document.id)]


def test_places_that_cannot_be_used_are_named(tiny_rag, tiny_models, place):
    with pytest.raises(NothingToAsk, match="no library"):
        remote.pull(tiny_rag.library, place)
    with pytest.raises(SettingsError, match="cannot be used"):
        remote.push(tiny_rag.library, "nonsense://x")
    with pytest.raises(BackendError, match="does not answer"):
        remote.push(tiny_rag.library, "file:///proc/nowhere")
