"""The command line: `python -m memo …`, also installed as `memo`.

In: arguments. Out: text for people on a terminal, or with `--json` one JSON object on stdout and nothing else there.
Progress goes to stderr. Wrong use and bad input: one line on stderr, exit status 2, nothing changed. Models and their
libraries are only imported by the commands that need them, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo import __version__
from memo.answers import DEFAULT_COMPARISON, STRATEGIES
from memo.errors import MemoError, NothingToAsk, SettingsError
from memo.evaluate import cli as evaluation
from memo.models import NONE
from memo.settings import Settings, from_environment, share
from memo.train import cli as training
from memo.train import decode_cli

if TYPE_CHECKING:
    from memo.events import Answer, DocumentProgress, Event
    from memo.library import Entry
    from memo.pipeline import MemoRAG


class Parser(argparse.ArgumentParser):
    """Wrong use ends in one line, not in a page of usage."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = Parser(prog="memo", description="A model that has read your documents before you ask.")
    top.add_argument("--version", action="version", version=f"memo {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, library: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if library:
            sub.add_argument("--library", type=Path, required=True, metavar="DIR", help="folder of the library")
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout, nothing else")
        return sub

    serve = commands.add_parser("serve", help="start the app", description="Start the app in a browser.")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (default 7860)")
    memorize = command("memorize", "read documents into a library")
    memorize.add_argument("files", nargs="+", metavar="FILE",
                          help="txt, md, html, pdf, docx, pptx or epub; a folder: all of those below it")  # fmt: skip
    memorize.add_argument("--engine", choices=("here", "ray"), default="here",
                          help="here: this process (default); ray: workers that hold the models each")  # fmt: skip
    memorize.add_argument("--workers", type=evaluation.at_least(1), default=2, metavar="N", help="of Ray (default 2)")
    memorize.add_argument("--ratio", type=int, choices=(1, 2, 4, 8, 16, 32, 64), metavar="N",
                          help="text tokens per memory token, 1 to 64 (default MEMO_RATIO, or 8)")  # fmt: skip
    for name, told in (("push", "put a library at a place elsewhere, instead of what is there"),
                       ("pull", "put the documents of a library elsewhere into one here")):  # fmt: skip
        command(name, told).add_argument("url", metavar="URL", help="a folder, s3://…, or any other that fsspec knows")
    command("documents", "list the documents of a library")
    forget = command("forget", "delete a document: its text, memory and passages")
    forget.add_argument("document", metavar="DOC", help="its name or id")
    study = command("study", "train the memory of a document on its text, so that it keeps more of it")
    study.add_argument("document", metavar="DOC", help="its name or id")
    study.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                       help="another number in the plan (memo/train/recipe.py), such as steps=100")  # fmt: skip
    ask = command("ask", "answer a question")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--strategy", default="memorag", choices=list(STRATEGIES), help="default memorag")
    compare = command("compare", "answer a question by several strategies at once")
    compare.add_argument("question", metavar="QUESTION")
    compare.add_argument("--strategies", default=",".join(DEFAULT_COMPARISON), metavar="A,B,…",
                         help=f"of {', '.join(STRATEGIES)} (default {','.join(DEFAULT_COMPARISON)})")  # fmt: skip
    for sub in (ask, compare):
        sub.add_argument("--memory-decoder", default="", metavar="PATH",
                         help="a Memory Decoder, folder or hub id, to mix into the answers")  # fmt: skip
        sub.add_argument("--alpha", metavar="SHARE", help="its share, 0 to 1 (default: by its router for every"
                         " token, where it has one, else what its file says)")  # fmt: skip
    command("models", "tell which models are used", library=False)
    told = "measure answers, memory and speed"
    evaluation.add_parsers(commands.add_parser("evaluate", help=told, description=told.capitalize() + "."))
    decode_cli.add_parser(commands)
    told = "train the memory"
    training.add_parsers(commands.add_parser("train", help=told, description=told.capitalize() + "."))
    return top


# --- what is printed -------------------------------------------------------------------------------------------------


def entry_json(entry: Entry) -> dict[str, Any]:
    """A document of a library, as JSON. bytes: of its memory; full_bytes: of a plain KV cache of the same text."""
    return {
        "name": entry.name, "id": entry.id, "tokens": entry.tokens, "slots": entry.slots, "ratio": entry.ratio,
        "bytes": entry.bytes, "full_bytes": entry.full_bytes, "seconds": entry.seconds,
    }  # fmt: skip


