"""The library on disk: what comes back, who may open it, and what a process that was killed leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from memo.errors import DamagedMemory, LibraryBusy, MemoError, SettingsError, UnknownDocument, WrongModel
from memo.library import Library
from memo.pipeline import MemoRAG, Models, Stop, finish
from memo.search import Query

LONG = tiny.TEXT * 30  # more passages than are indexed at a time


def put(rag, *documents, **more):
    """Memorizes; every document must become ready."""
    states = list(rag.memorize(documents, **more))
    assert not [s.error for s in states if s.error], states
    return [rag.library.documents[document.id] for document in documents]


class Noting(tiny.Embedder):
    """Notes the texts it is given; fewer dimensions than that of the other tests."""

    def __init__(self, name=tiny.Embedder.name):
        super().__init__()
        self.name, self.texts = name, []

    def encode(self, texts):
        self.texts += texts
        vectors = super().encode(texts)
        return vectors if self.name == tiny.Embedder.name else [vector[:64] for vector in vectors]


def files(library):
    return sorted(str(p.relative_to(library.folder)) for p in library.folder.rglob("*") if p.is_file())


def whole(library):
    """Checks that every document is complete, and nothing else is there."""
    for name, entry in library.documents.items():
        passages = library.passages(name)
        assert len(library.text(name)) == entry.characters and passages
    assert files(library) == sorted(
        f"{d}/{f}" for d in library.documents for f in ("document.json", "memory.safetensors", "text.txt")
    )
    assert not [p for p in library.folder.iterdir() if p.name.startswith(".")]
    assert library.index.documents() == set(library.documents)
    assert library.index.count() == sum(len(library.passages(d)) for d in library.documents)
    assert library.words.sizes() == {d: len(library.passages(d)) for d in library.documents}


# --- what goes in comes out ------------------------------------------------------------------------------------------


def test_text_and_passages_come_back_exactly(tmp_path, tiny_rag, tiny_models):
    text = f"  {tiny.TEXT}\r\n\n{tiny.KOREAN}\t\U0001f600 끝.\n"
    document = tiny.document(text=text)
    [entry] = put(tiny_rag, document)
    passages = tiny_rag.library.passages(document.id)
    tiny_rag.library.close()
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        assert library.documents == {document.id: entry}
        assert library.text(document.id) == text and library.passages(document.id) == passages
        for passage in passages:
            assert library.text_of(document.id, passage.start, passage.end) == passage.text
        memory = library.memory(tiny_models.memory_model())[document.id]
        assert entry.tokens == len(text.encode()) and entry.slots == memory.slots
        whole(library)


def test_memories_come_back_bit_for_bit(tmp_path, tiny_rag, tiny_models):
    document = tiny.document()
    put(tiny_rag, document)
    model = tiny_models.memory_model()
    held = tiny_rag.library.memory(model)[document.id]
    tiny_rag.library.close()
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        loaded = library.memory(model)[document.id]
        assert loaded.keys.equal(held.keys) and loaded.values.equal(held.values) and loaded.spans.equal(held.spans)
        assert library.memory(model) is library.memory(model)


def test_a_search_finds_the_passage_that_shares_the_words(tiny_rag):
    document = tiny.document()
    put(tiny_rag, document)
    [[best, *_]] = tiny_rag.library.index.rank([Query("question", ("In which year did a flood take the bridge?",))])
    assert "flood" in tiny_rag.library.text_of(best["document"], best["start"], best["end"])


def test_the_same_document_twice_is_one(tiny_rag):
    document = tiny.document()
    put(tiny_rag, document)
    states = list(tiny_rag.memorize([document]))
    assert [s.state for s in states] == ["ready"] and len(tiny_rag.library.documents) == 1
    whole(tiny_rag.library)


def test_another_ratio_replaces_the_memory(tmp_path, tiny_rag, tiny_models):
    document, other = tiny.document(), tiny.document("b.txt", tiny.KOREAN)
    [before], [kept] = put(tiny_rag, document), put(tiny_rag, other)
    tiny_rag.library.memory(tiny_models.memory_model())
    [after] = put(tiny_rag, document, ratio=16)
    assert (before.ratio, after.ratio) == (4, 16) and after.slots < before.slots
    assert tiny_rag.library.memory(tiny_models.memory_model())[document.id].ratio == 16
    whole(tiny_rag.library)
    tiny_rag.library.close()
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        assert list(library.documents.items()) == [(document.id, after), (other.id, kept)]  # and the order is kept
        assert library.memory(tiny_models.memory_model())[document.id].slots == after.slots


def test_documents_are_forgotten_by_name_and_by_id(tmp_path, tiny_rag, tiny_models):
    a, b, c = (tiny.document(f"{name}.txt", f"{name} {tiny.TEXT}") for name in "abc")
    put(tiny_rag, a, b, c)
    tiny_rag.library.memory(tiny_models.memory_model())
    assert tiny_rag.forget("a.txt") == a.id and tiny_rag.forget(b.id) == b.id
    assert list(tiny_rag.library.documents) == [c.id]
    assert len(tiny_rag.library.memory(tiny_models.memory_model())) == 1
    whole(tiny_rag.library)
    assert [path.read_text() for path in tiny_rag.library.folder.rglob("*.txt")] == [c.text]
    with pytest.raises(UnknownDocument, match=r"a\.txt"):
        tiny_rag.forget("a.txt")


@pytest.mark.parametrize("half_gone", [False, True])
def test_forgetting_embeds_nothing_again(tmp_path, tiny_rag, half_gone):
    documents = [tiny.document(f"{name}.txt", f"{name} {tiny.TEXT}") for name in "abcd"]
    put(tiny_rag, *documents)
    tiny_rag.library.close()
    gone = tmp_path / "library" / "documents" / documents.pop().id
    if half_gone:  # a forgetting was interrupted: the passages are still there
        shutil.rmtree(gone)
    embedder = Noting()
    with Library(tmp_path / "library", lambda: embedder) as library:
        library.remove(documents.pop(1).id)
        assert list(library.documents)[:2] == [document.id for document in documents]
        whole(library)
    assert embedder.texts == []


def test_an_ambiguous_name_is_refused_with_the_ids(tiny_rag):
    documents = [tiny.document("a.txt", text) for text in (tiny.TEXT, tiny.KOREAN)]
    put(tiny_rag, *documents)
    with pytest.raises(UnknownDocument, match="Several") as failure:
        tiny_rag.forget("a.txt")
    assert all(document.id in failure.value.hint for document in documents)
    assert tiny_rag.forget(documents[0].id) == documents[0].id and tiny_rag.forget("a.txt") == documents[1].id


def test_documents_keep_the_order_they_were_added_in(tmp_path, tiny_rag, tiny_models):
    documents = [tiny.document(f"{name}.txt", f"{name} {tiny.TEXT}") for name in "zmab"]
    put(tiny_rag, *documents)
    tiny_rag.library.close()
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        assert list(library.documents) == [document.id for document in documents]
        assert library.memory(tiny_models.memory_model()).compose().documents == tuple(d.id for d in documents)


# --- stopping and failing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["indexing", "memorizing"])
@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_document_that_is_stopped_leaves_nothing(tiny_rag, state, how):
    kept = tiny.document("kept.txt", tiny.KOREAN)
    put(tiny_rag, kept)
    stop = Stop()
    steps = tiny_rag.memorize([tiny.document(text=LONG)], stop=stop)
    for progress in steps:
        if progress.state == state and progress.done:
            break
    if how == "stop":
        stop.all()
        [last] = steps
        assert last.state == "failed" and last.error.message == "Stopped."
    else:
        steps.close()
    assert list(tiny_rag.library.documents) == [kept.id]
    whole(tiny_rag.library)
    put(tiny_rag, tiny.document())  # and the next one is memorized as if nothing had been


def test_a_document_that_fails_leaves_nothing_and_the_others_go_on(tiny_rag, monkeypatch):
    model = tiny_rag.models.memory_model()
    memorize = model.memorize

    def failing(text, *rest, **more):
        steps = memorize(text, *rest, **more)
        yield next(steps)
        if text.startswith("bad"):
            raise MemoError("Too bad.")
        yield from steps

    monkeypatch.setattr(model, "memorize", failing)
    documents = [tiny.document(f"{name}.txt", f"{name} {tiny.TEXT}") for name in ("good", "bad", "fine")]
    states = list(tiny_rag.memorize(documents))
    assert [(s.name, s.error.message) for s in states if s.error] == [("bad.txt", "Too bad.")]
    assert [e.name for e in tiny_rag.library.documents.values()] == ["good.txt", "fine.txt"]
    whole(tiny_rag.library)


def test_remaking_that_is_stopped_keeps_the_document_as_it_was(tiny_rag):
    document = tiny.document()
    [before] = put(tiny_rag, document)
    steps = tiny_rag.memorize([document], ratio=2)
    while next(steps).state != "memorizing":
        pass
    steps.close()
    assert tiny_rag.library.documents[document.id] == before
    assert tiny_rag.library.memory(tiny_rag.models.memory_model())[document.id].ratio == 4
    whole(tiny_rag.library)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_library_is_open_once_at_a_time(tmp_path, tiny_models):
    with Library(tmp_path / "library", tiny_models.embedder):
        with pytest.raises(LibraryBusy):
            Library(tmp_path / "library", tiny_models.embedder)
        code = (
            "import sys; from pathlib import Path\n"
            "from memo.library import Library; from memo.errors import LibraryBusy\n"
            "try: Library(Path(sys.argv[1]), None)\nexcept LibraryBusy as e: print('busy', e.message)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "library")], capture_output=True, text=True, check=True
        )
        assert result.stdout.startswith("busy")
    Library(tmp_path / "library", tiny_models.embedder).close()


def test_a_lost_database_is_made_anew_from_the_documents(tmp_path, tiny_rag, tiny_models):
    put(tiny_rag, tiny.document(), tiny.document("b.txt", tiny.KOREAN))
    tiny_rag.library.close()
    shutil.copytree(tmp_path / "library", tmp_path / "moved", ignore=shutil.ignore_patterns("chroma"))
    with Library(tmp_path / "moved", tiny_models.embedder) as library:
        assert len(library.documents) == 2
        whole(library)
        [[best, *_]] = library.index.rank([Query("question", ("a flood took the bridge",))])
        assert "flood" in library.text_of(best["document"], best["start"], best["end"])


def test_passages_that_the_database_lost_or_made_up_are_put_right(tmp_path, tiny_rag, tiny_models):
    document, other = tiny.document(), tiny.document("b.txt", tiny.KOREAN)
    put(tiny_rag, document, other)
    index = tiny_rag.library.index
    index.remove(document.id)
    stranger = [p.__class__("stranger", p.start, p.end, p.page, p.text) for p in tiny_rag.library.passages(document.id)]
    index.add(stranger[:1])
    tiny_rag.library.close()
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        whole(library)


def test_another_embedder_embeds_every_document_anew_and_once(tmp_path, tiny_rag):
    documents = [tiny.document(), tiny.document("b.txt", tiny.KOREAN)]
    put(tiny_rag, *documents)
    tiny_rag.library.close()
    other = Noting("another")
    with Library(tmp_path / "library", lambda: other) as library:
        whole(library)
        assert sorted(other.texts) == sorted(p.text for d in documents for p in library.passages(d.id))
        [[best, *_]] = library.index.rank([Query("question", ("a flood took the bridge",))])
        assert "flood" in library.text_of(best["document"], best["start"], best["end"])
    other.texts.clear()
    with Library(tmp_path / "library", lambda: other) as library:
        whole(library)
    assert other.texts == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"version": 1}', b'{"version": 99}'])
def test_a_damaged_library_file_is_refused_and_can_be_made_anew(tmp_path, tiny_rag, tiny_models, content):
    put(tiny_rag, tiny.document())
    tiny_rag.library.close()
    path = tmp_path / "library" / "library.json"
    path.write_bytes(content)
    with pytest.raises(DamagedMemory, match=r"library\.json"):
        Library(tmp_path / "library", tiny_models.embedder)
    path.unlink()  # as the hint says
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        assert list(library.documents) == [tiny.document().id]
        whole(library)


def test_a_version_of_later_is_refused_and_left_as_it_is(tmp_path, tiny_models):
    Library(tmp_path / "library", tiny_models.embedder).close()
    path = tmp_path / "library" / "library.json"
    later = json.dumps(json.loads(path.read_text()) | {"version": 2})
    path.write_text(later)
    with pytest.raises(DamagedMemory):
        Library(tmp_path / "library", tiny_models.embedder)
    assert path.read_text() == later


def test_a_file_is_no_folder_for_a_library(tmp_path, tiny_models):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="file"):
        Library(tmp_path / "file", tiny_models.embedder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_text_that_was_altered_is_refused_with_the_documents_name(tmp_path, tiny_rag, tiny_models):
    document, model = tiny.document(), tiny_models.memory_model()
    put(tiny_rag, document)
    assert tiny_rag.library.load(document.id, model).slots
    path = tmp_path / "library" / "documents" / document.id / "text.txt"
    path.write_text(tiny.TEXT.replace("1887", "1888"))
    with pytest.raises(DamagedMemory, match=r"mill\.txt"):
        tiny_rag.library.load(document.id, model)


def test_a_damaged_memory_is_refused_with_the_documents_name(tmp_path, tiny_rag, tiny_models):
    document = tiny.document()
    put(tiny_rag, document)
    tiny_rag.library.close()
    path = tmp_path / "library" / "documents" / document.id / "memory.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        rag = MemoRAG(library, tiny_models, tiny_models.settings)
        with pytest.raises(DamagedMemory, match=r"mill\.txt"):
            library.memory(tiny_models.memory_model())
        assert finish(rag.ask("What froze?", "rag"))["rag"].passages  # what needs no memory still works
        put(rag, document)  # memorizing again mends it
        assert library.memory(tiny_models.memory_model())[document.id].slots
        whole(library)


def test_memories_of_another_model_are_refused_and_can_be_made_anew(tmp_path, tiny_rag, tiny_models, tiny_settings):
    document = tiny.document()
    put(tiny_rag, document)
    tiny_rag.library.close()
    other = Models(tiny_settings)
    other.__dict__["_embedder"] = tiny.Embedder()
    other.__dict__["_memory_model"] = tiny.memory_model(seed=8)
    with Library(tmp_path / "library", other.embedder) as library:
        with pytest.raises(WrongModel, match=r"mill\.txt"):
            library.memory(other.memory_model())
        put(MemoRAG(library, other, tiny_settings), document)
        assert library.memory(other.memory_model())[document.id].model == other.memory_model().fingerprint


def test_destroying_deletes_everything(tmp_path, tiny_rag):
    put(tiny_rag, tiny.document())
    client, name = tiny_rag.library.index.client, tiny_rag.library.collection
    tiny_rag.library.destroy()
    assert not (tmp_path / "library").exists()
    assert name not in [collection.name for collection in client.list_collections()]


def test_destroying_deletes_the_files_even_if_the_database_fails(tmp_path, tiny_rag, monkeypatch):
    put(tiny_rag, tiny.document())
    monkeypatch.setattr(tiny_rag.library.index, "drop", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_rag.library.destroy()
    assert not (tmp_path / "library").exists()


# --- killed ----------------------------------------------------------------------------------------------------------

# Waits at a wanted moment, with the work half done, to be killed with SIGKILL.
WORKER = """
import sys
from pathlib import Path
root, model, moment = sys.argv[1:]
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny
from test_library import LONG
import memo.library, memo.memory_file, shutil
from memo.library import Library
from memo.pipeline import MemoRAG, Models
from memo.settings import Settings

