"""Shipping: a chain of runs becomes a folder of small files that loads as the same weights, and a card."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator

from memo.attention import MemoryWeights
from memo.cli import main
from memo.errors import SettingsError
from memo.train import loop, ship
from memo.train.recipe import Plan
from memo.train.setup import trainable

PLAN = Plan(steps=3, batch=1, micro=1, learning_rate=0.01, save_every=2)


class One:
    tokens = 7

    def __len__(self):
        return 1


DATA = ["/home/my user/sets/books:train", "hub:org/name:train@900", "/a/it's/lessons.jsonl"]


def ran(folder, weights, start="", steps=3, until=None):
    """A run that pulls the vector towards 1."""

    def losses(_):
        return {"loss": ((weights.vector - 1) ** 2).sum()[None]}

    about = {"model": "m", "start": str(start), "data": DATA}
    plan = Plan(**vars(PLAN) | {"steps": steps})
    loop.train(weights, lambda step: [One()], losses, plan, folder, about, Accelerator(cpu=True), until=until)
    return folder


@pytest.fixture
def model():
    return tiny.model("llama")


def test_shards_load_as_the_weights_of_the_run(tmp_path, model, monkeypatch):
    monkeypatch.setattr(ship, "SHARD", "40KB")
    weights = trainable(MemoryWeights(model))
    ship.ship(ran(tmp_path / "run", weights), tmp_path / "out", "tiny", "Books.")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 60_000 for shard in shards)
    loaded = MemoryWeights.load(tmp_path / "out", model).state_dict()
    for name, tensor in weights.state_dict().items():
        assert torch.equal(loaded[name], tensor.to(torch.bfloat16).to(loaded[name].dtype))
    assert not torch.equal(loaded["vector"], MemoryWeights(model).vector)


def test_every_stage_of_the_chain_is_told(tmp_path, model):
    weights = trainable(MemoryWeights(model))
    first = ran(tmp_path / "pretrain", weights, steps=130)
    last = ran(tmp_path / "sft", weights, first / "weights.safetensors")
    ship.ship(last, tmp_path / "out", "tiny", "Books, public domain.", "| recovery | .9 |")
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [(one["stage"], one["tokens"]) for one in told] == [("pretrain", 910), ("sft", 21)]
    assert [one["start"] for one in told] == ["", "pretrain"]
    assert told[0]["data"] == ["books:train", "hub:org/name:train@900", "lessons.jsonl"]
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "out").glob("*.[jm][sd]*"))
    logged = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    points = told[0]["log"]
    assert len(points) <= ship.POINTS and points[-1]["step"] == 130
    assert points[0]["loss"] == pytest.approx(sum(line["loss"] for line in logged[:3]) / 3, abs=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| pretrain | 130 | 1 | 0.01 | 910 |" in card and "Books, public domain." in card and "recovery" in card
    assert "base_model: tiny\n" in card


def test_what_is_not_finished_is_not_shipped(tmp_path, model):
    weights = trainable(MemoryWeights(model))
    half = ran(tmp_path / "half", weights, until=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(SettingsError, match="not finished"):
        ship.ship(half, tmp_path / "out", "tiny", "")
    after = ran(tmp_path / "after", weights, half / "weights.safetensors")
    with pytest.raises(SettingsError, match="not finished"):
        ship.ship(after, tmp_path / "out", "tiny", "")
    with pytest.raises(SettingsError, match="not the folder of a run"):
        ship.ship(tmp_path, tmp_path / "out", "tiny", "")
    assert (tmp_path / "out" / "kept").exists()


def test_a_shipped_folder_is_replaced(tmp_path, model):
    weights = trainable(MemoryWeights(model))
    run = ran(tmp_path / "run", weights)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "memory-00009-of-00009.safetensors").write_bytes(b"old")
    ship.ship(run, tmp_path / "out", "tiny", "")
    assert MemoryWeights.load(tmp_path / "out", model) is not None


def test_the_licences_of_the_sets_are_told(tmp_path):
    for name in ("books", "squad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "META.json").write_text(json.dumps({"licence": f"of {name}", "source": "there"}))
    told = ship.licences([tmp_path / "books", tmp_path / "squad"])
    assert told == "* books: of books. Source: there\n* squad: of squad. Source: there"
    with pytest.raises(SettingsError, match="META"):
        ship.licences([tmp_path])


def test_the_command_ships_a_run(tmp_path, model, capsys):
    run = ran(tmp_path / "run", trainable(MemoryWeights(model)))
    (tmp_path / "META.json").write_text(json.dumps({"licence": "CC0", "source": "there"}))
    arguments = ["train", "ship", "--run", str(run), "--name", "tiny", "--sets", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"run: {tmp_path / 'out'}\n"
    assert "Not measured yet." in (tmp_path / "out" / "README.md").read_text()
    results = Path(__file__).parent.parent / "assets" / "results" / "memory.json"
    assert main([*arguments, "--results", str(results), "--out", str(tmp_path / "out")]) == 0
    assert "| ratio 8 |" in (tmp_path / "out" / "README.md").read_text()
    assert main([*arguments, "--results", str(tmp_path / "META.json"), "--out", str(tmp_path / "out")]) == 2
