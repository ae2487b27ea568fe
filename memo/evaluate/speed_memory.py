"""Speed of the memory: how fast it is made, how small it is, how soon it speaks.

In: a model and a long text. Out: rows, one a length.

    memorize     memorizing against a plain prefill of the same tokens
    documents    a document memorized, saved, loaded and asked; `sizes`, `loads`, `growth` and `beyond` are read off it
    rereading    the first clue from a memory that is there, against the faster of two ways of reading the text again
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memo import clues as recall
from memo import memory_file
from memo.answers import ASK_DOCUMENT, SYSTEM
from memo.evaluate import probes
from memo.evaluate.turns import in_turns, middle, seconds_of, short, times
from memo.generate import LocalGenerator, Prompt
from memo.memory import DocumentMemory, Memory, MemoryModel, inference, read_all
from memo.settings import Settings

QUESTION = "What happens in this text, and who takes part in it?"
SPARE = 16  # tokens kept free where a text fills the positions: cut apart, texts make a few tokens more
CLUE_TOKENS = 8  # only the first of them is waited for

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """What every measurement of the memory needs. folder: for files. repeats: rounds that count."""

    model: MemoryModel
    settings: Settings
    folder: Path
    text: str
    repeats: int
    tell: Callable[[str], None]

    def memorize(self, text: str) -> DocumentMemory:
        return read_all(self.model.memorize(text, "speed", self.settings.ratio, self.settings.window))

    def first_word(self, *prompts: Prompt) -> None:
        """Reads prompts in one batch until the first token of any of them is there."""
        run = LocalGenerator(self.model, "memory").open()
        streams = [run.add(prompt) for prompt in prompts]
        while not any(stream.tokens or stream.done for stream in streams):
            run.step()
        for stream in streams:
            if stream.error:
                raise stream.error
        run.close()

    def prefill(self, ids: list[int], word: bool = False) -> None:
        """Plain prefill: one causal pass of the unchanged model that keeps its K and V. word: the next token too."""
        with inference(self.model):
            out = self.model.model.get_decoder()(torch.tensor([ids], device=self.model.device), use_cache=True)
            last = out.last_hidden_state[0, -1]
            (self.model.logits(last).argmax() if word else last[0]).item()  # read, so that a GPU is done with it

    def first_clue(self, memory: DocumentMemory) -> None:
        """From a memory just loaded to the first token of any clue; putting the slots in their places included."""
        shelf = Memory(self.model)
        shelf.add(memory)
        self.first_word(*recall.prompts(QUESTION, shelf.compose(), CLUE_TOKENS).values())


def cut(model: MemoryModel, text: str, tokens: int) -> str:
    """The first `tokens` tokens of a text. One that is too short goes on with itself, each time from another place
    on, so that what comes is never what came right before."""
    have, parts = len(model.encode(text)[0]), [text]
    for copy in range(1, math.ceil(tokens / max(1, have - 1))):
        place = len(text) * (copy * 3 % 7) // 7
        parts.append(text[place:] + "\n\n" + text[:place])
    return probes.cut(model, "\n\n".join(parts), tokens)[0]


def memorize(bench: Bench, lengths: Sequence[int]) -> Table:
    """Memorizing tokens/s over plain prefill tokens/s, where the positions hold the whole text."""
    model, rows = bench.model, []
    for length in _within(lengths, model.max_positions):
        text = cut(model, bench.text, length)
        ids = model.encode(text)[0][: model.max_positions]
        made, plain = in_turns(
            bench.repeats,
            lambda text=text: bench.memorize(text),
            lambda ids=ids: bench.prefill(ids),
            warm=not rows,  # the shortest warms up for all
        )
        rows.append(
            {
                "tokens": len(ids),
                **times(plain, made),  # tokens/s over tokens/s of the same tokens is seconds over seconds, upside down
                "memorize_tokens_per_second": middle([len(ids) / t for t in made]),
                "prefill_tokens_per_second": middle([len(ids) / t for t in plain]),
            }
        )
        bench.tell(f"memorize {len(ids):,} tokens: {rows[-1]['ratio']} times a plain prefill's speed")
    return rows


def rereading(bench: Bench, lengths: Sequence[int]) -> Table:
    """Seconds to the first word where the text is read again, over seconds to the first clue from its memory.

    It is read again in two ways: as every prompt is, piece by piece in a run, and in one causal pass of the same
    tokens. In each round the faster of them counts. Only as much text as the positions hold with the question.
    """
    model, rows = bench.model, []
    generator = LocalGenerator(model, "memory")
    frame = len(generator.encode(_reread("")))
    for length in _within(lengths, model.max_positions - frame - SPARE):
        text = cut(model, bench.text, length)
        memory, prompt = bench.memorize(text), _reread(text)
        ids = generator.encode(prompt)
        clue, run, prefill = in_turns(
            bench.repeats,
            lambda memory=memory: bench.first_clue(memory),
            lambda prompt=prompt: bench.first_word(prompt),
            lambda ids=ids: bench.prefill(ids, word=True),
            warm=not rows,
        )
        again = list(map(min, run, prefill))
        ways = {"run_seconds": middle(run), "prefill_seconds": middle(prefill)}
        rows.append(_sooner(memory.tokens, memory.slots, "reading the text again", again, clue) | ways)
        bench.tell(f"first clue, {memory.tokens:,} tokens: {rows[-1]['ratio']} times sooner than reading again")
    return rows


def _reread(text: str) -> Prompt:
    """The text before the question, as in the strategy `full_context`."""
    return Prompt((("system", SYSTEM), ("user", ASK_DOCUMENT.format(document=text, question=QUESTION))), CLUE_TOKENS)


def _sooner(tokens: int, slots: int, instead: str, other: Sequence[float], clue: Sequence[float]) -> dict[str, Any]:
    return {
        "tokens": tokens, "slots": slots, "instead": instead, **times(other, clue), "clue_seconds": middle(clue),
        "instead_seconds": middle(other),
    }  # fmt: skip


def documents(bench: Bench, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Documents of these lengths, each memorized once, then saved, loaded and asked in turns.

    Seconds of loading and to the first clue are lists, one number a round: others make ratios of them.
    """
    path = bench.folder / f"speed{memory_file.SUFFIX}"
    bench.memorize(cut(bench.model, bench.text, min(lengths)))  # warms up
    for length in lengths:
        text = cut(bench.model, bench.text, length)
        began = time.perf_counter()
        memory = bench.memorize(text)
        seconds = time.perf_counter() - began
        saving = seconds_of(lambda memory=memory: memory_file.save(memory, path))
        load, clue = in_turns(
            bench.repeats,
            lambda: memory_file.load(path, bench.model),
            lambda memory=memory: bench.first_clue(memory),
        )
        bench.tell(f"{memory.tokens:,} tokens at ratio {memory.ratio}: memorized in {seconds:.1f} s")
        yield {
            "length": length, "tokens": memory.tokens, "slots": memory.slots, "memory_ratio": memory.ratio,
            "bytes": memory.bytes, "full_bytes": memory.full_bytes, "file_bytes": path.stat().st_size,
            "memorize_seconds": short(seconds), "save_seconds": short(saving),
            "load_seconds": [short(t) for t in load], "clue_seconds": [short(t) for t in clue],
        }  # fmt: skip
    path.unlink()


