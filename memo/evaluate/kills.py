"""Processes that are killed (SIGKILL) at every stage of their work: what is done must stay, what is half-done must not
show.

In: how many kills, a seed. Out: for each stage how many kills hit it, and that after each of them

    library    forgetting, indexing, memorizing, storing: every document that was said to be ready is there, whole (its
               memory, its passages in Chroma and among the words); none that was said to be forgotten; no other
    decoder    starting, reading (the datastore), indexing, choosing, neighbours, training, saving: every file that
               shows is that of a run in peace, every step up to the last checkpoint is done, and so is the decoder

A small random model does the work. A stage is hit at a moment that chance chooses within the time it takes in peace.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from memo.errors import TrainingFailed

SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3}  # fmt: skip
WORDS = ("pump", "chapel", "river", "crowns", "winter", "council", "vote", "boiler", "key", "bridge", "flood", "oak")
DOCUMENTS, SENTENCES = 6, 40
LIBRARY = ("forgetting", "indexing", "memorizing", "storing")
DECODER = ("starting", "reading", "indexing", "choosing", "neighbours", "training", "saving")
FORGOTTEN = 3  # documents that are forgotten and memorized again in a round


def make_model(folder: Path, cache: Path) -> None:
    """A small random model with the embedded model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from memo.embedded import embedded_language_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_language_model(cache))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SIZE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_texts(folder: Path, draw: random.Random) -> list[Path]:
    """Documents of some hundred words."""
    folder.mkdir()
    paths = [folder / f"{number:02}.txt" for number in range(DOCUMENTS)]
    for number, path in enumerate(paths):
        sentences = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(SENTENCES)]
        path.write_text(f"Document {number}. " + " ".join(sentences))
    return paths