def wait(*_, **__):
    print("now", flush=True)
    sys.stdin.read()

models = Models(Settings(memory_model=model, dtype="float32", device="cpu", window=64, ratio=4, passage_tokens=60))
models.__dict__["_embedder"] = tiny.Embedder()
library = Library(Path(root), models.embedder)
rag = MemoRAG(library, models, models.settings)
list(rag.memorize([tiny.document("kept.txt", tiny.KOREAN), tiny.document("old.txt", tiny.TEXT)]))
if moment == "saving":  # all but the last file is written
    memo.library.write_atomic = wait
if moment == "in the database":  # the passages are in Chroma, the folder of the document is not yet real
    Path.rename = wait
if moment == "replacing":  # the new memory is there, what is known of the document is still the old
    Path.replace = lambda path, target, replace=Path.replace: (replace(path, target), wait())
if moment == "renamed":  # the document is on its way out, its passages are still there
    library.index.remove = wait
if moment == "cleaning":  # ... its passages are gone, its files are not
    shutil.rmtree = wait
if moment in ("renamed", "cleaning"):
    rag.forget("old.txt")
if moment == "replacing":
    list(rag.memorize([tiny.document("old.txt", tiny.TEXT)], ratio=16))
for progress in rag.memorize([tiny.document("new.txt", LONG)]):
    if progress.state == moment and progress.done:
        wait()
