"""The command line of the measurements: `python -m memo evaluate qa | memory | clues | study | decoder |
downstream | speed | scaling | reliability | report`.

In: arguments. Out: rows on the terminal, JSON to `--out` (with the machine, the command, the commit and the date), and
beside it `<out>.rows.jsonl`: what is done already, so that a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from memo.errors import NothingToAsk, SettingsError
from memo.evaluate import reliability
from memo.evaluate.strategies import EVERY
from memo.settings import Settings, from_environment

RESULTS = Path("assets/results")
PAGE = Path("docs/scaling.md")  # whose tables are of scaling.json
GROWN = (  # of `scaling`: what grows, its sizes, what they are
    ("documents", "10,30,100,300", "short documents in a library"),
    ("lengths", "1024,4096,16384", "tokens of one document"),
    ("visitors", "1,2,4,8", "asking at once"),
    ("entries", "2500,5000,10000", "of a kNN datastore, about"),
    ("workers", "2", "of Ray; empty: without"),
)


def at_least(least: int, most: int = 0) -> Callable[[str], int]:
    """An argument that is a whole number from `least` to `most` (0: without end)."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}" + f" to {most}" * bool(most))
        return int(text)

    return number


def add_parsers(top: argparse.ArgumentParser) -> None:
    """The sub-commands and their arguments."""
    commands = top.add_subparsers(dest="measure", required=True, metavar="MEASURE")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if name != "report":
            sub.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the results go")
        if name in ("qa", "memory"):
            sub.add_argument("--seed", type=at_least(0), default=0, help="of everything drawn at random (default 0)")
            sub.add_argument("--limit", type=at_least(0), default=0, metavar="N",
                             help="this many questions (default 0: all) or texts (default 8) at most")  # fmt: skip
            sub.add_argument("--memory-weights", default="", metavar="PATH",
                             help='trained memory weights, or "untrained" (default MEMO_MEMORY_WEIGHTS)')  # fmt: skip
        return sub

    qa = command("qa", "measure answers and what they found, strategy by strategy")
    qa.add_argument("--data", required=True, metavar="DIR", help="a set (docs.jsonl, SPLIT.jsonl), or hub:OWNER/NAME")
    qa.add_argument("--split", required=True, metavar="NAME", help="which questions: the file SPLIT.jsonl")
    qa.add_argument("--strategies", default="", metavar="A,B,…", help=f"default all: {', '.join(EVERY)}")
    qa.add_argument("--context", choices=("question", "group", "corpus"), default="question",
                    help="what a library holds: a question's documents (default), an article's (the same `article`"
                    " or `title`), or the whole set's")  # fmt: skip
    qa.add_argument("--ratio", type=at_least(1, 64), default=0,
                    help="text tokens per memory token (default MEMO_RATIO, or 8)")  # fmt: skip
    qa.add_argument("--each", type=at_least(0), default=10, metavar="N",
                    help="questions of one library at most (default 10; 0: all)")  # fmt: skip
    qa.add_argument("--where", default="", metavar="FIELD=VALUE", help="only questions with that field")
    qa.add_argument("--answer-every", type=at_least(1), default=1, metavar="N",
                    help="answer every Nth question, measure retrieval on all (default 1)")  # fmt: skip
    qa.add_argument("--timed", type=at_least(0), default=3, metavar="N",
                    help="questions asked again, each strategy alone, for the seconds (default 3)")  # fmt: skip
    memory = command("memory", "measure what the memory keeps, against evicting entries of the cache")
    source = memory.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="a set's documents (docs.jsonl)")
    source.add_argument("--texts", type=Path, nargs="+", metavar="FILE")
    memory.add_argument("--split", default="", metavar="NAME", help="only documents of that split (default all)")
    memory.add_argument("--ratios", default="2,4,8,16,32,64", metavar="A,B,…")
    memory.add_argument("--windows", default="256,512,1024,2048", metavar="A,B,…")
    memory.add_argument("--lengths", default="1024,4096,7680,16384,65536", metavar="A,B,…", help="tokens of text")
    memory.add_argument("--documents", default="1,2,4,8,16", metavar="A,B,…", help="composed together")
    memory.add_argument("--lookup", type=at_least(256), default=2048, help="tokens that keys are hidden in (2048)")
    clues = command("clues", "measure what several memory weights recall for the same questions")
    clues.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="lessons")
    clues.add_argument("--weights", nargs="+", required=True, metavar="NAME=PATH",
                       help='memory weights and what to call them; PATH "untrained" for none')  # fmt: skip
    clues.add_argument("--limit", type=at_least(0), default=0, metavar="N",
                       help="lessons of a file at most (default 0: all)")  # fmt: skip
    study = command("study", "measure what studying a document harder gains a minute")
    study.add_argument("--texts", type=Path, nargs="+", required=True, metavar="FILE",
                       help="texts with NAME.questions.json beside them, as in assets/examples")  # fmt: skip
    study.add_argument("--steps", default="50,200", metavar="A,B,…", help="of studying (default 50,200)")
    decoder = command("decoder", "measure a Memory Decoder against RAG, a kNN-LM, DAPT and LoRA on the same texts")
    decoder.add_argument("--domain", required=True, metavar="NAME", help="what the texts are about, for people to read")
    for name, told in (("learn", "what all of them learn"), ("held-out", "what choices are made on"),
                       ("test", "what is predicted"), ("other", "what is predicted of other domains")):  # fmt: skip
        decoder.add_argument(f"--{name}", nargs="+", required=name != "other", default=[], metavar="SOURCE",
                             help=f"{told}; as memo decode-train takes it")  # fmt: skip
    decoder.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                         help="another number in the plan (Distilling in memo/train/recipe.py)")  # fmt: skip
    decoder.add_argument("--tokens-test", type=at_least(1), default=20_000, metavar="N",
                         help="tokens predicted of the test and of other texts, about (default 20000)")  # fmt: skip
    decoder.add_argument("--start", metavar="PATH", help="what decoders start from, as in memo decode-train")
    decoder.add_argument("--repeats", type=at_least(0), default=5,
                         help="rounds of timing that count (default 5); 0: time nothing, now")  # fmt: skip
    decoder.add_argument("--work", type=Path, required=True, metavar="DIR", help="for stores and what is trained")
    downstream = command("downstream", "measure facts and labels with a Memory Decoder mixed in")
    downstream.add_argument("--memory-decoder", required=True, metavar="PATH", help="a folder or a hub id")
    downstream.add_argument("--learnt", nargs="+", default=[], metavar="SOURCE",
                            help="texts that it learnt, as memo decode-train takes them: facts are asked")  # fmt: skip
    downstream.add_argument("--facts", type=at_least(1), default=200, metavar="N", help="how many (default 200)")
    downstream.add_argument("--data", metavar="DIR", help="questions whose answers are labels (see README, Measuring)")
    downstream.add_argument("--split", default="test", help="default test")
    downstream.add_argument("--labels", default="yes,no,maybe", metavar="A,B,…", help="default yes,no,maybe")
    downstream.add_argument("--limit", type=at_least(1), default=200, metavar="N", help="questions (default 200)")
    downstream.add_argument("--alphas", default="0.3", metavar="A,B,…",
                            help="to try beside 0, 1, the decoder's own and its router (default 0.3)")  # fmt: skip
    speed = command("speed", "measure speed, as ratios within one process")
    speed.add_argument("--text", type=Path, metavar="FILE", help="a long text (default: the examples)")
    speed.add_argument("--repeats", type=at_least(1), default=3, help="rounds that count (default 3)")
    speed.add_argument("--lengths", default="1024,2048,4096,8192", metavar="A,B,…", help="tokens, within the positions")
    speed.add_argument("--long-lengths", default="16384,32768,65536", metavar="A,B,…", help="tokens, beyond them")
    speed.add_argument("--exponent-lengths", default="2048,4096,8192,16384,32768,65536,131072", metavar="A,B,…",
                       help="tokens: how memorizing grows")  # fmt: skip
    speed.add_argument("--passages", default="1000,10000,100000", metavar="A,B,…", help="in a collection")
    speed.add_argument("--visitors", default="1,4,8", metavar="A,B,…", help="asking at once")
    grown = command("scaling", "measure how time and room grow with documents, tokens, visitors and workers")
    for name, default, told in GROWN:
        grown.add_argument(f"--{name}", default=default, metavar="A,B,…", help=f"{told} (default {default})")
    grown.add_argument("--files", type=at_least(1), default=24, help="that engines memorize (default 24)")
    grown.add_argument("--repeats", type=at_least(1), default=2, help="rounds, the least counts (default 2)")
    reliability.add_arguments(command("reliability", "break inputs, kill processes, send visitors"), at_least(0))
    report = command("report", "write RESULTS.md from the JSON files")
    report.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help=f"with qa/NAME.json, memory.json and the others (default {RESULTS})")  # fmt: skip


