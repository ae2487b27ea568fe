"""A small decoder taught by the language model itself, and decoders that start from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from memo import datastore, decoder, knn
from memo.cli import main
from memo.errors import SettingsError, WrongModel
from memo.knn_device import Matrix
from memo.models import fingerprint
from memo.train import decode, decode_router, decoder_card, distill, general
from memo.train.recipe import Distilling, General
from memo.train.texts import joined

TOKENIZER = tiny.tokenizer()
TEXT = joined([np.array(TOKENIZER.encode(tiny.TEXT * 8, add_special_tokens=False), dtype=np.uint32)])
PLAN = General(steps=30, batch=4, micro=2, learning_rate=3e-3, save_every=10, window=48, layers=1)


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


def accelerator():
    return Accelerator(mixed_precision="no", cpu=True)


@pytest.fixture(scope="module")
def made(llm, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("general"), []
    general.make(llm, TOKENIZER, TEXT, folder, PLAN, accelerator(), {"name": "all"}, lines.append)
    return folder, lines


def test_dense_kl_is_the_sum_over_the_vocabulary():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 40), torch.randn(5, 40)
    p, q = theirs.softmax(-1), ours.softmax(-1)
    assert torch.allclose(general.dense_kl(ours, theirs), (p * (p / q).log()).sum(-1), atol=1e-6)
    assert torch.allclose(general.dense_kl(theirs, theirs), torch.zeros(5), atol=1e-6)


def test_the_loss_in_parts_and_its_gradient(llm, monkeypatch):
    ids = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(1))
    found = []
    for size in (7, 1000):
        monkeypatch.setattr(distill, "PART", size)
        student, weights = decoder.student(llm, 2)
        loss = general.losses(student, llm, general.Windows(ids))["loss"]
        loss.sum().backward()
        found.append((loss.detach(), [one.grad for one in weights.parameters()]))
    with torch.no_grad():
        pair = (student(ids).logits.flatten(0, 1), llm(ids).logits.flatten(0, 1))
        assert torch.allclose(found[0][0], general.dense_kl(*pair).view(3, 20).mean(1), atol=1e-5)
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_it_comes_to_say_what_the_model_says(llm, made):
    folder, lines = made
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert decoder.about(folder)["tokens"] == 30 * 4 * 48
    loaded = decoder.load(folder, llm, TOKENIZER)
    assert decoder.shares(loaded, llm) and loaded.config.num_hidden_layers == 1


def test_a_text_that_fills_no_step_is_refused():
    with pytest.raises(SettingsError, match="whole windows"):
        general.groups(joined([TEXT.ids[:60]]), PLAN)


def test_a_student_starts_as_what_it_starts_from_and_leaves_that_alone(llm, made):
    before = fingerprint(llm)
    first = decoder.load(made[0], llm, TOKENIZER)
    held = {name: weight.clone() for name, weight in first.state_dict().items()}
    student, weights = decoder.student(llm, 2, first)  # two layers are asked for, the start has one
    ids = TEXT.piece(0, 30)[None]
    assert torch.allclose(student(ids).logits, first(ids).logits, atol=1e-5)
    assert student.get_output_embeddings() is llm.get_output_embeddings()
    assert all(one.dtype == torch.float32 and one.requires_grad for one in weights.parameters())
    with torch.no_grad():
        for one in weights.parameters():
            one.add_(1.0)
    assert all(torch.equal(weight, held[name]) for name, weight in first.state_dict().items())
    assert fingerprint(llm) == before


def test_a_decoder_from_a_start_says_so(llm, made, tmp_path):
    plan = Distilling(steps=2, batch=2, micro=2, layers=2, save_every=2)
    held = joined([TEXT.ids[:90], TEXT.ids[30:120]])
    learnt = joined([TEXT.ids[:300], TEXT.ids[100:400]])
    told = decode.make(llm, TOKENIZER, learnt, held, tmp_path / "d", plan, accelerator(), {}, start=str(made[0]))
    assert told["start"] == made[0].name
    assert decoder.load(tmp_path / "d", llm, TOKENIZER).config.num_hidden_layers == 1
    with pytest.raises(SettingsError, match="another run"):  # its run is one from that start
        decode.make(llm, TOKENIZER, learnt, held, tmp_path / "d", plan, accelerator(), {})


def test_a_start_of_another_model_is_refused(made, tmp_path):
    other = tiny.model("llama", seed=5)
    with pytest.raises(WrongModel):
        decode.make(other, TOKENIZER, TEXT, TEXT, tmp_path, replace(Distilling(), steps=1), accelerator(), {},
                    start=str(made[0]))  # fmt: skip


def test_all_keys_compared_in_parts_are_the_nearest(llm, tmp_path, monkeypatch):
    store = datastore.build(llm, TEXT, tmp_path, window=64, stride=32)
    keys = np.concatenate([store.keys(shard) for shard in range(store.shards)]).astype(np.float32)
    monkeypatch.setattr("memo.knn_device.SCORES", 7 * store.size)
    made = knn.Index(store, Matrix(store, torch.device("cpu")), "Flat", 1.0, 8, 0)
    mine, theirs = made.search(keys[:50], 8), knn.exact(store, keys[:50], 8)
    assert np.allclose(mine.distances, theirs.distances, atol=1e-2)
    own = np.arange(50)
    assert not (made.search(keys[:50], 8, own).entries == own[:, None]).any()


def test_from_the_command_line(made, tmp_path, monkeypatch, capsys):
    tiny.model("llama").save_pretrained(tmp_path / "llm")
    TOKENIZER.save_pretrained(tmp_path / "llm")
    (tmp_path / "text.txt").write_text(tiny.TEXT * 8)
    monkeypatch.setenv("MEMO_MEMORY_MODEL", str(tmp_path / "llm"))
    monkeypatch.setenv("MEMO_DEVICE", "cpu")
    monkeypatch.setenv("MEMO_DTYPE", "float32")
    sizes = ["--set", "steps=2", "--set", "batch=2", "--set", "micro=2", "--set", "layers=1"]
    start = str(tmp_path / "start")
    assert main(["decode-train", str(tmp_path / "text.txt"), "--general", "--set", "window=32", *sizes,
                 "--out", start, "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["tokens"] == 2 * 2 * 32
    assert main(["decode-train", str(tmp_path / "text.txt"), "--start", start, *sizes,
                 "--out", str(tmp_path / "made"), "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["start"] == "start"
    cards = [(tmp_path / name / "README.md").read_text() for name in ("start", "made")]
    assert "knows language in general" in cards[0] and "It starts from start." in cards[1]
    assert "held-out tokens" in cards[1] and str(tmp_path) not in "".join(cards)


def test_a_router_is_kept_if_it_is_better_than_a_fixed_alpha(llm, made, tmp_path):
    plan = Distilling(steps=2, batch=2, micro=2, layers=1, save_every=2)
    held = joined([TEXT.ids[:90], TEXT.ids[30:120], TEXT.ids[60:170], TEXT.ids[10:100]])
    folder = tmp_path / "d"
    decode.make(llm, TOKENIZER, joined([TEXT.ids[:300], TEXT.ids[100:400]]), held, folder, plan, accelerator(), {},
                start=str(made[0]))  # fmt: skip
    found = decode_router.make(llm, TOKENIZER, held, folder, 0, accelerator())
    assert decoder.about(folder)["routing"] == found
    router = decoder.load_router(folder, llm, decoder.load(folder, llm, TOKENIZER))
    assert (router is not None) == (found["router"] < found["fixed"])
    assert decode_router.make(llm, TOKENIZER, held, folder, 0, accelerator()) == found  # as after a kill
    with pytest.raises(SettingsError, match="Too little"):
        decode_router.make(llm, TOKENIZER, joined([TEXT.ids[:90]]), folder, 0, accelerator())


def test_a_card_names_licences_and_no_paths(tmp_path):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "META.json").write_text(json.dumps({"licence": "public domain", "source": "a court"}))
    found = decoder_card.sources([f"{tmp_path}/law:train@1000", "hub:owner/name", f"{tmp_path}/notes"])
    assert found == [{"name": "law:train@1000", "licence": "public domain", "source": "a court"}, {"name": "name"},
                     {"name": "notes"}]  # fmt: skip


def test_two_processes_make_the_decoder_that_one_makes(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path / "llm")
    TOKENIZER.save_pretrained(tmp_path / "llm")
    (tmp_path / "texts").mkdir()
    for number in range(45):  # a block each, so more than a shard
        start = 7 * number % 120
        (tmp_path / "texts" / f"{number:02}.txt").write_text(f"{number} {tiny.TEXT[start : start + 90]}")
    environment = os.environ | {
        "PYTHONPATH": str(Path(tiny.__file__).parents[1]), "OMP_NUM_THREADS": "1",
        "MEMO_MEMORY_MODEL": str(tmp_path / "llm"), "MEMO_DEVICE": "cpu", "MEMO_DTYPE": "float32",
    }  # fmt: skip
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    plan = [word for one in ("steps=4", "batch=4", "micro=2", "layers=1", "save_every=4") for word in ("--set", one)]
    for name, launch in (("one", []), ("two", both)):
        command = [sys.executable, *launch, "-m", "memo", "decode-train", str(tmp_path / "texts"), *plan]
        done = subprocess.run([*command, "--out", str(tmp_path / name)], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two" / "work" / "store").glob("keys-*"))) > 1
    one, two = (load_file(tmp_path / name / "decoder.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(tensor.float(), two[name].float(), atol=2e-3) for name, tensor in one.items())
    known = [decoder.about(tmp_path / name)["held_out_perplexity"]["llm"] for name in ("one", "two")]
    assert known[0] == pytest.approx(known[1], rel=1e-5)
