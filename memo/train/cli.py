"""The command line of training: `python -m memo train pretrain …`; on several GPUs `accelerate launch -m memo train …`,
on several CPUs `torchrun -m memo train …`.

In: arguments. Out: a folder with the trained weights, the log and checkpoints (see `loop`); progress on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import SettingsError
from memo.evaluate.cli import at_least
from memo.settings import Settings, from_environment
from memo.train.recipe import Plan, Pretraining, Tuning, checked

if TYPE_CHECKING:
    from memo.memory import MemoryModel


def add_parsers(top: argparse.ArgumentParser) -> None:
    """The stages and their arguments."""
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="weights, log and checkpoints")
        sub.add_argument("--start", type=Path, metavar="PATH", help="memory weights to go on from (default: untrained)")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                         help="another number in the plan of the stage (memo/train/recipe.py)")  # fmt: skip
        return sub

    pretrain = stage("pretrain", "teach the memory to keep what it reads")
    pretrain.add_argument("--data", nargs="+", required=True, metavar="SOURCE",
                          help="folders, text files or hub:OWNER/NAME, each [:SPLIT][@TOKENS]")  # fmt: skip
    made = commands.add_parser("lessons", help="make lessons for sft from a question set")
    made.add_argument("--data", type=Path, required=True, metavar="DIR", help="a set (docs.jsonl, SPLIT.jsonl)")
    made.add_argument("--split", required=True, metavar="NAME", help="which questions: the file SPLIT.jsonl")
    made.add_argument("--context", choices=("question", "group"), default="question", help="as of memo evaluate qa")
    made.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="questions at most (default 0: all)")
    made.add_argument("--most", type=at_least(64), default=2048, metavar="N", help="tokens of a lesson's documents")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    sft = stage("sft", "teach the memory to bring back clues")
    sft.add_argument("--data", nargs="+", required=True, metavar="FILE.jsonl", help="lessons")


def changed(plan: Plan, changes: Sequence[str]) -> Any:
    """The plan with other numbers: "steps=10", "ratios=4,8".

    Raises:
        SettingsError: no such number in the plan, or a value that is none.
    """
    known = {one.name: getattr(plan, one.name) for one in fields(plan)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise SettingsError(f"The plan has no {name!r}.", f"It has: {', '.join(known)}.")
        old = known[name]
        several = isinstance(old, tuple)
        kind = type(old[0] if several else old)
        try:
            values = [kind(part) for part in (text.split(",") if several else [text])]
        except ValueError:
            raise SettingsError(f"{change!r} gives {name} no value it can have.", f"It is {old!r} now.") from None
        known[name] = tuple(values) if several else values[0]
    return checked(replace(plan, **known))


def run(arguments: argparse.Namespace) -> int:
    """Runs one stage. Returns the exit status."""
    if arguments.stage == "lessons":
        return _lessons(arguments)
    stages = {"pretrain": (_pretrain, Pretraining()), "sft": (_sft, Tuning())}
    stage, plan = stages[arguments.stage]
    stage(from_environment(), changed(plan, arguments.changes), arguments)
    return 0


class Progress:
    """A bar with the loss and the tokens of text read a second; only the main process shows it."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.bar = plan, None

    def __call__(self, line: dict[str, Any]) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=self.plan.steps, unit="step", file=sys.stderr)
        self.bar.n = line["step"]
        speed = line["tokens"] / max(line["seconds"], 1e-9)
        named = {name: f"{line[name]:.3f}" for name in ("loss", "next", "repeat") if name in line}
        self.bar.set_postfix({**named, "tokens/s": f"{speed:.0f}"})


def _about(reader: MemoryModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint must agree with, beside the plan."""
    return {"model": reader.fingerprint, "start": str(arguments.start or ""), "data": list(arguments.data)}


def _pretrain(settings: Settings, plan: Pretraining, arguments: argparse.Namespace) -> None:
    from memo.train import loop, pretrain, setup, texts

    reader, accelerator = setup.reader(settings, arguments.start)
    sources = [texts.Source.parse(text) for text in arguments.data]
    with accelerator.main_process_first():
        key = hashlib.sha256(reader.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        tokens = texts.tokenize(sources, lambda text: reader.encode(text)[0], key, arguments.out.parent)
    groups = pretrain.groups(tokens, plan)
    loop.train(
        reader.weights, groups, partial(pretrain.losses, reader, plan=plan), plan, arguments.out,
        _about(reader, arguments), accelerator, Progress(plan),
    )  # fmt: skip


def _lessons(arguments: argparse.Namespace) -> int:
    from memo.evaluate import data
    from memo.models import load_language_model, untrusted
    from memo.train import lessons

    settings = from_environment()
    _, tokenizer = load_language_model(settings.memory_model, settings)
    engine = untrusted(tokenizer)
    found = data.load(arguments.data, arguments.split, arguments.context, arguments.limit, each=0)
    triples = {str(line["id"]): line["triples"] for line in data.lines(arguments.data, arguments.split)
               if line.get("triples")}  # fmt: skip

    def offsets(text: str) -> list[tuple[int, int]]:
        return engine.encode(text, add_special_tokens=False).offsets

    made = list(lessons.from_questions(found, offsets, arguments.most, triples))
    lessons.write(arguments.out, made)
    print(f"{len(made)} lessons with {sum(len(one.questions) for one in made)} questions: {arguments.out}")
    return 0


def _sft(settings: Settings, plan: Tuning, arguments: argparse.Namespace) -> None:
    from memo.train import lessons, loop, setup, sft

    known = [lesson for path in arguments.data for lesson in lessons.load(Path(path))]
    reader, accelerator = setup.reader(settings, arguments.start)
    loop.train(
        reader.weights, sft.groups(reader, known, plan), partial(sft.losses, reader, plan=plan), plan, arguments.out,
        _about(reader, arguments), accelerator, Progress(plan),
    )  # fmt: skip