def answer_json(answer: Answer) -> dict[str, Any]:
    """An answer, as JSON. Offsets of citations are characters of the answer, all others characters of the document."""
    return {
        "question": answer.question,
        "strategy": answer.strategy,
        "answer": answer.text,
        "clues": [
            {
                "text": clue.text, "kind": clue.kind, "score": round(clue.score, 4),
                "sources": [{"document": s.document, "start": s.start, "end": s.end} for s in clue.sources],
            }
            for clue in answer.clues
        ],
        "passages": [
            {
                "document": p.document, "start": p.start, "end": p.end, "page": p.page, "text": p.text,
                "score": p.score, "found_by": list(p.found_by),
            }
            for p in answer.passages
        ],
        "citations": [
            {
                "start": c.start, "end": c.end, "passage": c.passage,
                "source": {"document": c.source.document, "start": c.source.start, "end": c.source.end},
            }
            for c in answer.citations
        ],
        "timings": answer.timings,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
        "models": answer.models,
        "notes": list(answer.notes),
    }  # fmt: skip


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def print_answer(answer: Answer, names: dict[str, str]) -> None:
    """An answer for reading: clues, the answer with its citations numbered, the cited passages."""
    print(f"\n[{answer.strategy}]")
    for clue in answer.clues:
        score = "" if clue.kind == "name" else f", {clue.score:.2f}"
        print(f"  clue ({clue.kind}{score}): {clue.text}")
    text, number = "", 0
    position = 0
    for number, citation in enumerate(answer.citations, start=1):
        text += f"{answer.text[position : citation.end]} [{number}]"
        position = citation.end
    print(f"{text}{answer.text[position:]}" or "(no answer)")
    for number, citation in enumerate(answer.citations, start=1):
        passage, source = answer.passages[citation.passage], citation.source
        page = f", page {passage.page}" if passage.page else ""
        span = textwrap.shorten(passage.text[source.start - passage.start : source.end - passage.start], 300)
        print(f"  [{number}] {names.get(passage.document, passage.document)}{page}: “{span}”")
    for note in answer.notes:
        print(f"  note: {note}")
    print(f"  {answer.timings['total']:.1f} s, {answer.prompt_tokens} tokens read, {answer.answer_tokens} written")


def tell(progress: DocumentProgress, bars: dict[str, Any]) -> None:
    """A progress bar per document on stderr, when that is a terminal."""
    from tqdm import tqdm

    if progress.state in ("memorizing", "studying"):
        if progress.name not in bars:
            unit = "tok" if progress.state == "memorizing" else "step"
            bars[progress.name] = tqdm(total=progress.total, desc=progress.name[:40], unit=unit, file=sys.stderr)
        bars[progress.name].update(progress.done - bars[progress.name].n)
    elif progress.state in ("ready", "failed") and progress.name in bars:
        bars.pop(progress.name).close()


# --- the commands ----------------------------------------------------------------------------------------------------


def existing(folder: Path) -> Path:
    """A folder that holds a library. Raises NothingToAsk if it does not."""
    if not (folder / "library.json").exists():
        raise NothingToAsk(f"There is no library in {folder}.", "Make one with: memo memorize FILE --library DIR")
    return folder


def run_memorize(arguments: argparse.Namespace) -> int:
    from memo import scale
    from memo.documents import files_of

    settings, files = from_environment(), files_of(arguments.files)
    ratio, workers = arguments.ratio or settings.ratio, arguments.workers if arguments.engine == "ray" else 0
    ready, failed, bars = [], [], {}
    with scale.memorizing(arguments.library, files, settings, ratio, workers) as (rag, steps):
        for progress in steps:
            if not arguments.json and sys.stderr.isatty():
                tell(progress, bars)
            if progress.state == "ready":
                ready.append(rag.library.documents[progress.document])
                if not arguments.json:
                    print(describe(ready[-1], ratio))
            elif progress.state == "failed":
                failed.append(f"{progress.name}: {progress.error}")
    if arguments.json and (ready or not failed):
        print_json({"documents": [entry_json(entry) for entry in ready]})
    for line in failed:
        print(f"memo: {line}", file=sys.stderr)
    return 2 if failed else 0


def describe(entry: Entry, wanted: int) -> str:
    """One line about a memorized document."""
    raised = f" (not {wanted}: the text is too long for that)" if entry.ratio > wanted else ""
    return (
        f"{entry.name}: {entry.tokens:,} tokens in {entry.slots:,} slots at ratio {entry.ratio}{raised}, "
        f"{entry.bytes / 1e6:.1f} MB instead of {entry.full_bytes / 1e6:.1f} MB, {entry.seconds:.1f} s"
    )


def run_push_or_pull(arguments: argparse.Namespace) -> int:
    from memo import remote
    from memo.pipeline import open_library

    push = arguments.command == "push"
    with open_library(existing(arguments.library) if push else arguments.library) as rag:
        moved = (remote.push if push else remote.pull)(rag.library, arguments.url)
        count = len(rag.library.documents)
    if arguments.json:
        print_json({"sent" if push else "came": moved, "documents": count})
    else:
        there, done = ("there", "were sent") if push else ("here", "came")
        print(f"{count} documents are {there}, {len(moved)} of them {done}.")
    return 0


