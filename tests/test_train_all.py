"""The recipe: commands that the command line takes, each run once."""

import argparse

from memo.cli import main
from memo.train import cli
from memo.train.recipe import LESSONS, PAIRED, TEXTS, recipe

STAGES = ["pretrain", *["lessons"] * len(LESSONS), "sft", *["pairs"] * len(PAIRED), "rlgf"]


def parsed(data, out):
    parser = argparse.ArgumentParser()
    cli.add_parsers(parser)
    return [parser.parse_args(words) for words in recipe(data, out)]


def test_each_stage_goes_on_from_what_those_before_it_made():
    every = parsed("my data", "my runs")
    pretrain, sft, rlgf = (next(one for one in every if one.stage == stage) for stage in ("pretrain", "sft", "rlgf"))
    lessons, pairs = ([one for one in every if one.stage == stage] for stage in ("lessons", "pairs"))
    assert [one.stage for one in every] == STAGES
    assert pretrain.data == [f"my data/{text}" for text in TEXTS] and pretrain.start is None
    assert [str(one.data) for one in lessons] == [f"my data/{line.split()[0]}" for line in LESSONS]
    assert all("train" in one.split for one in lessons)
    assert sft.data == [str(one.out) for one in lessons]
    assert sft.start == pretrain.out / "weights.safetensors"
    assert {path for one in pairs for path in one.data} <= {one.out for one in lessons}
    assert rlgf.data == [one.out for one in pairs]
    assert {one.start for one in (*pairs, rlgf)} == {sft.out / "weights.safetensors"}


def test_stages_run_in_order_and_lessons_are_made_once(tmp_path, monkeypatch):
    ran = []

    def run(arguments):
        ran.append(arguments.stage)
        out = arguments.out if arguments.stage in ("lessons", "pairs") else arguments.out / "weights.safetensors"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()

    whole = cli.run
    monkeypatch.setattr(cli, "run", lambda arguments: whole(arguments) if arguments.stage == "all" else run(arguments))
    words = ["train", "all", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("memo.cli.training.run", cli.run)
    assert main(words) == 0
    assert ran == STAGES
    ran.clear()
    assert main(words) == 0 and ran == [one for one in STAGES if one != "lessons"]  # the others look themselves
