"""The command line of training: `python -m memo train pretrain …`; on several GPUs `accelerate launch -m memo train …`,
on several CPUs `torchrun -m memo train …`.

In: arguments. Out: a folder with the trained weights, the log and checkpoints (see `loop`); progress on stderr.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import SettingsError
from memo.evaluate.cli import at_least
from memo.settings import Settings, from_environment
from memo.train.recipe import REWARDS, Plan, Pretraining, Rewarding, Tuning, checked, recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from memo.memory import MemoryModel
    from memo.train.texts import TokenFile


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
    written = commands.add_parser("synthesize", help="have a strong LLM write lessons for sft about your documents")
    written.add_argument("files", nargs="+", metavar="FILE", help="txt, md, html, pdf, docx, pptx or epub")
    written.add_argument("--questions", type=at_least(1), default=3, metavar="N",
                         help="to ask for, of each stretch (default 3)")  # fmt: skip
    written.add_argument("--most", type=at_least(64), default=768, metavar="N", help="tokens of a stretch at most")
    written.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    sft = stage("sft", "teach the memory to bring back clues")
    sft.add_argument("--data", nargs="+", required=True, metavar="FILE.jsonl", help="lessons")
    sft.add_argument("--texts", nargs="+", default=[], metavar="SOURCE",
                     help="as --data of pretrain: what a step also reads where the plan has a replay")  # fmt: skip
    pairs = commands.add_parser("pairs", help="sample clues and reward them, for rlgf")
    pairs.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="lessons")
    pairs.add_argument("--start", type=Path, metavar="PATH", help="memory weights that recall (default: untrained)")
    pairs.add_argument("--reward", choices=REWARDS, default="recall",
                       help="what makes clues good (see memo/train/rewards.py; default recall)")  # fmt: skip
    pairs.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="lessons at most (default 0: all)")
    pairs.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                       help="another number in the plan of rlgf (memo/train/recipe.py)")  # fmt: skip
    pairs.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    rlgf = stage("rlgf", "reward clues by what the generator makes of them")
    rlgf.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="pairs")
    every = commands.add_parser("all", help="run the recipe that made the shipped weights; what is finished is kept")
    every.add_argument("--data", required=True, metavar="DIR", help="the folder of all sets (see recipe.py)")
    every.add_argument("--out", required=True, metavar="DIR", help="lessons, and a folder for each stage")
    ship = commands.add_parser("ship", help="make a finished run's weights a folder to publish")
    ship.add_argument("--run", type=Path, required=True, metavar="DIR", help="the --out of the last stage")
    ship.add_argument("--name", required=True, metavar="MODEL", help="whose memory weights they are")
    ship.add_argument("--sets", type=Path, nargs="+", required=True, metavar="DIR",
                      help="what it was trained on; META.json tells the licence")  # fmt: skip
    ship.add_argument("--results", type=Path, metavar="FILE.json", help="of memo evaluate memory with these weights")
    ship.add_argument("--hardware", default="", metavar="TEXT", help="what it was trained on (default: this machine)")
    ship.add_argument("--out", type=Path, required=True, metavar="DIR")


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
    makers = {"all": _all, "lessons": _lessons, "synthesize": _synthesize, "pairs": _pairs, "ship": _ship}
    if arguments.stage in makers:
        return makers[arguments.stage](arguments)
    stages = {"pretrain": (_pretrain, Pretraining()), "sft": (_sft, Tuning()), "rlgf": (_rlgf, Rewarding())}
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


def _train(
    reader: MemoryModel, accelerator: Accelerator, groups: Callable[[int], list[Any]],
    losses: Callable[[Any], dict[str, Tensor]], plan: Plan, arguments: argparse.Namespace,
) -> None:  # fmt: skip
    """The loop, over what a stage has prepared."""
    from memo.train import loop

    data = list(map(str, arguments.data))
    about = {"model": reader.fingerprint, "start": str(arguments.start or ""), "data": data}
    loop.train(reader.weights, groups, losses, plan, arguments.out, about, accelerator, Progress(plan))


def _each(path: Path, about: dict[str, Any], items: Sequence[Any], make: Callable[[int, Any], list[Any]]) -> list[Any]:
    """The rows that `make` gives for each item, by its number; those that `path` holds are not made again."""
    from memo.evaluate.rows import Rows

    done = Rows(path, about)
    for number, item in enumerate(items):
        if str(number) not in done.done:
            done.add(str(number), make(number, item))
            print(f"\r{number + 1} of {len(items)}", end="", file=sys.stderr)
    return [row for unit in done.done.values() for row in unit]


def _tokens(reader: MemoryModel, accelerator: Accelerator, sources: Sequence[str], folder: Path) -> TokenFile:
    """The texts in tokens; read by one process, if there are several."""
    from memo.train import texts

    with accelerator.main_process_first():
        parsed = [texts.Source.parse(text) for text in sources]
        return texts.tokenize(parsed, lambda text: reader.encode(text)[0], texts.key_of(reader.tokenizer), folder)


def _pretrain(settings: Settings, plan: Pretraining, arguments: argparse.Namespace) -> None:
    from memo.train import pretrain, setup

    reader, accelerator = setup.reader(settings, arguments.start, plan.rank, recalls=True)
    tokens = _tokens(reader, accelerator, arguments.data, arguments.out.parent)
    losses = partial(pretrain.losses, reader, plan=plan)
    _train(reader, accelerator, pretrain.groups(tokens, plan), losses, plan, arguments)


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


def _synthesize(arguments: argparse.Namespace) -> int:
    """Goes on where it was when it was stopped: `<out>.rows.jsonl` holds what is written already."""
    from collections import Counter

    from memo.documents import read_document
    from memo.models import Models, untrusted
    from memo.passages import split
    from memo.train import lessons, synthesis

    settings = from_environment()
    documents = [read_document(path, **settings.file_limits) for path in arguments.files]
    models = Models(settings)
    generator, engine = models.generator(), untrusted(models.memory_model().tokenizer)
    stretches = [passage.text for document in documents for passage in split(document, engine, arguments.most)]
    about = {"documents": [d.id for d in documents], "llm": generator.name, "n": arguments.questions,
             "most": arguments.most}  # fmt: skip

    def write(_: int, stretch: str) -> list[Any]:
        made, thrown = synthesis.lesson(stretch, generator, arguments.questions)
        return [{"lesson": made and asdict(made), "thrown": thrown}]

    rows = _each(arguments.out.with_suffix(".rows.jsonl"), about, stretches, write)
    kept = [lessons.of(row["lesson"]) for row in rows if row["lesson"]]
    lessons.write(arguments.out, kept)
    thrown = sum((Counter(row["thrown"]) for row in rows), Counter())
    told = ", ".join(f"{count} {reason}" for reason, count in thrown.most_common()) or "nothing"
    print(f"{len(kept)} lessons with {sum(len(one.questions) for one in kept)} questions: {arguments.out}")
    print(f"Thrown away: {told}.")
    return 0


def _sft(settings: Settings, plan: Tuning, arguments: argparse.Namespace) -> None:
    from memo.train import lessons, packed, setup, sft

    if bool(plan.replay) != bool(arguments.texts):
        raise SettingsError("A replay needs texts, and texts a replay.", "Give both --texts and --set replay=N.")
    known = [lesson for path in arguments.data for lesson in lessons.load(Path(path))]
    reader, accelerator = setup.reader(settings, arguments.start, plan.rank, recalls=True)
    if plan.windows:
        groups, losses = packed.groups(reader, known, plan), partial(packed.losses, reader)
    else:
        groups, losses = sft.groups(reader, known, plan), partial(sft.losses, reader, plan=plan)
    if plan.replay:
        tokens = _tokens(reader, accelerator, arguments.texts, arguments.out.parent)
        groups, losses = packed.with_replay(reader, groups, losses, tokens, plan)
    _train(reader, accelerator, groups, losses, plan, arguments)


def _alone(stage: str) -> None:
    """Raises SettingsError in one of several processes: each would write the same file."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(f"{stage} runs in one process.", "Give the command without a launcher.")


