"""What memo wrote itself, broken in every way that chance finds: memory files, weights, checkpoints, decoders; and
requests to the app.

In: a folder to work in. Out: for each kind a function that breaks one and gives it to its reader. What is read all the
same must be what was written (a memory has a checksum), and what is refused must leave everything as it was.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import BackendError, MemoError
from memo.evaluate.bad_inputs import HANG, broken
from memo.evaluate.kills import make_model
from memo.evaluate.served import call, serving

if TYPE_CHECKING:
    import httpx

Trial = Callable[[random.Random], None]
TEXT = "The pump stands behind the old chapel. It was bought in 1987 for 412 crowns. " * 4


class Odd(Exception):
    """A reader neither took nor refused what it was given."""


@contextmanager
def trials(folder: Path, cache: Path) -> Iterator[dict[str, Trial]]:
    """The functions, by kind; each raises a MemoError where its reader refuses, anything else where it breaks."""
    import httpx

    from memo.models import load_language_model
    from memo.settings import Settings

    make_model(folder / "model", cache)
    settings = Settings(memory_model=str(folder / "model"), device="cpu", dtype="float32")
    model, tokenizer = load_language_model(settings.memory_model, settings)
    environment = {"MEMO_MEMORY_MODEL": settings.memory_model, "MEMO_DEVICE": "cpu", "MEMO_DTYPE": "float32",
                   "MEMO_MEMORY_DECODER": "none", "MEMO_DATA": str(folder / "sessions")}  # fmt: skip
    with (
        serving(environment, folder / "app.log") as served,
        closing(httpx.Client(base_url=served.url, timeout=3 * HANG)) as web,
    ):
        yield {"memory": memory(folder / "memory", model, tokenizer), "weights": weights(folder / "weights", model),
               "checkpoint": checkpoint(folder / "run"), "decoder": decoder(folder / "decoder", model, tokenizer),
               "request": request(web)}  # fmt: skip


def memory(folder: Path, model: Any, tokenizer: Any) -> Trial:
    """A memory file."""
    import torch

    from memo import memory_file
    from memo.memory import MemoryModel, read_all

    folder.mkdir()
    reader = MemoryModel(model, tokenizer)
    made = read_all(reader.memorize(TEXT, "pump", 4, 64, text_sha256="0" * 64))
    memory_file.save(made, folder / "whole")
    data, path = (folder / "whole").read_bytes(), folder / "broken"

    def trial(draw: random.Random) -> None:
        path.write_bytes(broken(data, draw))
        if not torch.equal(memory_file.load(path, reader).keys, made.keys):
            raise Odd("another memory was read")

    return trial


def weights(folder: Path, model: Any) -> Trial:
    """Trained memory weights."""
    from memo.attention import MemoryWeights

    folder.mkdir()
    MemoryWeights(model).save(folder / "whole.safetensors")
    data, path = (folder / "whole.safetensors").read_bytes(), folder / "broken.safetensors"

    def trial(draw: random.Random) -> None:
        path.write_bytes(broken(data, draw))
        MemoryWeights.load(path, model)

    return trial


def checkpoint(folder: Path) -> Trial:
    """A training that was interrupted: it goes on, or refuses and leaves the folder as it is."""
    import torch
    from torch import nn

    from memo.train import loop, setup
    from memo.train.recipe import Plan

    class Numbers(list[Any]):
        tokens = 4

    plan = Plan(learning_rate=0.01, steps=4, batch=4, micro=4, save_every=2)
    accelerator = setup.accelerator("cpu", torch.float32)
    batch = Numbers(torch.arange(12.0).view(4, 3))

    def train(place: Path, until: int | None = None) -> None:
        line = nn.Linear(3, 1)
        loop.train(line, lambda step: [batch], lambda some: {"loss": line(torch.stack(some))[:, 0] ** 2}, plan, place,
                   {}, accelerator, until=until)  # fmt: skip

    train(folder / "whole", until=3)
    files = [path.relative_to(folder / "whole") for path in sorted((folder / "whole").rglob("*")) if path.is_file()]

    def trial(draw: random.Random) -> None:
        place, name = folder / "broken", draw.choice(files)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "whole", place)
        (place / name).write_bytes(broken((place / name).read_bytes(), draw))
        before = content(place)
        try:
            train(place)
        except MemoError:
            if content(place) != before:
                raise Odd("a refused run was changed") from None
            raise
        if not (place / "weights.safetensors").exists():
            raise Odd("a run ended without weights")

    return trial


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decoder(folder: Path, model: Any, tokenizer: Any) -> Trial:
    """A Memory Decoder's folder, with a router."""
    from memo import decoder as decoders

    student, _ = decoders.student(model, 1)
    decoders.save(student, model, tokenizer, folder / "whole", {"alpha": 0.3})
    decoders.save_router(decoders.Router(model.config.hidden_size, student.config.hidden_size), folder / "whole")
    files = [path.name for path in sorted((folder / "whole").iterdir())]

    def trial(draw: random.Random) -> None:
        place, name = folder / "broken", draw.choice(files)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "whole", place)
        (place / name).write_bytes(broken((place / name).read_bytes(), draw))
        loaded = decoders.load(place, model, tokenizer)
        decoders.load_router(place, model, loaded)

    return trial


def request(web: httpx.Client) -> Trial:
    """A request to the app's API; now and then one in order, which has to be answered."""
    outcome, made = call(web, "memorize", TEXT, "pump.txt", "")
    if outcome != "answered":
        raise BackendError(f"The app does not answer: {made}")
    token = made["token"]
    bodies = {
        "memorize": [TEXT, "pump.txt", token], "documents": [token], "forget": [token, "nothing.txt"],
        "ask": ["Where is the pump?", token[::-1], "rag"], "compare": ["Where?", token[::-1], ["rag"]],
        "memorize_file": [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, ""],
    }  # fmt: skip
    tried = 0

    def trial(draw: random.Random) -> None:
        nonlocal tried
        tried += 1
        if tried % 20 == 0 and (found := call(web, "documents", token))[0] != "answered":
            raise Odd(f"a request in order was not answered: {found[1]}")
        name = draw.choice(list(bodies))
        body = json.dumps({"data": bodies[name]}).replace(token, draw.choice((token, token, "x" * 32))).encode()
        reply = web.post(f"gradio_api/call/{name}", content=broken(body, draw),
                         headers={"content-type": "application/json"})  # fmt: skip
        if reply.status_code >= 500:
            raise Odd(f"{reply.status_code} {reply.text[:100]}")
        if reply.status_code != 200:
            raise BackendError(reply.text)
        with web.stream("GET", f"gradio_api/call/{name}/{reply.json()['event_id']}") as stream:
            for line in stream.iter_lines():
                if line == "event: complete":
                    return
                if line == "event: error":
                    raise BackendError("refused")
        raise Odd("the reply broke off")

    return trial
