"""The command `memo decode-train`: a Memory Decoder from documents of one's own, or from any texts.

In: arguments. Out: the decoder's folder (see `decode`), progress on stderr, what was measured on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo import decoder_file
from memo.errors import DocumentError, SettingsError
from memo.models import NONE, decoder_start, display_name
from memo.settings import Settings, from_environment
from memo.train import decoder_card
from memo.train.decoder_card import sources

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from memo.train.decode import Progress
    from memo.train.recipe import General
    from memo.train.texts import TokenFile

KINDS = (".txt", ".md", ".html", ".htm", ".pdf", ".docx", ".pptx", ".epub")


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    told = "train a Memory Decoder on documents"
    sub = commands.add_parser("decode-train", help=told, description=told.capitalize() + ".")
    sub.add_argument("data", nargs="+", metavar="SOURCE",
                     help="files and folders of documents; folders with docs.jsonl or hub:OWNER/NAME, each"
                     " [:SPLIT][@TOKENS]")  # fmt: skip
    sub.add_argument("--held-out", nargs="+", default=[], metavar="SOURCE",
                     help="texts that choices are made on (default: a twentieth of the documents)")  # fmt: skip
    sub.add_argument("--start", metavar="PATH",
                     help='a decoder or a small causal model to start from, a folder or a hub id; "none": the first'
                     " layers of the model (default: the one memo brings, where it has one)")  # fmt: skip
    sub.add_argument("--new-vocabulary", action="store_true",
                     help="the start has another vocabulary: its embedding and head are made anew; a tenth of the steps"
                     " that it took will do")  # fmt: skip
    sub.add_argument("--router", action="store_true",
                     help="train a router too, alpha of every token; kept if better than a fixed one")  # fmt: skip
    sub.add_argument("--general", action="store_true",
                     help="make what others start from: texts of all kinds, taught by the model itself")  # fmt: skip
    sub.add_argument("--name", default="", help="what the decoder knows about, for people to read")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                     help="another number in the plan (Distilling, or General, in memo/train/recipe.py)")  # fmt: skip
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="the decoder, and what it is made from")
    sub.add_argument("--json", action="store_true", help="print one JSON object on stdout, nothing else")


@dataclass(frozen=True)
class Documents:
    """Files as a source of texts (`texts.Source`). One that cannot be read is told and left out."""

    files: tuple[Path, ...]
    settings: Settings
    tokens: int = 0

    @property
    def state(self) -> list[Any]:
        return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def texts(self) -> Iterator[str]:
        from memo.documents import read_document

        for file in self.files:
            try:
                yield read_document(file, **self.settings.file_limits).text
            except DocumentError as error:
                print(f"memo: {error}", file=sys.stderr)


def source(text: str, settings: Settings) -> Any:
    """What a SOURCE names.

    Raises:
        SettingsError: a folder without documents, or nothing at all.
    """
    from memo.evaluate.hub import is_hub
    from memo.train.texts import Source

    path = Path(text)
    if path.is_file():
        return Documents((path,), settings)
    if path.is_dir() and not list(path.glob("docs.jsonl*")):
        files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in KINDS))
        if not files:
            raise SettingsError(f"{text} has no documents in it.", f"memo reads {', '.join(KINDS)}.")
        return Documents(files, settings)
    parsed = Source.parse(text)
    if not is_hub(text) and not Path(parsed.name).exists():
        raise SettingsError(f"There is no {text!r}.", "Name files, folders or hub:OWNER/NAME.")
    return parsed


def tokenized(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerFast, settings: Settings, folder: Path
) -> TokenFile:
    """The texts in tokens; special tokens in them are taken as text."""
    from memo.train import texts

    return texts.plainly([source(text, settings) for text in sources], tokenizer, folder)


def loaded(settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Accelerator]:
    """The language model that answers, as a decoder is made for it; a base model without chat template will do."""
    from dataclasses import replace

    from memo.models import choose_device, choose_dtype, load_language_model
    from memo.train import setup

    device = choose_device(settings.device)
    accelerator = setup.accelerator(device, choose_dtype(settings.dtype, device))
    name = settings.generator or settings.memory_model
    model, tokenizer = load_language_model(name, replace(settings, device=str(accelerator.device)), chat=False)
    return model, tokenizer, accelerator


def chosen_start(start: str | None, settings: Settings) -> str:
    """What decoders start from; empty: the model's first layers. start: what the command line says, None if nothing."""
    return decoder_start(settings) if start is None else "" if start == NONE else start


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    from memo.train import decode
    from memo.train.cli import changed
    from memo.train.recipe import Distilling, General

    if arguments.general:
        return run_general(arguments, changed(General(), arguments.changes))
    settings, plan = from_environment(), changed(Distilling(), arguments.changes)
    start = chosen_start(arguments.start, settings)
    llm, tokenizer, accelerator = loaded(settings)
    with accelerator.main_process_first():
        tokens = tokenized(arguments.data, tokenizer, settings, arguments.out / "work")
        if arguments.held_out:
            learnt, held = tokens, tokenized(arguments.held_out, tokenizer, settings, arguments.out / "work")
        else:
            learnt, held = decode.held_out(tokens)
    about = {"name": arguments.name or Path(arguments.data[0]).stem, "sources": sources(arguments.data)}
    told = decode.make(
        llm, tokenizer, learnt, held, arguments.out, plan, accelerator, about, Bars(accelerator.is_main_process), start,
        arguments.new_vocabulary,
    )  # fmt: skip
    if arguments.router:
        from memo.train import decode_router

        decode_router.make(llm, tokenizer, held, arguments.out, plan.seed, accelerator)
    if accelerator.is_main_process:
        finish(arguments.out, settings)
        show(told, arguments.json)
    accelerator.end_training()
    return 0


