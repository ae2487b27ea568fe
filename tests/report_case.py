"""Results of every measurement, small and made up: what the tests of the report share."""

import copy

ABOUT = {
    "command": "python -m memo evaluate qa --data squad", "machine": {"processor": "Z80", "cores": 2, "gpu": ""},
    "versions": {}, "commit": "abc", "date": "2030-01-01",
}  # fmt: skip


def value(mean, low, high, n=20):
    return {"mean": mean, "low": low, "high": high, "n": n}


SQUAD = {
    "context": "group", "evidence": "given", "set": "squad", "split": "dev", "language": "en", "questions": 20,
    "answered": 8, "libraries": 3,
    "what": {"memory_weights": "untrained", "generator": "SmolLM2-135M-Instruct", "embedder": "all-MiniLM-L6-v2",
             "ratio": 8, "seed": 0, "strategies": {"rag": "passages by the question", "memorag": "passages by clues"}},
    "strategies": {
        "closed_book": {"f1": value(0.1, 0, 0.2, 8), "prompt_tokens": value(50, 50, 50, 8)},
        "bm25": {"recall@1": value(0.5, 0.45, 0.55), "recall@3": value(0.9, 0.86, 0.95)},
        "rag": {
            "recall@1": value(0.3, 0.2, 0.4), "recall@3": value(0.6, 0.5, 0.7), "f1": value(0.25, 0.2, 0.3, 8),
            "answered_anyway": value(0.4, 0.3, 0.5, 2), "prompt_tokens": value(800, 790, 820, 8),
            "seconds": value(4, 3, 5, 3),
        },
        "memorag": {
            "recall@1": value(0.4, 0.3, 0.42), "recall@3": value(0.7, 0.6, 0.8), "f1": value(0.22, 0.2, 0.24, 8),
            "answered_anyway": value(0.5, 0.3, 0.7, 2), "prompt_tokens": value(1200, 1100, 1300, 8),
            "seconds": value(8, 7, 9, 3),
        },
        "memorag-draft": {"recall@3": value(0.65, 0.6, 0.7)},
    },
    "against_rag": {
        "memorag": {
            "recall@1": value(0.1, 0.02, 0.2, 30), "recall@3": value(0.1, -0.01, 0.2),
            "f1": value(-0.03, -0.05, -0.01, 8),
            "answered_anyway": value(0.1, -0.1, 0.3, 2), "prompt_tokens": value(400, 300, 500, 8),
        },
        "memorag-draft": {"recall@3": value(0.05, 0.01, 0.1)},
    },
    "failed": {"hyde": 2},
}  # fmt: skip
MUSIQUE = copy.deepcopy(SQUAD) | {"set": "musique", "language": "ko", "failed": {}}
MUSIQUE["against_rag"]["memorag"]["recall@3"] = value(-0.02, -0.03, -0.01, 40)
MUSIQUE["what"]["ratio"] = 4


def row(measure, method, **more):
    return {"measure": measure, "method": method, "tokens": 4096, "n": 2, **more}


MEMORY = {
    "what": {
        "texts": ["a", "b"], "base": {"ratio": 8, "window": 512, "tokens": 4096},
        "left_out": [{"tokens": 65536, "why": "No text is that long."}],
    },
    "rows": [
        row("loss", "none", recovery=value(0, 0, 0)),
        row("loss", "memory", ratio=8, wanted_ratio=8, window=512, recovery=value(0.6, 0.5, 0.8)),
        row("copy", "memory", ratio=8, wanted_ratio=8, window=512, copy=value(0.5, 0.4, 0.6),
            facts=value(0.4, 0.3, 0.5)),
        row("composition", "memory", ratio=8, documents=2, place="drawn", recovery=value(0.5, 0.4, 0.6)),
        row("removal", "memory", exact=True, largest_difference=0.0),
        row("lookup", "memory", kind="fact", depth=25, ratio=8, wanted_ratio=8, share=value(0.5, 0.2, 0.8)),
        row("lookup", "memory", kind="fact", depth=None, ratio=8, wanted_ratio=8, share=value(0.75, 0.5, 1),
            exact=value(0.5, 0, 1)),
    ],
}  # fmt: skip

TIMES = {"ratio": 1.35, "low": 1.284, "high": 1.418}
SPEED = {
    "what": {"models": {"memory_weights": "untrained"},
             "notes": {"first_clue": "From a memory in RAM.", "search": "Random unit vectors."}},
    "memorize": [
        {"tokens": 1024, **TIMES, "memorize_tokens_per_second": 538, "prefill_tokens_per_second": 399},
        {"tokens": 8192, "ratio": 0.7, "low": 0.6, "high": 0.8, "memorize_tokens_per_second": 538,
         "prefill_tokens_per_second": 399},
    ],
    "first_clue": [{"tokens": 8000, "slots": 1000, "instead": "reading the text again", "ratio": 44.04, "low": 40,
                    "high": 50, "clue_seconds": 0.5, "instead_seconds": 22}],
    "bytes": [{"tokens": 8192, "slots": 1024, "memory_ratio": 8, "bytes": 2e7, "full_bytes": 1.6e8, "file_bytes": 2e7,
               "ratio": 0.125}],
    "load": [], "exponent": [{"exponent": 1.234}], "search": [], "visitors": [], "walk": [], "peak": [],
    "compare": [{"over": "the slowest of the four", "ratio": 1.5, "low": 1.4, "high": 1.7, "together_seconds": 14,
                 "over_seconds": 9}],
}  # fmt: skip
