"""The report's table of targets: what was aimed at, what was measured, whether it is met.

In: results of question sets, of the trained memory, of speed. Out: lines of Markdown. A target without a measurement
stands there as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memo.evaluate.report_tables import ENOUGH, Column, against_rag, certain, difference, ratio, table
from memo.plots import VALUES, at_base, memories
from memo.plots_style import Results

MULTI_HOP = ("hotpotqa", "musique", "2wiki")
RIVALS = ("rag", "hyde", "rq_rag", "full_context")

# by the trained memory of texts of 4,096 tokens, at each ratio
KEPT = {
    "recovery": {2: 0.98, 4: 0.95, 8: 0.88, 16: 0.78, 32: 0.62},
    "copy": {2: 0.90, 4: 0.75, 8: 0.58, 16: 0.48, 32: 0.40},
    "facts": {2: 0.95, 4: 0.90, 8: 0.65, 16: 0.40, 32: 0.22},
}

Row = tuple[str, str, bool | None]  # target, what was measured, whether it is met (None: not measured)


def targets(
    sets: Mapping[str, Results], speed: Results | None, trained: Results | None, domains: Mapping[str, Results]
) -> list[str]:
    """What was aimed at, and whether it is met."""
    leads = {name: lead for name, r in sets.items() if (lead := against_rag(r, "memorag", "recall@3"))}
    hops = {name: lead for name, lead in leads.items() if sets[name]["set"].startswith(MULTI_HOP)}
    rows: list[Row] = []
    for target, some, enough in (
        ("recall@3 of memorag at least rag’s on every set", leads, lambda lead: lead["mean"] >= 0),
        ("recall@3 of memorag above rag’s by .05 on multi-hop sets", hops, lambda lead: lead["mean"] >= 0.05),
    ):
        judged = {name: lead for name, lead in some.items() if lead["n"] >= ENOUGH}
        bad = [f"{name} {difference(lead)}" for name, lead in judged.items() if not enough(lead)]
        starred = sum(enough(lead) and certain(lead) for lead in judged.values())
        few = [name for name in some if name not in judged]
        told = [
            f"{len(judged) - len(bad)} of {len(judged)} sets, {starred} of them beyond the interval" if judged else "",
            f"not on {', '.join(bad)}" if bad else "",
            f"fewer than {ENOUGH} questions: {', '.join(few)}" if few else "",
        ]
        rows.append((target, "; ".join(filter(None, told)), not bad if judged else None))
    rows += [better_answers(sets), *trained_memory(trained), *memory_decoder(domains)]
    speed = speed or dict.fromkeys(("memorize", "exponent", "first_clue", "compare"), ())
    again = (row for row in speed["first_clue"] if row["instead"] == "reading the text again")
    for target, row, told, met in (
        ("memorizing at least 0.8 times as fast as a plain prefill, at every length",
         min(speed["memorize"], key=lambda row: row["ratio"], default=None),
         lambda row: f"{ratio(row)} at {row['tokens']:,} tokens, the least", lambda row: row["ratio"] >= 0.8),
        ("seconds of memorizing grow at most as tokens^1.1",
         next((row for row in speed["exponent"] if "exponent" in row), None),
         lambda row: f"tokens^{row['exponent']:.2f}", lambda row: row["exponent"] <= 1.1),
        ("first clue at least 30 times sooner than reading about 8k tokens again",
         next((row for row in again if 7000 < row["tokens"] < 9500), None),
         lambda row: f"{ratio(row)} at {row['tokens']:,} tokens", lambda row: row["ratio"] >= 30),
        ("four answers at once take at most 1.6 times the slowest of them",
         next((row for row in speed["compare"] if row["over"] == "the slowest of the four"), None),
         ratio, lambda row: row["ratio"] <= 1.6),
    ):  # fmt: skip
        rows.append((target, told(row), met(row)) if row else (target, "", None))
    words = {True: "yes", False: "**no**", None: "not measured"}
    columns: list[Column] = [("measured", lambda r: r[1]), ("met", lambda r: words[r[2]])]
    return ["## Targets", table(rows, ("target", lambda r: r[0]), *columns)]


def better_answers(sets: Mapping[str, Results]) -> Row:
    """Answers of memorag above those of every rival, on five sets at least."""
    means = {name: {strategy: r["strategies"].get(strategy, {}).get("f1") for strategy in ("memorag", *RIVALS)}
             for name, r in sets.items()}  # fmt: skip
    judged = {name: found for name, found in means.items() if all(found.values())}
    best = [name for name, found in judged.items()
            if all(found["memorag"]["mean"] > found[rival]["mean"] for rival in RIVALS)]  # fmt: skip
    target = f"F1 of memorag above that of {', '.join(RIVALS)} on five sets at least"
    told = f"on {len(best)} of {len(judged)} sets" + (f": {', '.join(best)}" if best else "") if judged else ""
    return target, told, len(best) >= 5 if judged else None


def trained_memory(results: Results | None) -> list[Row]:
    """A row for each value of `KEPT`."""
    found = []
    for value, wanted in KEPT.items():
        told = ", ".join(f"{aim:.2f} ({at})" for at, aim in wanted.items())
        target = f"{VALUES[value]} of the trained memory at least (ratio) {told}"
        there = {row["wanted_ratio"]: row[value]["mean"] for row in memories(results or {"rows": []})
                 if value in row and results and at_base(results, row, "tokens", "window")}  # fmt: skip
        some = {at: there[at] for at in wanted if at in there}
        measured = ", ".join(f"{mean:.2f} ({at})" for at, mean in some.items())
        met = all(round(mean, 2) >= wanted[at] for at, mean in some.items()) if some else None
        found.append((target, measured, met))
    return found


def memory_decoder(domains: Mapping[str, Results]) -> list[Row]:
    """Rows about perplexity in every domain, and about time."""
    if not domains:
        return []
    means = {name: {row["way"]: row["perplexity"]["mean"] for row in r["test"]} for name, r in domains.items()}
    found = []

    def row(target: str, ours: str, rivals: Sequence[str], least: int) -> None:
        good = [name for name, mean in means.items() if all(mean[ours] < mean[rival] for rival in rivals)]
        told = f"in {len(good)} of {len(means)} domains" + (f": {', '.join(good)}" if good else "")
        found.append((target, told, len(good) >= least))

    every, mixed = len(means), "perplexity of the Memory Decoder, mixed, below that of"
    for rival, name in (("base", "the model alone"), ("rag", "in-context RAG"), ("knn_lm", "the kNN-LM"),
                        ("lora", "LoRA")):  # fmt: skip
        row(f"{mixed} {name} in every domain", "decoder_mixed", [rival], every)
    row(f"{mixed} DAPT in two domains", "decoder_mixed", ["dapt"], 2)
    row(f"{mixed} either alone in every domain", "decoder_mixed", ["base", "decoder"], every)
    row(f"{mixed} one learnt from text or datastore alone, in every domain", "decoder_mixed", ["ce_mixed", "kl_mixed"],
        every)  # fmt: skip
    row("alpha by the router below the best fixed one in every domain", "router", ["fixed"], every)
    zero = [name for name, r in domains.items() if r["alpha_zero"]["exact"]]
    found.append(("alpha 0 is the model alone, exactly", f"in {len(zero)} of {every} domains", len(zero) == every))
    times = {name: one["token"] for name, r in domains.items() for one in r["speed"]
             if one["system"] == "mixed" and one["batch"] == 1}  # fmt: skip
    slow = max(times.values(), key=lambda one: one["ratio"], default=None)
    found.append(("a token with the Memory Decoder takes at most 1.15 times as long as without (batch 1)",
                  "; ".join(f"{name}: {ratio(one)}" for name, one in times.items()),
                  slow["ratio"] <= 1.15 if slow else None))  # fmt: skip
    return found
