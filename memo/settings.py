"""One frozen settings object, from environment variables.

In: variables named `MEMO_` and the field's name in capitals (`MEMO_RATIO=4`), and `MEMO_PRESET`. Out: `Settings`.
A value that cannot be read is refused by name; nothing is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from memo.errors import SettingsError


def default_cache() -> Path:
    """Where converted weights live between runs: `$XDG_CACHE_HOME/memo`, else `~/.cache/memo`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memo"


@dataclass(frozen=True)
class Settings:
    """Every choice that a host, a command or a notebook may make. Sizes are tokens unless the name says otherwise."""

    # models: "embedded", a local folder, or a hub id
    memory_model: str = "embedded"
    # trained memory weights, a safetensors file or a folder of its parts; "untrained": none; empty: those that memo has
    # for the embedded model, none for any other
    memory_weights: str = ""
    generator: str = ""  # empty: the memory model answers too
    embedder: str = "embedded"
    # a Memory Decoder (folder or hub id) that answers can be mixed with; "none": none; empty: the one that memo has for
    # the embedded model, none for any other
    memory_decoder: str = ""
    alpha: float = -1.0  # its share in them, 0 to 1; -1: the one that suited its held-out text best
    endpoint_url: str = ""  # an OpenAI-compatible endpoint, which then is the generator
    endpoint_model: str = ""
    endpoint_key: str = ""
    device: str = "auto"
    dtype: str = "auto"  # "bfloat16" | "float32"

    # memory
    ratio: int = 8  # text tokens per memory token; raised for texts too long for the model's positions
    window: int = 512  # text tokens read at a time

    # search and answers
    passage_tokens: int = 160  # longest passage
    context_tokens: int = 800  # passages put before the generator, the same for every strategy
    clue_tokens: int = 40  # longest list of clues of one kind
    answer_tokens: int = 112  # longest answer
    chroma: str = ""  # address of a Chroma server, "http://host:port"; empty: in this process

    # limits, a visitor's unless said otherwise
    max_file_mb: int = 20
    max_pages: int = 1000
    max_documents: int = 20
    max_tokens: int = 300_000
    max_sessions: int = 64  # of all visitors
    session_minutes: int = 60

    # places
    cache: Path = field(default_factory=default_cache)
    data: Path = field(default_factory=lambda: default_cache() / "sessions")  # visitors; emptied when the app starts
    log: str = ""  # "json": events of the app, a line each, on standard error; nothing of what people wrote
    host: str = "127.0.0.1"
    port: int = 7860

    @property
    def file_limits(self) -> dict[str, int]:
        """What `documents.read_document` takes of these settings."""
        return {"max_bytes": self.max_file_mb << 20, "max_pages": self.max_pages}


PRESETS: dict[str, dict[str, str]] = {
    "embedded": {},
    "gpu": {
        "memory_model": "Qwen/Qwen2.5-1.5B-Instruct",
        "embedder": "BAAI/bge-m3",
        "ratio": "4",
        "window": "1024",
        "context_tokens": "3000",
        "answer_tokens": "300",
    },
}


def _parse(name: str, kind: str, text: str) -> object:
    if kind == "int":
        try:
            number = int(text)
        except ValueError:
            raise SettingsError(f"{name} is {text!r}.", "It must be a whole number.") from None
        if number < 1 and name != "MEMO_PORT":
            raise SettingsError(f"{name} is {number}; it must be at least 1.")
        if name == "MEMO_PORT" and not 0 <= number <= 65535:
            raise SettingsError(f"The port is {number}; it must be between 0 and 65535.")
        return number
    if kind == "float":
        return share(name, text)
    return Path(text).expanduser() if kind == "Path" else text


def share(name: str, text: str) -> float:
    """A number from 0 to 1. Raises SettingsError."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise SettingsError(f"{name} is {text!r}.", "It must be a number from 0 to 1.")
    return number


def from_environment(environment: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from `environment` (the process's own if None), on top of its preset; `overrides` win over both.

    Raises:
        SettingsError: an unknown preset, or a value that does not fit its field.
    """
    environment = os.environ if environment is None else environment
    preset = environment.get("MEMO_PRESET", "embedded")
    if preset not in PRESETS:
        raise SettingsError(f"MEMO_PRESET is {preset!r}.", f"It must be one of {', '.join(PRESETS)}.")
    chosen: dict[str, object] = {}
    for known in fields(Settings):
        name = f"MEMO_{known.name.upper()}"
        text = environment.get(name, PRESETS[preset].get(known.name))
        if text is not None:
            chosen[known.name] = _parse(name, str(known.type), text)
    chosen |= overrides
    if "cache" in chosen and "data" not in chosen:
        chosen["data"] = Path(str(chosen["cache"])) / "sessions"
    return Settings(**chosen)  # type: ignore[arg-type]
