"""The Memory Decoder measured against what else brings a domain to a language model, all in one run on the same text.

In: a language model; tokens to learn, to choose on (held out), to test on, and of other domains; a plan. Out: a table
of perplexities with 95 % intervals over documents, and what each cost. Perplexity is of the tokens that count in blocks
of 1,024 (`memo.datastore.blocks`), each with at least 512 of its document before it, where there are so many.

    base              the language model alone
    rag               a passage of the learnt text before every stretch (`in_context`)
    knn_lm            mixed with the datastore; k, temperature, weight chosen on the held-out text
    dapt, lora        the model's own weights trained (`adaptation`)
    decoder_mixed     the Memory Decoder, alpha chosen on the held-out text;  `decoder`: it alone, alpha 1
    ce_mixed          as decoder_mixed, learnt from the text only (beta 0): the paper's "DAPT-small mixed"
    kl_mixed          as decoder_mixed, learnt from the datastore only (beta 1)
    router, fixed     alpha of every token by a router, and the best one alpha; both chosen on half of the held-out text

All that is trained reads the same blocks in the same order: plan.steps * plan.batch.

Source: Memory Decoder (arXiv 2508.09874v2), tables 1, 3 and 7, and the controls it lacks: the decoder alone, tuned
alphas for every objective, texts of other domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memo import datastore, decoder
from memo.errors import ModelError, SettingsError, TrainingFailed
from memo.evaluate import adaptation, perplexity
from memo.evaluate.decoder_bench import Bench, Logps, Text, about
from memo.evaluate.metrics import bootstrap
from memo.models import fingerprint


def interval(losses: np.ndarray, documents: Sequence[int]) -> dict[str, Any]:
    """exp of the mean of losses (n,), or of differences of them, in nats, with its 95 % interval over documents."""
    low, high = bootstrap(lambda means: np.exp(means[:, 0]), losses[:, None].tolist(), documents)
    return {"mean": round(float(np.exp(losses.mean())), 4), "low": low, "high": high, "n": len(set(documents))}


def table(found: dict[str, Logps], text: Text, which: str) -> list[dict[str, Any]]:
    """A row for each way: its perplexity, and as ratios, of the same tokens, over that of the model alone and over that
    of the Memory Decoder mixed in. Below 1 is better than those."""
    rows = []
    for name, logps in found.items():
        rows.append({"way": name, "perplexity": interval(-logps[which], text.documents)} | {
            f"over_{rival}": interval(found[rival][which] - logps[which], text.documents)
            for rival in ("base", "decoder_mixed") if name != rival
        })  # fmt: skip
    return rows


def trained_decoder(bench: Bench) -> dict[str, Any]:
    """What training the Memory Decoder took."""
    assert bench.made
    plan = bench.plan
    return {
        "parameters": adaptation.size_of(decoder.own(bench.decoder, bench.llm)),
        "learning_rate": plan.learning_rate, "blocks": plan.steps * plan.batch,
        **adaptation.log_of(bench.work / "decoder" / "work" / "run"),
    }  # fmt: skip


def evaluate(bench: Bench, repeats: int = 5) -> dict[str, Any]:
    """Measures everything that is not in `bench.rows` yet. repeats: rounds of timing that count; 0: nothing is timed.

    Raises:
        SettingsError: held-out text of a single block, a plan without the datastore. TrainingFailed: what was trained
        read different tokens. ModelError: the mix at alpha 0 is not the model, or the model was changed.
    """
    llm, texts, rivals = bench.llm, bench.texts, bench.rivals
    if len(texts["held"].blocks) < 2:
        raise SettingsError("The held-out text is too short.", "It needs two blocks, of 512 tokens about.")
    if not bench.plan.kl_weight:
        raise SettingsError("kl_weight is 0 in the plan.", "The decoder without the datastore is measured beside it.")
    before, every = fingerprint(llm), list(texts)
    bench.unit("training decoder", lambda: trained_decoder(bench))
    base = bench.logps("base", every, bench.reading(lambda: llm))
    alone = bench.logps("decoder", every, bench.reading(lambda: bench.decoder))
    ce = bench.logps("ce", every, bench.reading(lambda: bench.distilled("ce", 0.0)))
    kl = bench.logps("kl", every, bench.reading(lambda: bench.distilled("kl", 1.0)))
    alphas = {name: perplexity.best_alpha(base["held"], one["held"])
              for name, one in (("decoder_mixed", alone), ("ce_mixed", ce), ("kl_mixed", kl))}  # fmt: skip

    def mixed(memory: Logps, alpha: float) -> Logps:
        return {one: perplexity.mixed(base[one], memory[one], alpha) for one in every}

    size = bench.rows.done["training decoder"][0]["parameters"]
    router, routed = bench.router(base, alone)
    found = {
        "base": base,
        "rag": bench.logps("rag", bench.judged, bench.with_passages),
        "knn_lm": bench.logps("knn_lm", bench.judged, lambda: bench.with_neighbours),
        "dapt": bench.logps("dapt", bench.judged, bench.reading(
            lambda: bench.adapted("dapt", rivals.dapt_rates, lambda: adaptation.dapt(llm)))),
        "lora": bench.logps("lora", bench.judged, bench.reading(
            lambda: bench.adapted("lora", rivals.lora_rates,
                                  lambda: adaptation.lora(llm, size, rivals.lora_scale, bench.plan.seed)))),
        "decoder_mixed": mixed(alone, alphas["decoder_mixed"]), "decoder": alone,
        "ce_mixed": mixed(ce, alphas["ce_mixed"]), "kl_mixed": mixed(kl, alphas["kl_mixed"]),
        "router": routed, "fixed": mixed(alone, router["fixed_alpha"]),
    }  # fmt: skip
    trained = {name: bench.rows.done[f"training {name}"][0] for name in ("decoder", "ce", "kl", "dapt", "lora")}
    if len({(one["blocks"], one["tokens"]) for one in trained.values()}) > 1:
        raise TrainingFailed("What is compared was not trained on the same tokens.", "Measure in another folder.")
    trained["lora"] = {**trained["lora"], "rank": adaptation.rank_for(llm, size)}
    results = {
        "what": {"tokens": {one: len(text.labels) for one, text in texts.items()},
                 "documents": {one: len(set(text.documents)) for one, text in texts.items()},
                 "also_learnt": bench.unit("documents learnt too", bench.also_learnt),
                 "learnt": about(bench.learnt), "plan": asdict(bench.plan), "rivals": asdict(rivals),
                 "start": Path(bench.start).name, "window": datastore.WINDOW, "stride": datastore.STRIDE,
                 "parameters": adaptation.size_of(llm), "layers": llm.config.num_hidden_layers},
        "trained": trained, "alphas": alphas,
        **{one: table(found, texts[one], one) for one in bench.judged},
        "sweep": [{"alpha": alpha, "perplexity": interval(-mixed(alone, alpha)["test"], texts["test"].documents)}
                  for alpha in perplexity.ALPHAS],
        "router": router,
        "alpha_zero": bench.unit("alpha 0", bench.alpha_zero),
        "store": {**bench.made["neighbours"], "entries": bench.made["tokens"], "stages": bench.made["stages"],
                  **(bench.unit("building a store", bench.building) if repeats else {})},
        "speed": bench.unit("speed", lambda: bench.speed(repeats))["rows"] if repeats else [],
    }  # fmt: skip
    if fingerprint(llm) != before:
        raise ModelError("The language model is not what it was before it was measured.")
    return results
