"""The report's part about Memory Decoders: perplexity against what else brings a domain to a model, costs, speed.

In: {name of the file: results of `memo evaluate decoder`}. Out: parts of Markdown. Perplexities stand with their 95 %
interval over documents; ratios to the model alone and to the decoder are of the same tokens, below 1 is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memo.evaluate.report_tables import Column, interval, ratio, table
from memo.plots_style import Results, number

WAYS = {
    "base": "the model alone", "rag": "in-context RAG (BM25)", "knn_lm": "kNN-LM", "dapt": "DAPT, all weights",
    "lora": "LoRA", "decoder_mixed": "**Memory Decoder, mixed**", "decoder": "Memory Decoder alone (alpha 1)",
    "ce_mixed": "learnt from the text only, mixed (the paper’s DAPT-small)",
    "kl_mixed": "learnt from the datastore only, mixed", "router": "Memory Decoder, alpha by a router",
    "fixed": "Memory Decoder, one alpha, chosen on the router’s text",
}  # fmt: skip
TRAINED = {"decoder": "Memory Decoder", "ce": "decoder, text only", "kl": "decoder, datastore only",
           "dapt": "DAPT", "lora": "LoRA"}  # fmt: skip
SYSTEMS = {"base": "the model alone", "mixed": "with the Memory Decoder", "knn_lm": "kNN-LM",
           "rag": "RAG, one passage", "rag_refreshed": "RAG, the passage changed while it writes"}  # fmt: skip


def decoders(domains: Mapping[str, Results]) -> list[str]:
    """All domains side by side, then every one of them."""
    if not domains:
        return []
    some = [way for way in WAYS if any(way == row["way"] for results in domains.values() for row in results["test"])]
    means = {name: {row["way"]: row["perplexity"]["mean"] for row in r["test"]} for name, r in domains.items()}
    columns: list[Column] = [
        (name, lambda way, name=name: f"{means[name][way]:.2f}" if way in means[name] else "") for name in domains
    ]
    side_by_side = table(some, ("perplexity", lambda way: WAYS[way]), *columns)
    every = (part for name, results in domains.items() for part in one_domain(name, results))
    return ["## The Memory Decoder", side_by_side, *every]


def one_domain(name: str, results: Results) -> list[str]:
    """What was trained on what, and what came out."""
    what, store, rivals = results["what"], results["store"], results["what"]["rivals"]
    plan = what["plan"]
    blocks = results["trained"]["decoder"]["blocks"]
    other = {row["way"]: row for row in results.get("other", ())}
    columns: list[Column] = [
        ("", lambda row: WAYS[row["way"]]), ("perplexity", lambda row: interval(row["perplexity"])),
        ("/ the model alone", lambda row: interval(row.get("over_base"))),
        ("/ Memory Decoder, mixed", lambda row: interval(row.get("over_decoder_mixed"))),
    ]  # fmt: skip
    if other:
        columns += [
            ("other texts", lambda row: interval(other[row["way"]]["perplexity"])),
            ("other texts / the model alone", lambda row: interval(other[row["way"]].get("over_base"))),
        ]
    documents, tokens = what["documents"], what["tokens"]
    texts = f"{tokens['test']:,} tokens of {documents['test']:,} documents"
    if other:
        texts += f", and on {tokens['other']:,} tokens of {documents['other']:,} documents of other domains"
    known = [f"{count} of the {one} text" for one, count in what["also_learnt"].items() if count]
    return [
        f"### {what['domain']} ({name})",
        f"{what['model']}, {number(what['parameters'])} parameters, {what['dtype']}. Learnt:"
        f" {what['learnt']['tokens']:,} tokens of {what['learnt']['documents']:,} documents. Perplexity on {texts};"
        f" blocks of {what['window']:,} tokens, each token with {what['window'] - what['stride']} before it where"
        " there are so many. Intervals are drawn over documents; ratios are of the same tokens. The decoder starts from"
        f" {_start(what)}, kl_weight {plan['kl_weight']:g}. Everything trained"
        f" read the same {blocks:,} blocks. Chosen on {tokens['held']:,} held-out tokens: {_chosen(results)}."
        + (f" **Documents that were learnt too: {', '.join(known)}.**" if known else ""),
        table(results["test"], *columns),
        f"RAG: the best passage of {rivals['passage']} tokens for the last {rivals['query']}, looked up again every"
        f" {rivals['refresh']} tokens (in the paper every 4).",
        table([results["sweep"]], ("alpha", lambda _: "perplexity"),
              *((f"{one['alpha']:g}", lambda _, one=one: f"{one['perplexity']['mean']:.2f}")
                for one in results["sweep"])),
        _router(results["router"], bool(other)),
        _zero(results["alpha_zero"]),
        _costs(results["trained"]),
        _store(store),
        *([_speed(results["speed"])] if results["speed"] else []),
    ]  # fmt: skip


def _start(what: Results) -> str:
    """What the decoder starts from."""
    if start := what.get("start"):
        return f"{start}, which knows language in general"
    return f"{what['plan']['layers']} of the model’s {what['layers']} layers"


def _chosen(results: Results) -> str:
    alphas, store = results["alphas"], results["store"]
    named = {"decoder_mixed": "both objectives", "ce_mixed": "text only", "kl_mixed": "datastore only"}
    told = ", ".join(f"{alphas[way]:g} ({title})" for way, title in named.items())
    return (f"alpha {told}; k {store['k']}, temperature {number(store['temperature'])}, weight {store['weight']:g} of"
            " the kNN-LM; learning rates of DAPT and LoRA, by short trials")  # fmt: skip


def _router(router: Results, other: bool) -> str:
    learnt, low_high = router["learnt_on"], router["test"]["alphas"]
    return (
        f"The router ({number(router['parameters'])} parameters) and its rival, alpha {router['fixed_alpha']:g}, were"
        f" chosen on half of the held-out text (perplexity there {learnt['router']:.2f} and {learnt['fixed']:.2f}). Its"
        f" alpha on the test text: mean {router['test']['alpha']:.2f}, in eight of ten tokens between"
        f" {low_high[0]:.2f} and {low_high[2]:.2f}"
        + (f"; on other texts {router['other']['alpha']:.2f} in the mean." if other else ".")
    )


def _zero(found: Results) -> str:
    if found["exact"]:
        return "At alpha 0 the mix has the log-probabilities of the model alone, exactly; its weights were not changed."
    return (f"At alpha 0 the mix has the log-probabilities of the model alone but for rounding"
            f" ({found['largest_difference']:g} nats at most); its weights were not changed.")  # fmt: skip


def _costs(trained: Results) -> str:
    rows = [(TRAINED[name] + (f", rank {one['rank']}" if "rank" in one else ""), one) for name, one in trained.items()]

    def num(key: str) -> Any:
        return lambda row: f"{row[1][key]:,}"

    return table(rows, ("trained", lambda row: row[0]), ("parameters", num("parameters")), ("tokens", num("tokens")),
                 ("learning rate", lambda row: f"{row[1]['learning_rate']:g}"),
                 ("seconds", lambda row: number(row[1]["seconds"])))  # fmt: skip


def _store(store: Results) -> str:
    stages = ", ".join(f"{name} {number(seconds)}" for name, seconds in store["stages"].items() if name != "training")
    built = "; ".join(f"{number(one['seconds'])} s for {one['entries']:,} entries and {number(one['index_seconds'])} s"
                      f" for their index ({one['index']})" for one in store.get("sizes", ()))  # fmt: skip
    return (f"Datastore: {store['entries']:,} entries, index {store['index']}, which finds {store['recall']:.1%} of the"
            " nearest." + (f" Building one takes {built}: entries^{store['exponent']:.2f}." if built else "")
            + (f" Seconds before the decoder was trained: {stages}." if stages else ""))  # fmt: skip


def _speed(rows: list[Results]) -> str:
    def read(row: Results) -> str:
        return ratio(row["read"]) if "read" in row else ""

    def milliseconds(row: Results, part: str) -> str:
        return number(row[part]["seconds"] * 1000) if part in row else ""

    return table(
        rows, ("speed", lambda row: SYSTEMS[row["system"]]), ("batch", lambda row: str(row["batch"])),
        ("reading the prompt / the model alone", read), ("ms", lambda row: milliseconds(row, "read")),
        ("a token / the model alone", lambda row: ratio(row["token"])), ("ms", lambda row: milliseconds(row, "token")),
    )  # fmt: skip


def beyond(results: Results) -> list[str]:
    """Facts of the learnt texts, and questions with labels."""
    what, rows = results["what"], results["rows"]
    columns: list[Column] = [("alpha", lambda row: str(row["alpha"]))]
    for key, title in (("cloze", "facts gone on with"), ("plain", "labels, plain"), ("dcpmi", "labels, DCPMI")):
        if key in rows[0]:
            columns.append((title, lambda row, key=key: interval(row[key])))
    told = f"{what['decoder']} in {what['model']}, shares that are right. alpha 0: the model alone, 1: the decoder."
    if what["facts"]:
        told += f" {what['facts']} facts (names, numbers) of texts that it learnt, each behind the text before it."
    if what["questions"]:
        told += f" {what['questions']} questions of {what['set']}, answers {', '.join(what['labels'])}."
    return ["### Beyond perplexity", told, table(rows, *columns)]