def _pairs(arguments: argparse.Namespace) -> int:
    from memo.attention import MemoryWeights
    from memo.generate import LocalGenerator
    from memo.memory import MemoryModel
    from memo.models import Models
    from memo.train import lessons, rewards, rlgf

    _alone("pairs")
    settings, plan = from_environment(), changed(Rewarding(), arguments.changes)
    models = Models(settings)
    plain = models.memory_model()
    weights = MemoryWeights.load(arguments.start, plain.model) if arguments.start else None
    reader = MemoryModel(plain.model, plain.tokenizer, weights)
    judge = rewards.Judge(models.embedder(), LocalGenerator(plain, ""), settings, plan.clue_weight)
    known = [lesson for path in arguments.data for lesson in lessons.load(path)][: arguments.limit or None]
    drawn = ("window", "ratio", "most", "samples", "temperature", "clue_weight", "least_gain", "seed")
    about = {  # nothing of how it is trained on them
        "plan": {name: getattr(plan, name) for name in drawn}, "reward": arguments.reward, "model": reader.fingerprint,
        "weights": reader.weights_fingerprint, "embedder": judge.embedder.name,
        "settings": [settings.passage_tokens, settings.context_tokens, settings.answer_tokens],
        "lessons": [hashlib.sha256(path.read_bytes()).hexdigest() for path in arguments.data],
    }  # fmt: skip

    def sample(number: int, lesson: Any) -> list[Any]:
        return [asdict(pair) for pair in rlgf.pairs(reader, judge, lesson, plan, arguments.reward, number)]

    print(f"{len(_each(arguments.out, about, known, sample))} pairs: {arguments.out}")
    return 0


def _rlgf(settings: Settings, plan: Rewarding, arguments: argparse.Namespace) -> None:
    from memo.memory import MemoryModel
    from memo.train import rlgf, setup

    known = [pair for path in arguments.data for pair in rlgf.load(path)]
    reader, accelerator = setup.reader(settings, arguments.start, recalls=True)
    before = None
    if plan.dpo:
        before = MemoryModel(reader.model, reader.tokenizer, copy.deepcopy(reader.weights).requires_grad_(False))
    losses = partial(rlgf.losses, reader, plan=plan, before=before)
    _train(reader, accelerator, rlgf.groups(reader, known, plan), losses, plan, arguments)


def _all(arguments: argparse.Namespace) -> int:
    _alone("all")
    parser = argparse.ArgumentParser()
    add_parsers(parser)
    for words in recipe(arguments.data, arguments.out):
        command = parser.parse_args(words)
        if command.stage == "lessons" and command.out.exists():
            continue
        print(f"memo train {' '.join(words)}")
        run(command)  # a stage that is finished looks whether it is the same, and ends
    return 0


def _ship(arguments: argparse.Namespace) -> int:
    from memo.evaluate import report, report_tables
    from memo.train import ship

    results = "Not measured yet."
    if arguments.results:
        measured = report.read(arguments.results, "memory")["results"]
        results = "\n\n".join(report_tables.kept(measured)[1:])  # without its heading
    chain = ship.ship(arguments.run, arguments.out, arguments.name, ship.licences(arguments.sets), results,
                      arguments.hardware)  # fmt: skip
    print(f"{' → '.join(one['stage'] for one in chain)}: {arguments.out}")
    return 0