def beyond(measured: Table, lengths: Sequence[int]) -> Table:
    """`rereading` for texts beyond the positions: without the memory they would have to be memorized anew."""
    rows = []
    for row in measured:
        if row["length"] in lengths:
            anew = [row["memorize_seconds"] + clue for clue in row["clue_seconds"]]
            rows.append(_sooner(row["tokens"], row["slots"], "memorizing anew", anew, row["clue_seconds"]))
    return rows


def sizes(measured: Table) -> Table:
    """Bytes of a memory over bytes of the plain K and V cache of the same tokens. Nothing to repeat: both are exact."""
    kept = ("tokens", "slots", "memory_ratio", "bytes", "full_bytes", "file_bytes")
    return [{name: row[name] for name in kept} | {"ratio": short(row["bytes"] / row["full_bytes"])} for row in measured]


def loads(measured: Table) -> Table:
    """Seconds of loading a memory over seconds of making it."""
    rows = []
    for row in measured:
        load, made = row["load_seconds"], row["memorize_seconds"]
        pieces = {"load_seconds": middle(load), "memorize_seconds": made, "save_seconds": row["save_seconds"]}
        rows.append({"tokens": row["tokens"], **times(load, [made] * len(load)), **pieces})
    return rows


def growth(measured: Table, lengths: Sequence[int]) -> Table:
    """How seconds of memorizing grow with tokens: the slope of log(seconds) over log(tokens), by least squares.

    One row a length, and a last one with `exponent`: 1 is in proportion, 2 with the square.
    """
    used = [row for row in measured if row["length"] in lengths]
    kept = ("tokens", "memory_ratio", "slots", "memorize_seconds")
    rows: Table = [{name: row[name] for name in kept} for row in used]
    if len(used) > 1:
        rows.append({"exponent": short(slope([(row["tokens"], row["memorize_seconds"]) for row in used]))})
    return rows


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent b of y = a x^b that fits the points (x, y) best, by least squares of the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def _within(lengths: Sequence[int], most: int) -> list[int]:
    """The lengths, cut to `most` tokens: the longest that fits stands for all that do not."""
    return sorted({min(length, most) for length in lengths})
