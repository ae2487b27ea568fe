"""The processes that `kills` kills: forked from one that has the libraries and the models loaded, so that each begins
with the work.

In: jobs, a line of JSON each, on stdin. Out: lines of JSON on stdout: the process of a job, what it does from moment to
moment, what it found, and at last that it has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from memo import datastore, decoder_file
from memo.library import Library
from memo.models import Models
from memo.pipeline import MemoRAG
from memo.search import Query
from memo.settings import Settings
from memo.train import decode, decode_cli
from memo.train.recipe import Distilling

PLAN = Distilling(steps=9, batch=2, micro=1, layers=1, save_every=2)
SHARD = 1  # blocks of a datastore's shard: enough shards to be killed between


def tell(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")  # nothing is held back in a buffer that a kill would lose


# --- the library -----------------------------------------------------------------------------------------------------


def memorize(models: Models, library: str, texts: list[str], forget: list[str]) -> None:
    """Forgets documents of these names, then memorizes what is not there."""
    with Library(Path(library), models.embedder) as kept:
        rag, commit = MemoRAG(kept, models, models.settings), kept.commit

        def storing(*arguments: Any) -> Any:
            tell(stage="storing")
            return commit(*arguments)

        kept.commit = storing  # type: ignore[method-assign]
        for name in forget:
            tell(stage="forgetting", name=name)
            rag.forget(name)
            tell(stage="forgotten", name=name)
        for progress in rag.memorize(texts):
            if progress.error is not None:
                raise progress.error
            tell(stage=progress.state, name=progress.name)


def look(models: Models, library: str) -> None:
    """What the library shows: of each document its memory, and how many passages it has, in Chroma, among the words,
    and that are found by their own text."""
    reader, found = models.memory_model(), {}
    with Library(Path(library), models.embedder) as kept:
        meaning, words = kept.index.sizes(), kept.words.sizes()
        for entry in kept.documents.values():
            memory, passages = kept.load(entry.id, reader), kept.passages(entry.id)
            queries = [Query("itself", (passage.text,)) for passage in passages]
            hits = kept.index.rank(queries, 1, [entry.id])
            own = sum(hit[0]["start"] == passage.start for hit, passage in zip(hits, passages, strict=True) if hit)
            digest = hashlib.sha256(memory.keys.numpy().tobytes()).hexdigest()[:16]
            found[entry.name] = [digest, len(passages), meaning[entry.id], words[entry.id], own]
        strange = sorted(({*meaning} | {*words}) - set(kept.documents))
    tell(documents=found, strange=strange)


# --- the decoder -----------------------------------------------------------------------------------------------------


def train(models: Models, texts: list[str], out: str) -> None:
    """A Memory Decoder of these texts, or what is left to do of it."""
    llm, tokenizer, accelerator = decode_cli.loaded(models.settings)
    datastore.SHARD = SHARD
    tell(stage="starting")
    save = decode.decoder.save

    def saving(*arguments: Any) -> None:
        tell(stage="saving")
        save(*arguments)

    decode.decoder.save = saving
    learnt, held = decode.held_out(decode_cli.tokenized(texts, tokenizer, models.settings, Path(out) / "work"))
    decode.make(llm, tokenizer, learnt, held, Path(out), PLAN, accelerator, {"name": "pumps"},
                lambda progress: tell(stage=progress.stage, done=progress.done))  # fmt: skip
    tell(decoder=decoder_file.about(out).get("alpha"))


def main() -> None:
    """settings: the model's folder is the only argument."""
    torch.set_num_threads(1)  # a process that has run several cannot be forked
    settings = Settings(memory_model=sys.argv[1], device="cpu", dtype="float32", memory_decoder="none", window=256)
    models = Models(settings)
    models.memory_model()
    models.embedder().encode(["warm"])
    tell(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 1
            tell(pid=os.getpid())
            try:
                {"memorize": memorize, "look": look, "train": train}[job.pop("work")](models, **job)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        _, status = os.waitpid(pid, 0)
        tell(ended=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
