"""The report's part about scaling: growth, what a million tokens take, a plan for a billion.

In: results of `memo evaluate scaling`. Out: parts of Markdown, for RESULTS.md and for docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memo.evaluate.report_tables import Column, table
from memo.plots_style import Results, number

THOUSAND = 1000  # millions of tokens of the plan: a billion
WORKERS = 100  # of the plan, a core each
HOUR = 3600
ROOM = 48e9  # bytes of a machine's memory that memories may take, of 64 GB
BEGIN, END = "<!-- {}: written by memo evaluate report -->", "<!-- end -->"


def num(name: str, unit: float = 1) -> Callable[[Any], str]:
    return lambda row: number(row[name] / unit) if name in row else ""


def scaled(results: Results) -> list[str]:
    """The report's part."""
    return ["## Growth", *grown(results), "What a million tokens take:", *million(results),
            "A billion tokens, from these numbers:", *billion(results)]  # fmt: skip


def grown(results: Results) -> list[str]:
    """A table for each thing that grows; … times is to the first row."""
    what = results["what"]

    def times(title: str, name: str) -> Column:
        return f"{title}, times", num(f"{name}_ratio")

    parts = [
        f"The least of {what['repeats']} round{'s' * (what['repeats'] > 1)}; ratio {what['ratio']}, windows of"
        f" {what['window']} tokens."
        " Core-seconds are those of processors at work, which a busy machine changes less than seconds.",
        table(results["documents"], (f"documents of {what['short']} tokens", num("documents")),
              ("seconds / 1,000 tokens", num("seconds_per_1000")), ("core-seconds", num("core_seconds_per_1000")),
              ("a question, s", num("ask_seconds")), times("a question", "ask_seconds"),
              ("memory, MB", num("memory_bytes", 1e6)), times("memory", "memory_bytes"),
              ("Chroma, MB", num("chroma_bytes", 1e6)), times("Chroma", "chroma_bytes"),
              ("slots", num("slots")), ("of them seen", num("slots_seen"))),
        table(results["tokens"], ("tokens of a document", num("tokens")), ("ratio", num("memory_ratio")),
              ("seconds / 1,000 tokens", num("seconds_per_1000")), times("seconds", "seconds_per_1000"),
              ("memory, MB", num("bytes", 1e6)), ("loading, s", num("load_seconds")),
              ("first clue, s", num("clue_seconds")), times("first clue", "clue_seconds")),
        table([row for row in results["visitors"] if row["of"] == "last"], ("visitors at once", num("visitors")),
              ("the last one's first clue, s", num("first_clue_seconds")), ("times alone", num("ratio"))),
        table(results["engines"], (f"engine, files of {what['file']} tokens", lambda row: row["engine"]),
              ("seconds", num("seconds")), times("seconds", "seconds"),
              ("of them putting into the library", num("keep_seconds")), ("start, s", num("start_seconds")),
              ("same library", lambda row: {True: "yes", False: "no"}.get(row.get("same"), ""))),
        table(results["store"], ("entries of a datastore", num("entries")), ("seconds", num("seconds")),
              ("core-seconds", num("core_seconds")), times("entries", "entries"), times("core-seconds", "core_seconds"),
              ("MB", num("bytes", 1e6)), ("index", lambda row: row["index"]), ("its seconds", num("index_seconds"))),
    ]  # fmt: skip
    if exponent := results["store_exponent"]:
        parts.append(f"The time of a datastore grows with the entries to the power of {number(exponent)}.")
    return parts


def million(results: Results) -> list[str]:
    """What a million tokens take."""
    costs = results["costs"]
    held = {"text": "the text", "memory": f"memories at ratio {results['what']['ratio']}",
            "vectors": f"vectors of {costs['passages']:,} passages", "chroma": "Chroma, with the vectors",
            "words": "words", "store": "a kNN datastore"}  # fmt: skip
    took = {"making": "reading, splitting, embedding and memorizing", "embedding": "of it embedding",
            "keeping": "putting them into the library", "store": "a kNN datastore"}  # fmt: skip
    return [
        table(held.items(), ("room", lambda one: one[1]), ("MB", lambda one: number(costs["bytes"][one[0]] / 1e6))),
        table(took.items(), ("work", lambda one: one[1]), ("seconds", lambda one: number(costs["seconds"][one[0]])),
              ("core-seconds", lambda one: number(costs["core_seconds"][one[0]]))),
    ]  # fmt: skip


def billion(results: Results) -> list[str]:
    """The plan: what a billion tokens take, by processors like the one measured."""
    costs = results["costs"]
    room, core = costs["bytes"], costs["core_seconds"]
    hours = {name: THOUSAND * core[name] / HOUR for name in core}
    fed = core["making"] / core["keeping"]
    libraries = -(-THOUSAND * room["memory"] // ROOM)
    rows = [
        ("make memories and passages", f"{number(hours['making'])} core-hours; {WORKERS} workers:"
                                       f" {number(hours['making'] / WORKERS)} hours"),
        ("put them into libraries", f"{number(hours['keeping'])} core-hours; one library feeds on at most"
                                    f" {number(fed)} workers at a time"),
        ("memories", f"{number(THOUSAND * room['memory'] / 1e12)} TB on disk"),
        ("libraries", f"{number(libraries)}, if each may hold {number(ROOM / 1e9)} GB of memories:"
                      f" {number(ROOM / room['memory'])} million tokens each"),
        ("passages", f"{number(THOUSAND * costs['passages'] / 1e6)} million; vectors"
                     f" {number(THOUSAND * room['vectors'] / 1e9)} GB, Chroma"
                     f" {number(THOUSAND * room['chroma'] / 1e9)} GB, words"
                     f" {number(THOUSAND * room['words'] / 1e9)} GB"),
        ("a kNN datastore", f"{number(hours['store'])} core-hours, {number(THOUSAND * room['store'] / 1e12)} TB"),
    ]  # fmt: skip
    return [table(rows, ("part", lambda row: row[0]), ("a billion tokens", lambda row: row[1]))]


def takes_over(results: Results) -> list[str]:
    """From how many tokens on workers are sooner done than one process, their start included."""
    costs, [one, *others] = results["costs"], results["engines"]
    per = (costs["seconds"]["making"] + costs["seconds"]["keeping"]) / 1e6
    rows = []
    for row in others:
        saved = per * (1 - row["seconds_ratio"])
        sooner = f"from {number(row['start_seconds'] / saved)} tokens on" if saved > 0 else "never on this machine"
        rows.append((row["engine"], row["start_seconds"], row["seconds_ratio"], sooner))
    return [table(rows, ("engine", lambda r: r[0]), ("start, s", lambda r: number(r[1])),
                  (f"times the seconds of {one['engine']}", lambda r: number(r[2])),
                  ("sooner done", lambda r: r[3]))]  # fmt: skip


def written(page: str, results: Results) -> str:
    """A page with its measured parts written anew: what stands between the marks `BEGIN` of their names and `END`."""
    for name, make in {"growth": grown, "million": million, "takes over": takes_over, "billion": billion}.items():
        before, begin, rest = page.partition(BEGIN.format(name))
        if begin:
            _, end, after = rest.partition(END)
            page = "\n\n".join([before + begin, *make(results), end + after])
    return page
