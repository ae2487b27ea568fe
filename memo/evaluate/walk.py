"""One walk through the main job, timed: a document is memorized, a question is asked of it.

In: a text file and a question; or, with `--long`, a long text that is only memorized. Out: JSON with

    memorize   tokens/s of memorizing over tokens/s of a plain prefill of the same tokens, in turns, median of repeats;
               bytes of the memory over bytes of the plain KV cache
    question   seconds to the first clue, to the passages, to the last word of each answer of one comparison
    long       tokens, slots, ratio, seconds, peak memory of the process

`python -m memo.evaluate.walk --out assets/results/walk.json`
`python -m memo.evaluate.walk --long book.txt --out assets/results/long.json`
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from memo.cli import quiet_libraries
from memo.evaluate.record import write
from memo.settings import Settings, from_environment

EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"
QUESTION = "Why could the sluice not be unlocked on the night of the flood?"
STRATEGIES = ("memorag", "rag", "full_context", "closed_book")


def memorizing(text: str, models: Any, settings: Settings, repeats: int) -> dict[str, Any]:
    """Memorizing against plain prefill (one causal pass of the unchanged model, keeping its KV cache), over as much of
    the text as the model's positions hold uncompressed."""
    import torch

    from memo.memory import inference, read_all

    model = models.memory_model()
    ids, offsets = model.encode(text)
    count = min(len(ids), model.capacity(settings.window)) // settings.window * settings.window or len(ids)
    part = text[: offsets[count][0]] if count < len(ids) else text
    times: dict[str, list[float]] = {"memorize": [], "prefill": []}
    for _ in range(repeats + 1):
        began = time.perf_counter()
        memory = read_all(model.memorize(part, "walk", settings.ratio, settings.window))
        times["memorize"].append(time.perf_counter() - began)
        began = time.perf_counter()
        with inference(model):
            model.model.get_decoder()(torch.tensor([ids[:count]], device=model.device), use_cache=True)
        times["prefill"].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(times["memorize"][1:], times["prefill"][1:], strict=True)]  # the first warms up
    return {
        "tokens": count,
        "ratio": settings.ratio,
        "window": settings.window,
        "memorize_tokens_per_second": round(count / statistics.median(times["memorize"][1:])),
        "prefill_tokens_per_second": round(count / statistics.median(times["prefill"][1:])),
        "memorize_over_prefill": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "memory_bytes": memory.bytes,
        "full_bytes": memory.full_bytes,
    }


def asking(path: Path, question: str, models: Any, settings: Settings, folder: Path) -> dict[str, Any]:
    """One comparison, from a memory that is there; another question was asked before, so that all is loaded."""
    from memo.library import Library
    from memo.pipeline import MemoRAG, finish

    with Library(folder, models.embedder) as library:
        rag = MemoRAG(library, models, settings)
        *_, ready = rag.memorize([path])
        finish(rag.compare("What is this about?", ("memorag",)))
        answers = finish(rag.compare(question, STRATEGIES))
    return {
        "document_tokens": ready.total,
        "slots": ready.slots,
        "question": question,
        "answers": {
            name: {"seconds": a.timings, "prompt_tokens": a.prompt_tokens, "answer_tokens": a.answer_tokens}
            for name, a in answers.items()
        },
    }


def long_text(path: Path, models: Any, settings: Settings) -> dict[str, Any]:
    """A long text through the memory alone."""
    from memo.memory import read_all

    began = time.perf_counter()
    memory = read_all(models.memory_model().memorize(path.read_text(), "long", settings.ratio, settings.window))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": memory.tokens, "slots": memory.slots, "ratio": memory.ratio, "memory_bytes": memory.bytes,
        "full_bytes": memory.full_bytes, "seconds": round(time.perf_counter() - began, 1), "peak_bytes": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=EXAMPLES / "harrowmere.md")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--long", type=Path, help="a long text, to be memorized only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    quiet_libraries()
    from memo.pipeline import Models

    settings = from_environment()
    models = Models(settings)
    if chosen.long:
        results = {"long": long_text(chosen.long, models, settings)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = {
                "memorize": memorizing(chosen.text.read_text(), models, settings, chosen.repeats),
                "question": asking(chosen.text, chosen.question, models, settings, Path(folder) / "library"),
            }
    write(chosen.out, results, "memo.evaluate.walk")
    print(chosen.out.read_text())


if __name__ == "__main__":
    main()