class Workers:
    """Has jobs done (`memo.evaluate.killed`), in peace or until a kill."""

    def __init__(self, model: Path, draw: random.Random) -> None:
        self.draw, self.seconds = draw, dict[str, list[float]]()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # fmt: skip
        self.errors = model.with_name("errors.log")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen([sys.executable, "-m", "memo.evaluate.killed", str(model)],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            env=environment, text=True)  # fmt: skip
        self._heard()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise TrainingFailed(f"The process of the work has ended: {self.errors.read_text()[-300:]}")
        return json.loads(line)

    def _begin(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._heard()["pid"]

    def peace(self, **job: Any) -> list[dict[str, Any]]:
        """Does a job to its end. -> what it told; how long stages take is kept

        Raises:
            TrainingFailed: it failed.
        """
        self._begin(job)
        told, began, stage = list[dict[str, Any]](), time.monotonic(), ""
        while "ended" not in (line := self._heard()):
            now = time.monotonic()
            if stage:
                self.seconds.setdefault(f"{job['work']} {stage}", []).append(now - began)
            began, stage = now, line.get("stage", "")
            told.append(line)
        if line["ended"]:
            raise TrainingFailed(f"{job['work']} failed after a kill: {self.errors.read_text().strip()[-300:]}")
        return told

    def killed(self, stage: str, number: int, **job: Any) -> tuple[bool, list[dict[str, Any]]]:
        """Begins a job and kills it in its `number`th moment at that stage. -> whether it still ran, what it told"""
        pid, told = self._begin(job), list[dict[str, Any]]()
        while "ended" not in (line := self._heard()):
            told.append(line)
            if line.get("stage") == stage:
                number -= 1
                if number == 0:
                    time.sleep(self.draw.random() * statistics.median(self.seconds[f"{job['work']} {stage}"]))
                    os.kill(pid, signal.SIGKILL)  # nobody else gets its number before `killed.main` has waited for it
        return line["ended"] == -signal.SIGKILL, told


# --- the library -----------------------------------------------------------------------------------------------------


def library(folder: Path, workers: Workers, kills: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kills while documents are forgotten, indexed, memorized and stored.

    Raises:
        TrainingFailed: something was lost, half-done, or not forgotten.
    """
    texts = [str(path) for path in sorted((folder / "texts").iterdir())]
    names, place = [Path(text).name for text in texts], str(folder / "library")

    def look() -> dict[str, Any]:
        [found] = workers.peace(work="look", library=place)
        if found["strange"]:
            raise TrainingFailed(f"Passages of {found['strange']} are there, which is no document.")
        return found["documents"]

    workers.peace(work="memorize", library=place, texts=texts, forget=[])
    wanted = look()
    if wanted.keys() != set(names) or any(len({*sizes}) > 1 for _, *sizes in wanted.values()):
        raise TrainingFailed(f"The library made in peace is not whole: {wanted}")
    workers.peace(work="memorize", library=place, texts=texts, forget=names[:FORGOTTEN])
    there, hit = set(names), Counter[str]()
    while hit.total() < kills:
        stage = LIBRARY[hit.total() % len(LIBRARY)]
        forget = workers.draw.sample(sorted(there), min(FORGOTTEN, len(there)))
        job = {"work": "memorize", "library": place, "texts": texts, "forget": forget}
        ran, told = workers.killed(stage, workers.draw.randint(1, len(forget)), **job)
        hit[stage] += ran
        found = look()
        sure, unsure = certain(there, told)
        if lost := sure - found.keys():
            raise TrainingFailed(f"A kill while {stage} lost {sorted(lost)}.")
        if more := found.keys() - sure - unsure:
            raise TrainingFailed(f"After a kill while {stage} there is {sorted(more)}, which nobody finished.")
        if any(wanted[name] != whole for name, whole in found.items()):
            raise TrainingFailed(f"After a kill while {stage} a document that shows is not whole.")
        there = set(found)
        tell(f"library: {hit.total()} kills, now while {stage}; {len(there)} of {len(names)} documents there")
        if len(there) < FORGOTTEN or hit.total() == kills:
            workers.peace(work="memorize", library=place, texts=texts, forget=[])
            if look() != wanted:
                raise TrainingFailed("After the kills the library is not the one made in peace.")
            there = set(names)
    return {"kills": dict(hit), "lost": 0, "half_done": 0}


def certain(there: set[str], told: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Documents that must be there after what was told, and those that may be: which were being put in or taken out."""
    sure, unsure = set(there), set[str]()
    for line in told:
        stage, name = line.get("stage"), line.get("name", "")
        if stage == "ready":
            sure.add(name)
        elif stage in ("forgetting", "forgotten"):
            sure.discard(name)
        if stage in ("forgetting", "indexing"):
            unsure = {name}
        elif stage in ("forgotten", "ready"):
            unsure = set()
    return sure, unsure - sure


# --- the decoder -----------------------------------------------------------------------------------------------------


def files(out: Path) -> dict[str, str]:
    """What shows of a decoder and of what it is made from, and the content of each in short."""
    shown = [*out.glob("work/store/keys-*.safetensors"), *out.glob("work/targets/targets-*.arrow"),
             *out.glob("work/run/weights.safetensors"), *out.glob("decoder*.safetensors")]  # fmt: skip
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in shown}


def steps(out: Path) -> int:
    """The last step that a checkpoint has. Raises TrainingFailed if it is not whole."""
    from safetensors.torch import load_file

    found = sorted(out.glob("work/run/checkpoint-*"))
    if not found:
        return 0
    try:
        for name in ("weights", "optimizer"):
            load_file(found[-1] / f"{name}.safetensors")
        return json.loads((found[-1] / "state.json").read_text())["step"]
    except Exception as error:  # whatever a half-written file makes of its reader
        raise TrainingFailed(f"The checkpoint {found[-1].name} is not whole: {error}") from error


def decoder(folder: Path, workers: Workers, kills: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kills while a Memory Decoder is made, stage after stage of the same one, then of another.

    Raises:
        TrainingFailed: something was lost, half-done, or is another than in peace.
    """
    from memo.evaluate.killed import PLAN

    texts, hit, number = [str(folder / "texts")], Counter[str](), 0
    [*_, made] = workers.peace(work="train", texts=texts, out=str(folder / "peace"))
    wanted, again = files(folder / "peace"), 0
    while hit.total() < kills:
        number += 1
        out = folder / f"killed-{number}"
        for stage in DECODER[: kills - hit.total()]:
            moment = workers.draw.randint(1, 3) if stage in ("reading", "neighbours", "training") else 1
            ran, told = workers.killed(stage, moment, work="train", texts=texts, out=str(out))
            hit[stage] += ran
            again += not ran
            found, trained = files(out), [line["done"] for line in told if line.get("stage") == "training"]
            if any(wanted.get(name) != content for name, content in found.items()):
                raise TrainingFailed(f"After a kill while {stage} a file shows that is not that of a run in peace.")
            if (last := max(trained, default=0)) - last % PLAN.save_every > steps(out):
                raise TrainingFailed(f"A kill while {stage} lost steps of the training.")
            about = out / "decoder.json"
            if about.exists() and json.loads(about.read_text())["alpha"] != made["decoder"]:
                raise TrainingFailed(f"After a kill while {stage} a decoder shows that is not finished.")
            tell(f"decoder: {hit.total()} kills, now while {stage}; {len(found)} files, {steps(out)} steps")
        workers.peace(work="train", texts=texts, out=str(out))
        if files(out) != wanted:
            raise TrainingFailed("After the kills the decoder is not the one made in peace.")
    return {"kills": dict(hit), "ended_before": again, "lost": 0, "half_done": 0, "another_decoder": 0}


def evaluate(folder: Path, kills: int, seed: int, cache: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Half of the kills each.

    Raises:
        TrainingFailed: something was lost, half-done or different after a kill.
    """
    make_model(folder / "model", cache)
    draw, half = random.Random(seed), (kills + 1) // 2
    make_texts(folder / "texts", draw)
    with Workers(folder / "model", draw) as workers:
        found = {"library": library(folder, workers, half, tell)}
        return {**found, "decoder": decoder(folder, workers, kills - half, tell)}
