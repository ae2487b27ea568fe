"""A library at any place that fsspec knows: a folder on another disk, s3://…, gs://…, memory://….

In: an open library, a place. Out: `push`: the place holds what the library holds; `pull`: the library has the documents
of the place too. At the place:

    library.json                            {"version", "documents": {id: {file: SHA-256}}}
    documents/<id>-<hash>/text.txt, document.json, memory.safetensors, vectors.safetensors

A document's folder is named after the hashes of its files and never written again; library.json is replaced last: by
one rename, in stores without renames by one copy. So whoever pulls sees the library before a push or after it, and a
push that was killed goes on. One process should push to a place at a time; from many places one library may pull.

Passages need not be embedded again where the embedder is the same: their vectors come along.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import BackendError, DamagedMemory, MemoError, NothingToAsk, SettingsError, reason
from memo.library import Library, passages_of, read_entry

if TYPE_CHECKING:
    from memo.passages import Passage

VERSION = 1
FILES = ("text.txt", "document.json", "memory.safetensors")
VECTORS = "vectors.safetensors"
Known = dict[str, dict[str, str]]  # id -> file -> SHA-256


def push(library: Library, url: str) -> list[str]:
    """Makes the place hold exactly this library. Returns the ids of the documents that were sent; others were there.

    Raises:
        SettingsError: no such kind of place. BackendError: it does not answer, or cannot be written.
        DamagedMemory: what is there is another kind of library.
    """
    with reached(url) as (store, root):
        store.makedirs(f"{root}/documents", exist_ok=True)
        there, here, sent = known(store, root) or {}, Known(), []
        for document in list(library.documents):
            files = {name: (library.folder / document / name).read_bytes() for name in FILES}
            if vectors := packed(library, library.passages(document)):
                files[VECTORS] = vectors
            here[document] = {name: digest(data) for name, data in files.items()}
            if there.get(document) != here[document]:
                folder = f"{root}/{home(document, here[document])}"
                store.makedirs(folder, exist_ok=True)
                for name, data in files.items():
                    store.pipe_file(f"{folder}/{name}", data)
                sent.append(document)
        temporary = f"{root}/.library-{secrets.token_hex(8)}.json"
        store.pipe_file(temporary, json.dumps({"version": VERSION, "documents": here}).encode())
        store.mv(temporary, f"{root}/library.json")
        wanted = {home(document, files) for document, files in here.items()}
        for path in store.ls(f"{root}/documents", detail=False):  # earlier ones, and what a killed push left
            if f"documents/{Path(path).name}" not in wanted:
                store.rm(path, recursive=True)
        return sent


def pull(library: Library, url: str) -> list[str]:
    """Puts the documents of the place into the library; what else it holds stays. Returns the ids of those that came.

    Raises:
        SettingsError: no such kind of place. NothingToAsk: no library there. BackendError: it does not answer.
        DamagedMemory: a file is not the one that was pushed; the documents before it are in.
    """
    with reached(url) as (store, root):
        there = known(store, root)
        if there is None:
            raise NothingToAsk("There is no library at that place.", "Put one there with: memo push URL --library DIR")
        came = []
        for document, files in there.items():
            if all(same(library.folder / document / name, files[name]) for name in FILES):
                continue
            with library.making(document) as path:
                for name, wanted in files.items():
                    data = store.cat_file(f"{root}/{home(document, files)}/{name}")
                    if digest(data) != wanted:
                        raise DamagedMemory(f"{name} of {document} is damaged at that place.", "Push it again.")
                    (path / name).write_bytes(data)
                entry, passages = checked(path, document)
                for _ in library.add_passages(document, passages, unpacked(path / VECTORS, library, len(passages))):
                    pass
                (path / VECTORS).unlink(missing_ok=True)
                library.place(path, entry)
            came.append(document)
        return came


@contextmanager
def reached(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a place, and the path in it; what goes wrong with it as a `BackendError`."""
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(url)
    except (ValueError, ImportError) as error:  # ImportError says which package is missing
        raise SettingsError(f"That kind of place cannot be used: {reason(error)}") from error
    store.invalidate_cache()
    try:
        yield store, root.rstrip("/")
    except MemoError:
        raise
    except Exception as error:  # every store has its own errors
        told = f"The place does not answer as it should: {reason(error)}"
        raise BackendError(told, "Check its address and your rights there, then do the same again.") from error


def known(store: Any, root: str) -> Known | None:
    """What library.json at the place says; None if there is none.

    Raises:
        DamagedMemory: it says something else, or of names that are none of ours.
    """
    try:
        about = json.loads(store.cat_file(f"{root}/library.json"))
        found = about["documents"]
        fits = about["version"] == VERSION and all(
            re.fullmatch("[0-9a-f]{16}", document)
            and set(FILES) <= set(files) <= {*FILES, VECTORS}
            and all(re.fullmatch("[0-9a-f]{64}", one) for one in files.values())
            for document, files in found.items()
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise DamagedMemory("What is at that place is no library of this version.", "Choose another place.")
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def home(document: str, files: dict[str, str]) -> str:
    """The folder of a document that has these files."""
    return f"documents/{document}-{digest(json.dumps(files, sort_keys=True).encode())[:16]}"


def same(path: Path, wanted: str) -> bool:
    return path.exists() and digest(path.read_bytes()) == wanted


def checked(path: Path, document: str) -> tuple[Any, list[Passage]]:
    """The entry and the passages of a document that came. Raises DamagedMemory: they are not what the library keeps."""
    entry = read_entry(path)
    try:
        about = json.loads((path / "document.json").read_bytes())
        passages = passages_of(document, about, (path / "text.txt").read_bytes().decode())
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedMemory(f"The passages of {document} cannot be read.", "Push it again.") from error
    if entry.id != document:
        raise DamagedMemory(f"{document} says that it is {entry.id}.", "Push it again.")
    return entry, passages


def packed(library: Library, passages: list[Passage]) -> bytes:
    """The vectors of a document's passages as safetensors; empty if they are not all there."""
    import numpy as np
    from safetensors.numpy import save

    vectors = library.index.vectors(passages)
    name = {"embedder": library.index.embedder.name}
    return save({"vectors": np.array(vectors, dtype=np.float32)}, name) if vectors else b""


def unpacked(path: Path, library: Library, count: int) -> list[list[float]] | None:
    """The vectors in a file, if they are `count` vectors of the library's embedder; else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            vectors = file.get_tensor("vectors")
            fits = file.metadata() == {"embedder": library.index.embedder.name} and vectors.shape[:1] == (count,)
            return vectors.tolist() if fits else None
    except (FileNotFoundError, SafetensorError):
        return None
