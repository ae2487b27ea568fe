"""Processes that are killed (SIGKILL) at any moment: what is done must stay, what is half-done must not show.

In: how many kills, a seed. Out: for each stage, how many kills hit it while it worked, and that after each of them

    memorize    every document that was listed before is there still, whole (its memory's checksum, its passages);
                in the end all are, as if nothing had been killed
    train       a Memory Decoder's datastore, neighbours and training go on, and the decoder is that of a run in peace

A small random model does the work, in processes of its own: `python -m memo …`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memo.errors import TrainingFailed

SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3}  # fmt: skip
WORDS = ("pump", "chapel", "river", "crowns", "winter", "council", "vote", "boiler", "key", "bridge", "flood", "oak")
DOCUMENTS = 12
PLAN = ("steps=24", "batch=2", "micro=1", "layers=1", "save_every=4")
# what is looked at after a kill, in a process of its own as well
LOOK = """
import hashlib, json, sys
from memo.pipeline import open_library
with open_library(sys.argv[1]) as rag:
    reader, found = rag.models.memory_model(), {}
    for entry in rag.library.documents.values():
        memory = rag.library.load(entry.id, reader)
        passages = rag.library.passages(entry.id)
        assert passages and rag.library.text(entry.id), entry.name
        found[entry.name] = [hashlib.sha256(memory.keys.numpy().tobytes()).hexdigest()[:16], len(passages)]
print(json.dumps(found))
"""


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
        sentences = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(160)]
        path.write_text(f"Document {number}. " + " ".join(sentences))
    return paths


class Killing:
    """Runs `python -m memo …` and kills it."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.draw = draw
        self.environment = os.environ | {
            "MEMO_MEMORY_MODEL": str(folder / "model"), "MEMO_DEVICE": "cpu", "MEMO_DTYPE": "float32",
            "MEMO_MEMORY_DECODER": "none", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip

    def whole(self, *words: str) -> subprocess.CompletedProcess[str]:
        """In peace. Raises TrainingFailed if it fails."""
        done = subprocess.run([sys.executable, *words], env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise TrainingFailed(f"{' '.join(words[:3])} failed after a kill: {done.stderr.strip()[-300:]}")
        return done

    def killed(self, words: list[str], before: float, span: float) -> bool:
        """Begins it, and kills it after `before` seconds and a random part of `span`. -> whether it still ran"""
        process = subprocess.Popen([sys.executable, *words], env=self.environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            process.wait(before + span * self.draw.random())
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True


def memorizing(folder: Path, killing: Killing, kills: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kills while documents are memorized and indexed. Raises TrainingFailed: something was lost or half-done."""
    files = [str(path) for path in make_texts(folder / "texts", killing.draw)]

    def command(library: str) -> list[str]:
        return ["-m", "memo", "memorize", *files, "--library", str(folder / library)]

    def look(library: str) -> dict[str, Any]:
        return json.loads(killing.whole("-c", LOOK, str(folder / library)).stdout.splitlines()[-1])

    began = time.monotonic()
    killing.whole(*command("peace"))
    took, wanted = time.monotonic() - began, look("peace")
    hit, number = 0, 0
    while hit < kills:
        number += 1
        library, known = f"killed-{number}", dict[str, Any]()
        for _ in range(4):  # the same library, killed again and again
            hit += killing.killed(command(library), 0.35 * took, 0.6 * took)
            found = look(library) if (folder / library).exists() else {}
            if any(found.get(name) != whole for name, whole in known.items()):
                raise TrainingFailed(f"A kill lost {set(known) - set(found)}.")
            if any(wanted[name] != whole for name, whole in found.items()):
                raise TrainingFailed("A document that shows is not whole.")
            known = found
            tell(f"memorize: {hit} kills, {len(known)} of {len(files)} documents there")
        killing.whole(*command(library))
        if look(library) != wanted:
            raise TrainingFailed("After the kills the library is not the one made in peace.")
    return {"kills": hit, "lost": 0, "half_done": 0, "seconds_in_peace": round(took, 1)}


def training(folder: Path, killing: Killing, kills: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kills while a Memory Decoder is made. Raises TrainingFailed: it is another one than in peace."""
    import torch
    from safetensors.torch import load_file

    plan = [word for one in PLAN for word in ("--set", one)]

    def command(out: str) -> list[str]:
        return ["-m", "memo", "decode-train", str(folder / "texts"), *plan, "--out", str(folder / out)]

    began = time.monotonic()
    killing.whole(*command("made"))
    took, hit, number = time.monotonic() - began, 0, 0
    wanted = load_file(folder / "made" / "decoder.safetensors")
    while hit < kills:
        number += 1
        out = f"made-{number}"
        for _ in range(4):
            hit += killing.killed(command(out), 0.35 * took, 0.6 * took)
            tell(f"train: {hit} kills")
        killing.whole(*command(out))
        found = load_file(folder / out / "decoder.safetensors")
        if any(not torch.equal(tensor, wanted[name]) for name, tensor in found.items()):
            raise TrainingFailed("After the kills the decoder is not the one made in peace.")
    return {"kills": hit, "another_decoder": 0, "seconds_in_peace": round(took, 1)}


def evaluate(folder: Path, kills: int, seed: int, cache: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Half of the kills each.

    Raises:
        TrainingFailed: something was lost, half-done or different after a kill.
    """
    make_model(folder / "model", cache)
    killing, half = Killing(folder, random.Random(seed)), (kills + 1) // 2
    return {"memorize": memorizing(folder, killing, half, tell), "train": training(folder, killing, half, tell)}