def several(chosen: argparse.Namespace, *names: str) -> dict[str, list[int]]:
    """Arguments like "4,8" as lists of numbers. Raises SettingsError."""
    found = {}
    for name in names:
        text = getattr(chosen, name)
        try:
            found[name] = [int(part) for part in text.split(",") if part.strip()]
        except ValueError:
            told = f"--{name.replace('_', '-')} is {text!r}."
            raise SettingsError(told, "It must be whole numbers with commas between.") from None
    return found


def rows_of(out: Path, about: dict[str, Any]) -> Any:
    """The rows beside `out`, for a run that is told apart by `about`."""
    from memo.evaluate.rows import Rows

    return Rows(out.with_suffix(".rows.jsonl"), about)


def settings_of(chosen: argparse.Namespace) -> Settings:
    settings = from_environment()
    if chosen.memory_weights:
        settings = replace(settings, memory_weights=chosen.memory_weights)
    if getattr(chosen, "ratio", 0):
        settings = replace(settings, ratio=chosen.ratio)
    return settings


def run_qa(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import data, hub, qa
    from memo.models import Models

    strategies = [name.strip() for name in chosen.strategies.split(",") if name.strip()] or list(EVERY)
    if unknown := [name for name in strategies if name not in EVERY]:
        raise SettingsError(f"No strategy is named {unknown[0]!r}.", f"Choose from: {', '.join(EVERY)}.")
    settings = settings_of(chosen)
    folder = hub.fetch(chosen.data, chosen.split, settings.cache) if hub.is_hub(chosen.data) else Path(chosen.data)
    field, equals, value = chosen.where.partition("=")
    if chosen.where and not equals:
        raise SettingsError(f"--where is {chosen.where!r}.", "It must be FIELD=VALUE.")
    where = (field, value) if equals else None
    questions = data.load(folder, chosen.split, chosen.context, chosen.limit, chosen.seed, chosen.each, where)
    if questions.skipped:
        tell(f"{questions.skipped} questions have no document in docs.jsonl and are left out.")
    models = Models(settings)
    about = {
        "measure": "qa", "set": questions.name, "split": questions.split, "context": chosen.context,
        "strategies": strategies, "models": models.names(), "sizes": qa.sizes(settings),
        "weights": models.memory_model().weights_fingerprint,
    }  # fmt: skip
    rows = rows_of(chosen.out, about)
    results = qa.evaluate(
        questions, models, settings, strategies, rows, chosen.answer_every, chosen.timed, chosen.seed, tell
    )
    show(results)
    return {"context": chosen.context} | results


def tell(line: object) -> None:
    """A line of progress or a row."""
    print(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False), flush=True)


