"""The model card of a Memory Decoder: what it is for, what it learnt, what was measured.

In: what decoder.json says, and SOURCEs as `memo decode-train` takes them. Out: README.md beside the weights; licences
come from a META.json (`licence`, `source`) in the folder of a source, where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memo.decoder_file import ROUTER, about
from memo.models import write_atomic

PLAN = ("steps", "batch", "learning_rate", "layers", "window", "kl_weight")
FRONT = "---\nbase_model: {model}\nlibrary_name: memo\ntags: [memory-decoder, knn-lm, domain-adaptation]\n---\n"


def sources(texts: Sequence[str]) -> list[dict[str, str]]:
    """Of each SOURCE its name, never its path, and its licence, where that is known."""
    found = []
    for text in texts:
        head, _, tail = text.rpartition("/")
        meta = Path(head, tail.partition("@")[0].partition(":")[0], "META.json")
        known = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else {}
        found.append({"name": tail or text, **{key: known[key] for key in ("licence", "source") if key in known}})
    return found


def write(folder: Path, model: str) -> None:
    """Writes README.md. model: the language model that it belongs to, for people to read."""
    known = about(folder)
    plan: dict[str, Any] = known.get("plan", {})
    told = [
        FRONT.format(model=model) + f"\n# {folder.name}", _what(folder, model, known), "## Training",
        f"{known['tokens']:,} tokens {'read' if 'window' in plan else 'in the datastore'}; "
        + ", ".join(f"{name.replace('_', ' ')} {plan[name]:g}" for name in PLAN if name in plan) + ".",
        *_start(known), *_texts(known.get("sources", ())), *_measured(known),
    ]  # fmt: skip
    write_atomic(folder / "README.md", "\n\n".join(told) + "\n")


def _what(folder: Path, model: str, known: dict[str, Any]) -> str:
    if "window" in known["plan"]:
        return (f"A small decoder for {model} that knows language in general ({known['name']}): it learnt what that"
                " model itself says. Memory Decoders of a domain start from it (`memo decode-train --start`); mixed in"
                " by itself it adds nothing. It has no embedding and no head of its own.")  # fmt: skip
    router = f" `{ROUTER}` gives every token a share of its own." if (folder / ROUTER).exists() else ""
    return (f"A Memory Decoder (arXiv 2508.09874) for {model}: {known['name']}. Mixed in at every token,"
            " p = alpha p_Mem + (1 - alpha) p_LLM, with alpha"
            f" {known['alpha']:g} unless another is chosen.{router}\n\n"
            "    memo ask \"…\" --library DIR --memory-decoder <this folder>")  # fmt: skip


def _start(known: dict[str, Any]) -> list[str]:
    told = [f"It starts from {known['start']}."] if known.get("start") else []
    if "seconds" in known:
        told.append(f"On {known['machine']}, {known['seconds']:,.0f} seconds of training.")
    return told


def _texts(texts: Sequence[dict[str, str]]) -> list[str]:
    if not texts:
        return []
    lines = [f"* {one['name']}" + (f": {one['licence']}. Source: {one['source']}" if "licence" in one else "")
             for one in texts]  # fmt: skip
    return ["## Texts", "\n".join(lines)]


def _measured(known: dict[str, Any]) -> list[str]:
    if "held_out_perplexity" not in known:
        return []
    found = known["held_out_perplexity"]
    return ["## Measured", f"Perplexity on {known['held_out_tokens']:,} held-out tokens, on which k, temperature,"
            f" weight and alpha were chosen: {found['llm']:.2f} the model alone, {found['knn_lm']:.2f} with the"
            f" datastore, {found['mixed']:.2f} with the decoder, {found['decoder']:.2f} it alone."]  # fmt: skip