print("too late", flush=True)
"""


def killed(tmp_path, tiny_folder, moment):
    """Runs the worker and kills it at that moment. Returns the library's folder."""
    command = [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent))]
    worker = subprocess.Popen(
        [*command, str(tmp_path / "killed"), str(tiny_folder), moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert worker.stdout.readline().strip() == "now"
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
    assert worker.returncode == -signal.SIGKILL
    return tmp_path / "killed"


@pytest.mark.parametrize(
    "moment", ["indexing", "memorizing", "saving", "in the database", "replacing", "renamed", "cleaning"]
)
def test_after_a_kill_no_half_made_document_is_there_and_the_rest_is_whole(
    tmp_path, tiny_folder, tiny_models, moment
):
    root = killed(tmp_path, tiny_folder, moment)
    names = ["kept.txt"] if moment in ("renamed", "cleaning") else ["kept.txt", "old.txt"]
    model = tiny_models.memory_model()
    with Library(root, tiny_models.embedder) as library:
        assert [entry.name for entry in library.documents.values()] == names
        whole(library)
        memory = library.memory(model)
        for document, entry in library.documents.items():
            assert len(memory[document].spans) == memory[document].slots
            assert (memory[document].slots, memory[document].ratio) == (entry.slots, entry.ratio)
        rag = MemoRAG(library, tiny_models, tiny_models.settings)
        [hits] = library.index.rank([Query("question", ("the river and the mill",))])
        assert {hit["document"] for hit in hits} <= set(library.documents)
        put(rag, tiny.document("new.txt", LONG), tiny.document("old.txt", tiny.TEXT))  # what was broken off can be done
        assert sorted(entry.name for entry in library.documents.values()) == ["kept.txt", "new.txt", "old.txt"]
        whole(library)


def test_leftovers_are_cleared_even_if_the_first_opening_never_searched(tmp_path, tiny_folder, tiny_models):
    root = killed(tmp_path, tiny_folder, "indexing")
    Library(root, tiny_models.embedder).close()  # clears the files, and nobody asks anything
    with Library(root, tiny_models.embedder) as library:
        whole(library)
