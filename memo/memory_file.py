"""A document's memory on disk: one safetensors file.

In: a `DocumentMemory`. Out: a file with its tensors and, as metadata, what made them: fingerprints of the model and
of the memory weights, ratio, window, hash of the text, SHA-256 of all that. Written under another name and renamed, so
a file of that name is always whole; one that is damaged or made by other weights is refused, and the error says which.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memo.errors import DamagedMemory, WrongModel
from memo.memory import DocumentMemory, MemoryModel

VERSION = "1"
SUFFIX = ".memory.safetensors"
_TENSORS = ("keys", "last_logits", "spans", "values")
_TEXTS = ("document", "model", "weights", "text_sha256")
_NUMBERS = ("tokens", "ratio", "window")


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps({**metadata, "sha256": ""}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(memoryview(tensors[name].contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


def save(memory: DocumentMemory, path: Path) -> None:
    """Writes a memory, atomically: the file is there whole, or as it was before."""
    tensors = {n: t.detach().cpu().contiguous() for n in _TENSORS if (t := getattr(memory, n)) is not None}
    metadata = {name: str(getattr(memory, name)) for name in (*_TEXTS, *_NUMBERS)}
    metadata["version"] = VERSION
    metadata["sha256"] = _digest(tensors, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, model: MemoryModel | None = None) -> DocumentMemory:
    """Reads a memory; if a model is given, one that this model made.

    Raises:
        DamagedMemory: not a memory file, cut short, altered, or of another version.
        WrongModel: made by another model or other memory weights.
    """
    hint = "Memorize the document again."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise DamagedMemory(f"The memory file {path.name} cannot be read.", hint) from error
    if metadata.get("version") != VERSION:
        raise DamagedMemory(f"The memory file {path.name} is of an unknown version.", hint)
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise DamagedMemory(f"The memory file {path.name} is damaged: its content was altered.", hint)
    memory = DocumentMemory(
        **tensors, **{n: metadata[n] for n in _TEXTS}, **{n: int(metadata[n]) for n in _NUMBERS}
    )  # type: ignore[arg-type]
    if model is not None:
        try:
            model.check(memory)
        except WrongModel as error:
            raise WrongModel(f"{path.name}: {error.message}", error.hint) from None
    return memory