def show(results: dict[str, Any]) -> None:
    """A table of the means, strategies down, metrics across."""
    columns = ("recall@1", "recall@3", "recall@5", "recall@10", "reciprocal_rank", "exact_match", "f1", "contains",
               "rouge_l", "cited", "supported", "answered_anyway", "prompt_tokens", "seconds")  # fmt: skip
    there = [c for c in columns if any(c in found for found in results["strategies"].values())]
    print(f"{'':20}" + "".join(f"{c[:10]:>11}" for c in there))
    for name, found in results["strategies"].items():
        print(f"{name:20}" + "".join(f"{found[c]['mean']:11.3f}" if c in found else f"{'':11}" for c in there))


def run_memory(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import data, memory
    from memo.models import Models

    if chosen.texts:
        texts = [(path.name, path.read_text(encoding="utf-8")) for path in chosen.texts]
    else:
        documents = data.lines(chosen.data, "docs")
        texts = [
            (line["doc_id"], line["text"]) for line in documents if chosen.split in ("", line.get("split"))
        ]  # fmt: skip
    if not texts:
        raise NothingToAsk("There is no text to measure on.", "Choose another split.")
    models = Models(settings_of(chosen))
    results = memory.evaluate(
        texts, models.memory_model(), **several(chosen, "ratios", "windows", "lengths", "documents"),
        lookup=chosen.lookup, seed=chosen.seed, limit=chosen.limit or None,
        rows=chosen.out.with_suffix(".rows.jsonl"), tell=tell,
    )  # fmt: skip
    names = models.names()
    results["what"]["models"] = {name: names[name] for name in ("memory", "memory_weights")}
    return results


def run_clues(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.attention import MemoryWeights
    from memo.evaluate import clues
    from memo.generate import LocalGenerator
    from memo.memory import MemoryModel
    from memo.models import UNTRAINED, Models
    from memo.train import lessons
    from memo.train.rewards import Judge

    named = [text.partition("=") for text in chosen.weights]
    if not all(map(all, named)):
        raise SettingsError("--weights must be NAME=PATH, each of them.")
    for names in ([name for name, _, _ in named], [path.stem for path in chosen.data]):
        if len(set(names)) < len(names):
            raise SettingsError("A name stands twice.", "Weights and files of lessons are told apart by their names.")
    settings = replace(from_environment(), memory_weights=UNTRAINED)
    models = Models(settings)
    plain = models.memory_model()
    readers = {
        name: MemoryModel(
            plain.model, plain.tokenizer,
            None if path == UNTRAINED else MemoryWeights.load(Path(path), plain.model),
        )
        for name, _, path in named
    }  # fmt: skip
    sets = {path.stem: lessons.load(path)[: chosen.limit or None] for path in chosen.data}
    judge = Judge(models.embedder(), LocalGenerator(plain, ""), settings)
    what = {
        "model": plain.fingerprint, "embedder": judge.embedder.name, "clue_weight": judge.clue_weight,
        "ratio": settings.ratio, "window": settings.window, "passage_tokens": settings.passage_tokens,
        "clue_tokens": settings.clue_tokens, "answer_tokens": settings.answer_tokens,
        "lessons": {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in chosen.data},
    }  # fmt: skip
    rows = rows_of(chosen.out, {"measure": "clues", **what})
    fingerprints = {name: reader.weights_fingerprint for name, reader in readers.items()}
    results = clues.evaluate(sets, readers, judge, settings, rows, tell)
    for name, found in results["weights"].items():
        tell({"weights": name} | {metric: value["mean"] for metric, value in found["all"].items()})
    return {"what": {**what, "weights": fingerprints}, **results}


def run_study(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import studying
    from memo.models import Models
    from memo.train.recipe import Studying, checked

    settings, plan = from_environment(), Studying()
    models = Models(settings)
    reader, names = models.memory_model(), models.names()
    what = {
        "plan": asdict(plan), "ratio": settings.ratio, "window": settings.window,
        "answer_tokens": settings.answer_tokens, "weights": reader.weights_fingerprint,
        "models": {name: names[name] for name in ("memory", "memory_weights")},
    }  # fmt: skip
    steps = [checked(replace(plan, steps=count)).steps for count in several(chosen, "steps")["steps"]]
    examples = [studying.load(path) for path in chosen.texts]
    rows = rows_of(chosen.out, {"measure": "study", **what})
    return {"what": what, "rows": studying.evaluate(examples, reader, settings, plan, steps, rows, tell)}


def run_decoder(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import decoder
    from memo.evaluate.adaptation import Rivals
    from memo.evaluate.decoder_bench import Bench, Text, about
    from memo.models import display_name, fingerprint
    from memo.train import decode, decode_cli
    from memo.train.cli import changed
    from memo.train.recipe import Distilling

    settings, plan, rivals = from_environment(), changed(Distilling(), chosen.changes), Rivals()
    start = decode_cli.chosen_start(chosen.start, settings)
    llm, tokenizer, accelerator = decode_cli.loaded(settings)
    sources = {"learn": chosen.learn, "held": chosen.held_out, "test": chosen.test, "other": chosen.other}
    tokens = {name: decode_cli.tokenized(some, tokenizer, settings, chosen.work)
              for name, some in sources.items() if some}  # fmt: skip
    most = {"held": decode.HELD_TOKENS, "test": chosen.tokens_test, "other": chosen.tokens_test}
    texts = {name: Text(tokens[name], decode.first_blocks(tokens[name], most[name])) for name in most if name in tokens}
    what = {"domain": chosen.domain, "model": display_name(settings.generator or settings.memory_model),
            "device": str(llm.device), "dtype": str(llm.dtype).removeprefix("torch.")}  # fmt: skip
    rows = rows_of(chosen.out, {
        "measure": "decoder", **what, "fingerprint": fingerprint(llm), "plan": asdict(plan), "rivals": asdict(rivals),
        "texts": {name: about(one) for name, one in tokens.items()}, "most": most, "start": Path(start).name,
    })  # fmt: skip
    bench = Bench(chosen.domain, llm, tokenizer, tokens["learn"], texts, plan, rivals, chosen.work, accelerator, rows,
                  tell, start)  # fmt: skip
    results = decoder.evaluate(bench, chosen.repeats)
    for row in results["test"]:
        tell({"way": row["way"], "perplexity": row["perplexity"]["mean"]})
    return {**results, "what": {**what, **results["what"]}}


def run_downstream(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo import decoder
    from memo.evaluate import data, downstream
    from memo.models import display_name
    from memo.train import decode_cli

    if not (chosen.learnt or chosen.data):
        raise SettingsError("There is nothing to ask.", "Name texts (--learnt), questions (--data), or both.")
    settings, name = from_environment(), chosen.memory_decoder
    try:
        alphas: dict[str, Any] = {alpha: float(alpha) for alpha in ("0", *chosen.alphas.split(","), "1")}
    except ValueError:
        raise SettingsError(f"--alphas is {chosen.alphas!r}.", "It must be numbers with commas between.") from None
    llm, tokenizer, _ = decode_cli.loaded(settings)
    loaded = decoder.load(name, llm, tokenizer)
    known, router = decoder.about(name), decoder.load_router(name, llm, loaded)
    alphas |= {f"{known['alpha']:g}": known["alpha"]} if known else {}
    alphas |= {"router": router} if router else {}
    some, questions = [], []
    if chosen.learnt:
        with tempfile.TemporaryDirectory() as folder:
            tokens = decode_cli.tokenized(chosen.learnt, tokenizer, settings, Path(folder))
            some = downstream.clozes(tokens, tokenizer, chosen.facts)
    if chosen.data:
        questions = data.load(Path(chosen.data), chosen.split, "question", chosen.limit, 0).questions
    mixed = decoder.Mixed(llm, loaded, 0.0)
    labels = [label.strip() for label in chosen.labels.split(",")]
    rows = downstream.evaluate(mixed, tokenizer, alphas, some, questions, labels, tell)
    what = {"decoder": display_name(name), "model": display_name(settings.generator or settings.memory_model),
            "facts": len(some), "questions": len(questions), "set": Path(chosen.data).name if chosen.data else "",
            "labels": labels, "dtype": str(llm.dtype).removeprefix("torch.")}  # fmt: skip
    return {"what": what, "rows": rows}


def run_speed(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import speed
    from memo.models import Models

    settings = from_environment()
    text = chosen.text.read_text(encoding="utf-8") if chosen.text else examples_text()
    with tempfile.TemporaryDirectory() as folder:
        return speed.evaluate(
            Models(settings), settings, Path(folder), text=text, repeats=chosen.repeats,
            **several(chosen, "lengths", "long_lengths", "exponent_lengths", "passages", "visitors"),
            rows=chosen.out.with_suffix(".rows.jsonl"), tell=tell,
        )  # fmt: skip


def run_scaling(chosen: argparse.Namespace) -> dict[str, Any]:
    from memo.evaluate import scaling
    from memo.models import Models

    settings, numbers = from_environment(), several(chosen, *(name for name, *_ in GROWN))
    rows = rows_of(chosen.out, {"measure": "scaling", "ratio": settings.ratio, "window": settings.window, **numbers,
                                "files": chosen.files, "repeats": chosen.repeats})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return scaling.evaluate(Models(settings), settings, Path(folder), examples_text(), **numbers, rows=rows,
                                files=chosen.files, repeats=chosen.repeats, tell=tell)  # fmt: skip


def examples_text() -> str:
    """The texts of the examples, one behind the other."""
    examples = sorted((Path(__file__).parents[2] / "assets" / "examples").glob("*.md"))
    return "\n\n".join(path.read_text(encoding="utf-8") for path in examples)


def check_out(out: Path) -> None:
    """Raises SettingsError if no results can be written there: better now than after hours."""
    if out.suffix != ".json" or out.is_dir():
        raise SettingsError(f"--out is {str(out)!r}.", "It must name a file that ends in .json.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise SettingsError(f"Nothing can be written to {out.parent}: {error.strerror}.") from None


def run(chosen: argparse.Namespace) -> int:
    """Runs a measurement and writes its file."""
    from memo.evaluate.record import write

    if chosen.measure == "report":
        from memo.evaluate.report import read, report
        from memo.evaluate.report_scaling import written
        from memo.models import write_atomic

        if not any(chosen.results.glob("**/*.json")):
            raise SettingsError(f"There are no results in {chosen.results}.", "It needs qa/NAME.json or others.")
        report(chosen.results, chosen.results / "RESULTS.md")
        print(f"Wrote {chosen.results / 'RESULTS.md'}.")
        grown = RESULTS / "scaling.json"
        if chosen.results == RESULTS and grown.exists() and PAGE.exists():
            write_atomic(PAGE, written(PAGE.read_text("utf-8"), read(grown, "scaling")["results"]))
            print(f"Wrote {PAGE}.")
        return 0
    check_out(chosen.out)
    measures = {"qa": run_qa, "memory": run_memory, "clues": run_clues, "study": run_study, "decoder": run_decoder,
                "downstream": run_downstream, "speed": run_speed, "scaling": run_scaling,
                "reliability": partial(reliability.run, tell=tell)}  # fmt: skip
    write(chosen.out, measures[chosen.measure](chosen), "memo")
    print(f"Wrote {chosen.out}.")
    return 0
