"""The report: RESULTS.md, made from the JSON files of the measurements and from nothing else.

In: a folder with qa/<set>.json, decoder/<domain>.json, memory.json, memory-trained.json, clues.json, study.json and
speed.json, of which any may be missing. Out: Markdown; the same bytes for the same files. What a reader wants first
comes first; every number and where it is from stand at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memo.errors import SettingsError
from memo.evaluate.report_decoder import beyond, decoders
from memo.evaluate.report_reliability import reliable
from memo.evaluate.report_scaling import scaled
from memo.evaluate.report_sets import ablation, answers, by_value, losses, retrieval
from memo.evaluate.report_tables import (
    ENOUGH,
    fast,
    kept,
    one_set,
    recalled,
    studied,
    table,
)
from memo.evaluate.report_targets import targets
from memo.models import write_atomic
from memo.plots_style import Results

NEEDED = {  # what `results` of a file has at least
    "qa": ("set", "split", "context", "language", "questions", "answered", "libraries", "what", "strategies",
           "against_rag", "failed"),
    "memory": ("what", "rows"),
    "study": ("what", "rows"),
    "clues": ("what", "sets", "weights", "against"),
    "decoder": ("what", "trained", "alphas", "test", "sweep", "router", "alpha_zero", "store", "speed"),
    "downstream": ("what", "rows"), "reliability": ("what",),
    "scaling": ("what", "documents", "tokens", "visitors", "engines", "store", "store_exponent", "costs"),
    "speed": ("what", "memorize", "first_clue", "bytes", "load", "exponent", "compare", "search", "visitors", "peak"),
}  # fmt: skip
SINGLE = {  # file -> its kind
    "memory": "memory", "memory-trained": "memory", "memory-8k": "memory", "clues": "clues", "study": "study",
    "downstream": "downstream", "speed": "speed", "scaling": "scaling", "reliability": "reliability",
}  # fmt: skip
SEVERAL = ("qa", "decoder")  # folders of files, each of the kind that the folder is named after
MODELS = ("memory", "memory_weights", "generator", "embedder")


def load(folder: Path) -> dict[str, Any]:
    """{"qa" and "decoder": {name of the file: its content}, and for each of `SINGLE` its content or None}.

    Raises:
        SettingsError: a file is no JSON, or holds something else than its name says.
    """
    several = {kind: {path.stem: read(path, kind) for path in sorted((folder / kind).glob("*.json"))}
               for kind in SEVERAL}  # fmt: skip
    single = {name: (folder / f"{name}.json", kind) for name, kind in SINGLE.items()}
    return several | {name: read(*one) if one[0].exists() else None for name, one in single.items()}


def read(path: Path, kind: str) -> dict[str, Any]:
    """A file of results of that kind.

    Raises:
        SettingsError: it is none.
    """
    hint = "Measure it again, or delete it."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = content["results"]
        missing = [name for name in ("command", "machine", "commit", "date") if name not in content]
        missing += [name for name in NEEDED[kind] if name not in results]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is not a file of results.", hint) from error
    if missing:
        raise SettingsError(f"{path} lacks {', '.join(missing)}.", hint)
    return content


def report(folder: Path, out: Path) -> None:
    """Writes the report about the files in `folder`.

    Raises:
        SettingsError: one of them cannot be read; `out` is as it was.
    """
    files = load(folder)
    sets, domains = ({name: content["results"] for name, content in files[kind].items()} for kind in SEVERAL)
    single = {name: files[name] and files[name]["results"] for name in SINGLE}
    memory, speed = single["memory"], single["speed"]
    parts = ["# Results", *opening(sets, single, domains), *targets(sets, speed, single["memory-trained"], domains)]
    if sets:
        parts += retrieval(sets) + answers(sets) + ablation(sets) + losses(sets)
    else:
        parts += ["## Retrieval and answers", "Not measured: there is no file in `qa/`."]
    parts += kept(memory) if memory else ["## The memory", "Not measured: there is no `memory.json`."]
    parts += ["## The trained memory", *kept(single["memory-trained"])[1:]] if single["memory-trained"] else []
    parts += ["## The trained memory of 8,192 tokens", *kept(single["memory-8k"])[1:]] if single["memory-8k"] else []
    parts += recalled(single["clues"]) if single["clues"] else []
    parts += studied(single["study"]) if single["study"] else []
    parts += decoders(domains)
    parts += beyond(single["downstream"]) if single["downstream"] else []
    parts += fast(speed) if speed else ["## Speed", "Not measured: there is no `speed.json`."]
    parts += scaled(single["scaling"]) if single["scaling"] else []
    parts += reliable(single["reliability"]) if single["reliability"] else []
    parts += limits(sets, memory, speed)
    if any(files.values()):
        parts += ["## Every number", *(part for name, results in sets.items() for part in one_set(name, results))]
        parts += [*settings(sets), *sources(files)]
    write_atomic(out, "\n\n".join(parts) + "\n")


BY_MEANING = "passages by the question's embedding"  # what rag was before it searched words as well


# --- what was measured -----------------------------------------------------------------------------------------------


def opening(
    sets: Mapping[str, Results], single: Mapping[str, Results | None], domains: Mapping[str, Results]
) -> list[str]:
    """A few sentences: what was measured, with which models, and how to read a difference."""
    what = []
    if sets:
        asked, answered = (sum(results[name] for results in sets.values()) for name in ("questions", "answered"))
        told = f"{len(sets)} question set{'s' * (len(sets) > 1)} with {asked:,} questions, {answered:,} of them"
        what.append(told + " answered, by strategies that differ only in what they read")
    for name, kind in (("memory", "memory"), ("memory-trained", "trained memory")):
        if results := single[name]:
            what.append(f"what the {kind} keeps of {len(results['what']['texts'])} texts")
    what += ["what is recalled after each stage of training"] if single["clues"] else []
    what += ["what studying a document harder gains"] if single["study"] else []
    if domains:
        what.append(f"a Memory Decoder in {len(domains)} domain{'s' * (len(domains) > 1)}")
    what += ["speed"] if single["speed"] else []
    what += ["growth"] if single["scaling"] else []
    if not what:
        return ["Nothing is measured yet."]
    sentences = [f"Measured: {'; '.join(what)}."]
    if sets:
        models = {key: by_value(sets, lambda r, key=key: r["what"].get(key, "not told")) for key in MODELS}
        weights = models.pop("memory_weights")
        told = [f"{key} {model}" for key, model in models.items()]
        sentences.append(f"Models: {', '.join(told)}; memory weights: {weights}.")
        if before := [name for name, r in sets.items() if r["what"].get("strategies", {}).get("rag") == BY_MEANING]:
            sentences.append(f"Searched by meaning alone, before words were searched too: {', '.join(before)}.")
        sentences.append(
            "A difference is of the same questions and stands with its 95 % interval, drawn over libraries of"
            " documents, not over questions; where there are fewer than three, the mean stands alone. `*`: the interval"
            f" holds no zero, and there are at least {ENOUGH} questions."
        )
    return [" ".join(sentences)]


# --- what to make of it, and where it is from ------------------------------------------------------------------------


def limits(sets: Mapping[str, Results], memory: Results | None, speed: Results | None) -> list[str]:
    """What a reader could take from the numbers that is not in them."""
    about = {name: results["what"] for name, results in sets.items()}
    about |= {name: r["what"].get("models", {}) for name, r in (("the memory", memory), ("speed", speed)) if r}
    korean = [name for name, results in sets.items() if results["language"] == "ko"]
    points = []
    if bare := [name for name, what in about.items() if what.get("memory_weights") == "untrained"]:
        told = "measured with untrained memory weights, copies of the model’s own; what training adds is not in them."
        points.append(f"{', '.join(bare)}: {told}")
    if any("SmolLM2" in str(what.get("generator", "")) for what in about.values()):
        points.append("SmolLM2-135M-Instruct is a very small model: a larger one may order the strategies otherwise.")
    if any("MiniLM" in str(sets[name]["what"].get("embedder", "")) for name in korean):
        points.append(f"The embedded model and embedder are English: {', '.join(korean)} rests on shared characters.")
    if sets:
        points += [
            "Recall counts a passage that holds the place of the evidence, not whether the generator can use it.",
            "Intervals are about other documents of the same set, not about other sets, models or prompts;"
            " of so many comparisons some lie beyond their interval by chance.",
            f"A difference is starred, and a loss bold, only with at least {ENOUGH} questions: below that the interval"
            " itself cannot be trusted.",
        ]
    if few := [f"{name} {r['libraries']}" for name, r in sets.items() if 3 <= r["libraries"] < ENOUGH]:
        points.append(
            f"Intervals are drawn over libraries; where those are fewer than {ENOUGH}, they tend to be too narrow, so"
            f" that even a star says little: {', '.join(few)}."
        )
    if any("seconds" in values for results in sets.values() for values in results["strategies"].values()):
        points.append("Seconds of answers rest on very few questions, and grow with the length of the answer.")
    if speed:
        points.append("Ratios of speed carry over to other machines better than seconds do, but not exactly.")
    return ["## What the numbers do not say", "\n".join(f"* {point}" for point in points)] if points else []


def settings(sets: Mapping[str, Results]) -> list[str]:
    """What all strategies share, and what each gets."""
    if not sets:
        return []
    keys = [key for key in next(iter(sets.values()))["what"] if key != "strategies"]
    told = {name: words for results in sets.values() for name, words in results["what"]["strategies"].items()}
    values = [f"{key.replace('_', ' ')} {by_value(sets, lambda r, key=key: r['what'].get(key, 'not told'))}"
              for key in keys]  # fmt: skip
    return [
        "All strategies have the same generator, answer prompt, budget of passages and decoding: "
        + "; ".join(values) + ".",
        table(told.items(), ("strategy", lambda one: one[0]), ("what it gets", lambda one: one[1])),
    ]  # fmt: skip


def sources(files: Mapping[str, Any]) -> list[str]:
    """Files, commands, commits, machines."""
    named = [(f"{kind}/{name}.json", content) for kind in SEVERAL for name, content in files[kind].items()]
    named += [(f"{name}.json", files[name]) for name in SINGLE if files[name]]
    return [
        "Made by `python -m memo evaluate report` from the files below, and from nothing else.",
        table(named, ("file", lambda f: f[0]), ("command", lambda f: f"`{f[1]['command']}`"),
              ("commit", lambda f: f[1]["commit"]), ("date", lambda f: f[1]["date"]),
              ("machine", lambda f: "{processor}, {cores} cores {gpu}".format(**f[1]["machine"]).strip())),
    ]  # fmt: skip