def finish(out: Path, settings: Settings) -> None:
    """Notes what the training took, and writes the card."""
    import torch

    from memo.evaluate.record import processor

    last = json.loads((out / "work" / "run" / "log.jsonl").read_text().splitlines()[-1])
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    decoder_file.note(out, {"machine": machine, "seconds": last["seconds"]})
    decoder_card.write(out, display_name(settings.generator or settings.memory_model))


def run_general(arguments: argparse.Namespace, plan: General) -> int:
    """Returns the exit status."""
    from memo.train import general
    from memo.train.decode import Progress

    settings = from_environment()
    llm, tokenizer, accelerator = loaded(settings)
    with accelerator.main_process_first():
        tokens = tokenized(arguments.data, tokenizer, settings, arguments.out / "work")
    bars = Bars(accelerator.is_main_process)
    about = {"name": arguments.name or "texts of all kinds", "sources": sources(arguments.data)}
    told = general.make(
        llm, tokenizer, tokens, arguments.out, plan, accelerator, about,
        lambda line: bars(Progress("training", line["step"], plan.steps, line)),
    )  # fmt: skip
    if accelerator.is_main_process:
        finish(arguments.out, settings)
        print(json.dumps(told) if arguments.json else f"Wrote {arguments.out}: start others from it with --start.")
    accelerator.end_training()
    return 0


def show(told: dict[str, Any], as_json: bool) -> None:
    """What came out."""
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    found = told["held_out_perplexity"]
    print(f"Perplexity on {told['held_out_tokens']:,} held-out tokens: {found['llm']:.2f} the model alone, "
          f"{found['knn_lm']:.2f} with the datastore, {found['mixed']:.2f} with the decoder at alpha {told['alpha']:g} "
          f"({found['decoder']:.2f} the decoder alone).")  # fmt: skip


class Bars:
    """A progress bar a stage, on stderr."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.stage, self.bar = shown, "", None

    def __call__(self, progress: Progress) -> None:
        from tqdm import tqdm

        if not self.shown or not sys.stderr.isatty():
            return
        if progress.stage != self.stage:
            if self.bar is not None:
                self.bar.close()
            self.stage, self.bar = progress.stage, tqdm(total=progress.of, desc=progress.stage, file=sys.stderr)
        assert self.bar is not None
        self.bar.update(progress.done - self.bar.n)
        if progress.line:
            self.bar.set_postfix({name: f"{progress.line[name]:.3f}" for name in ("kl", "ce") if name in progress.line})
