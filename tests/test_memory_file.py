"""Memory files: whole or refused by name, never half; the same logits after loading."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from memo import memory_file
from memo.attention import Row, run
from memo.errors import DamagedMemory, MemoryFileError, WrongModel
from memo.memory import Memory, read_all


@pytest.fixture(scope="module")
def reader():
    return tiny.memory_model()


@pytest.fixture(scope="module")
def memory(reader):
    return read_all(reader.memorize(tiny.TEXT, "mill", 4, 64, text_sha256="0" * 64))


@pytest.fixture
def path(memory, tmp_path):
    memory_file.save(memory, tmp_path / f"mill{memory_file.SUFFIX}")
    return tmp_path / f"mill{memory_file.SUFFIX}"


def rewritten(path, **changes):
    """The file with other metadata or tensors, otherwise valid."""
    with memory_file.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_memory_is_the_same_after_saving(tmp_path, dtype):
    reader = tiny.MemoryModel(tiny.model(dtype=dtype), tiny.tokenizer())
    memory = read_all(reader.memorize(tiny.TEXT, "mill", 4, 64, text_sha256="ab"))
    memory_file.save(memory, tmp_path / "file")
    loaded = memory_file.load(tmp_path / "file", reader)
    for field in dataclasses.fields(memory):
        before, after = getattr(memory, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after) and before.dtype == after.dtype
        else:
            assert before == after, field.name
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # and nothing temporary


def test_a_loaded_memory_gives_the_same_logits(reader, memory, path):
    ids = torch.tensor([reader.encode("Who bought it?")[0]])
    logits = []
    for one in (memory, memory_file.load(path, reader)):
        together = Memory(reader)
        together.add(one)
        with torch.no_grad():
            hidden = run(reader.model, reader.model.get_input_embeddings()(ids), [Row(together.compose().slots)])
            logits.append(reader.logits(hidden))
    assert torch.equal(*logits)


def test_any_flipped_byte_is_noticed(reader, path):
    """In the header, in the metadata, in every tensor."""
    whole = path.read_bytes()
    places = [0, 3, 9, 40, 200, 400, *range(700, len(whole), len(whole) // 40), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            loaded = memory_file.load(path, reader)
        except MemoryFileError as error:
            assert path.name in error.message
        else:
            pytest.fail(f"byte {place} of {len(whole)} was flipped: {loaded!r:.200}")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(reader, path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedMemory, match=path.name):
        memory_file.load(path, reader)


def test_what_is_no_memory_file_is_refused_by_name(reader, tmp_path):
    (tmp_path / "notes.txt").write_text("not a memory " * 100)
    with pytest.raises(DamagedMemory, match=r"notes\.txt"):
        memory_file.load(tmp_path / "notes.txt", reader)
    with pytest.raises(DamagedMemory, match="nothing"):
        memory_file.load(tmp_path / "nothing", reader)
    save_file({"keys": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedMemory, match=r"other\.safetensors"):
        memory_file.load(tmp_path / "other.safetensors", reader)


def test_another_version_is_refused_by_name(reader, path):
    rewritten(path, version="2")
    with pytest.raises(DamagedMemory, match=rf"{path.name} is of an unknown version"):
        memory_file.load(path, reader)


@pytest.mark.parametrize("change", [{"tokens": "many"}, {"ratio": "9"}, {"document": "other"}, {"model": "0" * 16}])
def test_altered_metadata_is_noticed(path, change):
    rewritten(path, **change)
    with pytest.raises(DamagedMemory, match=path.name):
        memory_file.load(path)


def test_another_model_is_refused_by_name(path):
    with pytest.raises(WrongModel, match=rf"{path.name}.*another language model"):
        memory_file.load(path, tiny.memory_model(seed=7))


def test_other_memory_weights_are_refused_by_name(reader, path):
    trained = tiny.MemoryModel(reader.model, reader.tokenizer, tiny.perturbed(reader.model))
    with pytest.raises(WrongModel, match=rf"{path.name}.*other memory weights"):
        memory_file.load(path, trained)


def test_a_failing_save_leaves_the_old_file_and_nothing_else(memory, path, monkeypatch):
    before = path.read_bytes()

    def fail(tensors, temporary, metadata):
        Path(temporary).write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(memory_file, "save_file", fail)
    with pytest.raises(OSError):
        memory_file.save(memory, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


KILLED = """
import os, sys
from pathlib import Path
from memo import memory_file
path = Path(sys.argv[1])
memory = memory_file.load(path)
def die(tensors, temporary, metadata):
    Path(temporary).write_bytes(path.read_bytes()[:5000])
    os.kill(os.getpid(), 9)
memory_file.save_file = die
memory_file.save(memory, path)
"""


def test_a_process_killed_while_saving_leaves_the_old_file(reader, memory, path):
    before = path.read_bytes()
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    memory_file.save(memory, path)  # and a new one can be saved in its place
    assert memory_file.load(path, reader).slots == memory.slots
