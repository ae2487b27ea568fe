"""The recipe: commands that the command line takes, each run once."""

import argparse

from memo.cli import main
from memo.train import cli
from memo.train.recipe import LESSONS, TEXTS, recipe


def parsed(data, out):
    parser = argparse.ArgumentParser()
    cli.add_parsers(parser)
    return [parser.parse_args(words) for words in recipe(data, out)]


def test_each_stage_goes_on_from_what_those_before_it_made():
    pretrain, *lessons, sft = parsed("my data", "my runs")
    assert pretrain.data == [f"my data/{text}" for text in TEXTS] and pretrain.start is None
    assert [str(one.data) for one in lessons] == [f"my data/{line.split()[0]}" for line in LESSONS]
    assert all("train" in one.split for one in lessons)
    assert sft.data == [str(one.out) for one in lessons]
    assert sft.start == pretrain.out / "weights.safetensors"


def test_stages_run_in_order_and_lessons_are_made_once(tmp_path, monkeypatch):
    ran = []

    def run(arguments):
        ran.append(arguments.stage)
        out = arguments.out if arguments.stage == "lessons" else arguments.out / "weights.safetensors"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()

    whole = cli.run
    monkeypatch.setattr(cli, "run", lambda arguments: whole(arguments) if arguments.stage == "all" else run(arguments))
    words = ["train", "all", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("memo.cli.training.run", cli.run)
    assert main(words) == 0
    assert ran == ["pretrain", *["lessons"] * len(LESSONS), "sft"]
    ran.clear()
    assert main(words) == 0 and ran == ["pretrain", "sft"]  # which look themselves whether they are finished