def run_documents(arguments: argparse.Namespace) -> int:
    from memo.pipeline import open_library

    with open_library(existing(arguments.library)) as rag:
        entries = list(rag.library.documents.values())
    if arguments.json:
        print_json({"documents": [entry_json(entry) for entry in entries]})
    else:
        for entry in entries:
            print(f"{entry.id}  {describe(entry, entry.ratio)}")
        print(f"{len(entries)} documents" if len(entries) != 1 else "1 document")
    return 0


def run_forget(arguments: argparse.Namespace) -> int:
    from memo.pipeline import open_library

    with open_library(existing(arguments.library)) as rag:
        entry = rag.library.find(arguments.document)
        rag.forget(entry.id)
    if arguments.json:
        print_json({"forgotten": {"id": entry.id, "name": entry.name}})
    else:
        print(f"Forgot {entry.name}.")
    return 0


def run_study(arguments: argparse.Namespace) -> int:
    from memo.pipeline import open_library
    from memo.train.recipe import Studying

    plan, bars = training.changed(Studying(), arguments.changes), {}
    with open_library(existing(arguments.library)) as rag:
        entry = rag.library.find(arguments.document)
        for progress in rag.study(entry.id, plan):
            if not arguments.json and sys.stderr.isatty():
                tell(progress, bars)
    if arguments.json:
        print_json({"studied": {"id": entry.id, "name": entry.name, "steps": plan.steps}})
    else:
        print(f"Studied {entry.name}, {plan.steps} steps.")
    return 0


def run_ask(arguments: argparse.Namespace) -> int:
    from memo.pipeline import open_library

    with open_library(existing(arguments.library), mixed(arguments)) as rag:
        answers = answered(rag, arguments.question, [arguments.strategy], arguments.json)
    if arguments.json:
        print_json(answer_json(answers[arguments.strategy]))
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    from memo.pipeline import open_library

    strategies = [name.strip() for name in arguments.strategies.split(",") if name.strip()]
    for name in strategies:
        if name not in STRATEGIES:
            raise SettingsError(f"No strategy is named {name!r}.", f"Choose from: {', '.join(STRATEGIES)}.")
    if not strategies:
        raise SettingsError("No strategy is given.", f"Choose from: {', '.join(STRATEGIES)}.")
    with open_library(existing(arguments.library), mixed(arguments)) as rag:
        answers = answered(rag, arguments.question, strategies, arguments.json)
    if arguments.json:
        print_json({
            "question": next(iter(answers.values())).question,
            "answers": {name: answer_json(answers[name]) for name in strategies},
        })  # fmt: skip
    return 0


def mixed(arguments: argparse.Namespace) -> Settings:
    """The settings, with the Memory Decoder and alpha of the arguments."""
    settings = from_environment()
    if arguments.memory_decoder:
        settings = replace(settings, memory_decoder=arguments.memory_decoder)
    if arguments.alpha is not None:
        settings = replace(settings, alpha=share("--alpha", arguments.alpha))
    return settings


def answered(rag: MemoRAG, question: str, strategies: list[str], quiet: bool) -> dict[str, Answer]:
    """Asks, and unless `quiet` prints each answer as soon as it is whole."""
    from memo.events import AnswerDone
    from memo.pipeline import finish

    names = {entry.id: entry.name for entry in rag.library.documents.values()}

    def show(event: Event) -> None:
        if isinstance(event, AnswerDone) and not quiet:
            print_answer(event.answer, names)

    # asked for here or in the environment; the one that memo comes with is not mixed in unasked
    wanted = rag.settings.memory_decoder not in ("", NONE) or rag.settings.alpha >= 0
    alpha = rag.settings.alpha if rag.settings.alpha >= 0 else rag.models.mixing().best if wanted else 0.0
    return finish(rag.compare(question, strategies, alpha=alpha), show)


def run_models(arguments: argparse.Namespace) -> int:
    from memo.models import describe as describe_models

    told = describe_models(from_environment())
    if arguments.json:
        print_json(told)
    else:
        for name, value in told.items():
            print(f"{name.replace('_', ' '):16} {value}")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    from memo.ui import launch

    chosen = {"MEMO_HOST": arguments.host, "MEMO_PORT": arguments.port}
    launch(from_environment(os.environ | {name: value for name, value in chosen.items() if value is not None}))
    return 0


COMMANDS = {
    "serve": run_serve, "memorize": run_memorize, "push": run_push_or_pull,
    "pull": run_push_or_pull, "documents": run_documents,
    "forget": run_forget, "study": run_study, "ask": run_ask, "compare": run_compare, "models": run_models,
    "evaluate": evaluation.run, "train": training.run, "decode-train": decode_cli.run,
}  # fmt: skip


def quiet_libraries() -> None:
    """Other libraries neither write on our streams nor wait for each other on busy cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 2 for wrong use or bad input, 130 when interrupted."""
    chosen = parser().parse_args(arguments)
    quiet_libraries()
    try:
        return COMMANDS[chosen.command](chosen)
    except MemoError as error:
        print(f"memo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (FileNotFoundError, PermissionError, IsADirectoryError, UnicodeDecodeError) as error:
        print(f"memo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memo: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
