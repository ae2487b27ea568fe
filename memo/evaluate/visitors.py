"""Many visitors of the real app, each with a document that holds a secret: what it keeps, what it mixes up, how long.

In: how many visitors, how many at once, minutes. Out: for each kind of request how many were answered, refused with a
sentence or failed, and the seconds; replies that held another's secret or document; the memory of the server before
the visitors came and after all of them had left.

    warm-up: visitors who come, ask in every way and leave ──> memory before
    every visitor hands in a document, asks, and stays; then all of them ask in turn until the minutes are over
    all leave ──> memory after
"""

from __future__ import annotations

import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.evaluate.kills import WORDS
from memo.evaluate.served import Served, call, serving
from memo.models import chosen
from memo.settings import from_environment

if TYPE_CHECKING:
    import httpx

WAIT = 600.0  # seconds until a request counts as failed
PAUSE = 20.0  # seconds until the app has put away what is left of calls
QUESTIONS = ("What is the code of the lockbox?", "Who has the key, and since when?", "Where does the lockbox stand?")
WAYS = ("rag", "memorag", "full_context", "hyde", "closed_book")  # strategies, in turn


@dataclass
class Visitor:
    """One of them. secret: stands in their document and nowhere else."""

    secret: str
    text: str
    name: str
    token: str = ""
    document: str = ""
    asked: int = 0


@dataclass
class Seen:
    """What came of the requests."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    sentences: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, outcome: str, seconds: float, said: str = "") -> None:
        with self.lock:
            self.outcomes.setdefault(kind, Counter())[outcome] += 1
            self.seconds.setdefault(kind, []).append(seconds)
            if outcome == "refused":
                self.sentences[f"{kind}: {said}"] += 1
            if outcome == "failed":
                self.failures.append(f"{kind}: {said}"[:300])

    def told(self) -> dict[str, Any]:
        """Outcomes and seconds, a kind a row."""
        return {
            kind: {name: counts[name] for name in ("answered", "refused", "failed")} | spread(self.seconds[kind])
            for kind, counts in sorted(self.outcomes.items())
        }


def spread(seconds: list[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    every = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else seconds * 19
    return {"p50_seconds": round(statistics.median(seconds), 3), "p95_seconds": round(every[18], 3)}


def invented(count: int, draw: random.Random, apart: bool = False) -> list[Visitor]:
    """Visitors whose documents are about the same things: only a mix-up would bring another's secret.

    apart: each begins with another question, so that already the first ones are asked in every way.
    """
    made = []
    for number in range(count):
        secret = f"QX{draw.getrandbits(40):010x}"
        filler = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(12)]
        filler[4:4] = [f"The code of the lockbox is {secret}.", "The lockbox stands behind the old chapel."]
        filler.append(f"Since {1900 + number % 100} the key to {secret} is with the council.")
        made.append(Visitor(secret, " ".join(filler), f"visitor {number}.txt", asked=number * apart))
    return made


def strange(reply: Any, visitor: Visitor, secrets: frozenset[str]) -> list[str]:
    """What in a reply is not this visitor's: secrets of others, passages and citations of other documents."""
    told = json.dumps(reply, ensure_ascii=False)
    found = [secret for secret in secrets if secret != visitor.secret and secret in told]
    for answer in reply.values() if "answer" not in reply else [reply]:
        for passage in answer["passages"]:
            if passage["document"] != visitor.document or passage["text"] not in visitor.text:
                found.append(f"passage of {passage['document']}")
        sources = [citation["source"] for citation in answer["citations"]]
        sources += [source for clue in answer["clues"] for source in clue["sources"]]
        found += [f"place in {one['document']}" for one in sources if one["document"] != visitor.document]
    return found


class Crowd:
    """Visitors at the door of one app."""

    def __init__(self, web: httpx.Client, visitors: list[Visitor], seen: Seen, draw: random.Random) -> None:
        self.web, self.visitors, self.seen, self.draw = web, visitors, seen, draw
        self.secrets = frozenset(visitor.secret for visitor in visitors)

    def request(self, kind: str, name: str, *values: Any) -> Any:
        """A request that is to be answered: what came, None if nothing did."""
        began = time.monotonic()
        outcome, came = call(self.web, name, *values)
        self.seen.note(kind, outcome, time.monotonic() - began, "" if outcome == "answered" else str(came))
        return came if outcome == "answered" else None

    def come(self, visitor: Visitor) -> None:
        """Hands in the document and asks a first time."""
        if made := self.request("memorize", "memorize", visitor.text, visitor.name, ""):
            visitor.token, visitor.document = made["token"], made["document"]["id"]
            self.ask(visitor)

    def ask(self, visitor: Visitor) -> None:
        """The next question of this visitor, in the next way; now and then something that cannot be answered."""
        number = visitor.asked = visitor.asked + 1
        question, way = QUESTIONS[number % len(QUESTIONS)], WAYS[(number + len(visitor.name)) % len(WAYS)]
        if reply := self.request("ask", "ask", question, visitor.token, way):
            self.check(visitor, reply)
        if number % 4 == 0 and (reply := self.request("compare", "compare", question, visitor.token, ["rag", way])):
            self.check(visitor, reply)
        if number % 2 and (listed := self.request("documents", "documents", visitor.token)):
            ids = [one["id"] for one in listed["documents"]]
            self.keep([] if ids == [visitor.document] else [f"documents {ids}"])
        if number % 3 == 1:
            self.request("nonsense", *self.nonsense(visitor))

    def nonsense(self, visitor: Visitor) -> tuple[Any, ...]:
        """A request to be refused."""
        forged = "".join(self.draw.choices("0123456789abcdef", k=32))
        return self.draw.choice((
            ("ask", QUESTIONS[0], forged, "rag"), ("documents", "../" + visitor.token), ("forget", forged, ""),
            ("ask", " ", visitor.token, "rag"), ("ask", QUESTIONS[0], visitor.token, "magic"),
            ("memorize", "", "empty.txt", ""), ("forget", visitor.token, "../../library.json"),
            ("compare", QUESTIONS[0], visitor.token, []), ("ask", "why " * 3000, visitor.token, "rag"),
        ))  # fmt: skip

    def check(self, visitor: Visitor, reply: Any) -> None:
        self.keep(strange(reply, visitor, self.secrets))

    def keep(self, found: list[str]) -> None:
        with self.seen.lock:
            self.seen.mixed_up += found

    def leave(self, visitor: Visitor) -> None:
        if visitor.token:
            self.request("forget", "forget", visitor.token, "")


def visit(
    served: Served, count: int, at_once: int, minutes: float, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Sends the visitors to a running app. Half as many come before them, to warm it up."""
    import httpx

    draw, seen = random.Random(seed), Seen()
    with (
        closing(httpx.Client(base_url=served.url, timeout=WAIT, limits=httpx.Limits(max_connections=None))) as web,
        ThreadPoolExecutor(at_once) as clients,
    ):
        early = Crowd(web, invented(max(2 * at_once, count // 2), draw, apart=True), Seen(), draw)

        def come_and_leave(visitor: Visitor) -> None:
            early.come(visitor)
            early.leave(visitor)

        list(clients.map(come_and_leave, early.visitors))
        time.sleep(PAUSE)
        before, load = served.held(), [os.getloadavg()[0]]
        tell(f"warm: {before}")
        crowd = Crowd(web, invented(count, draw), seen, draw)
        began = time.monotonic()
        list(clients.map(crowd.come, crowd.visitors))
        full, all_in = served.held(), time.monotonic() - began
        tell(f"{count} visitors are in after {all_in:.0f} seconds: {full}")
        load.append(os.getloadavg()[0])
        turn, least = iter(range(1 << 60)), len([v for v in crowd.visitors if v.token])

        def keep_asking(_: int) -> None:
            there = [visitor for visitor in crowd.visitors if visitor.token]
            while there and time.monotonic() - began < 60 * minutes:
                with seen.lock:
                    number = next(turn)
                crowd.ask(there[number % len(there)])

        list(clients.map(keep_asking, range(at_once)))
        took = time.monotonic() - began
        load.append(os.getloadavg()[0])
        list(clients.map(crowd.leave, crowd.visitors))
        time.sleep(PAUSE)
        after = served.held()
        tell(f"all have left: {after}")
    requests = sum(counts.total() for counts in seen.outcomes.values())
    return {
        "visitors": count, "let_in": least, "at_once": at_once, "seconds": round(took, 1),
        "all_in_after_seconds": round(all_in, 1), "requests": requests, "kinds": seen.told(),
        "refusals": dict(seen.sentences.most_common(20)), "failures": seen.failures[:20],
        "mixed_up": len(seen.mixed_up), "mixed_up_examples": seen.mixed_up[:5],
        "memory": {"before": before, "with_all": full, "after": after,
                   "change": round(after["bytes"] / before["bytes"] - 1, 4)},
        "load_average": [round(one, 2) for one in load],
    }  # fmt: skip


def evaluate(
    folder: Path, count: int, at_once: int, minutes: float, seed: int, tell: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Starts the app with room for all of them, and sends them in. environment: more variables of it

    Raises:
        BackendError: the app does not start, or ends.
    """
    room = {"MEMO_DATA": str(folder / "sessions"), "MEMO_MAX_SESSIONS": str(count + 2 * at_once)}
    settings = from_environment({**os.environ, **(environment or {})})
    names = chosen(settings)
    with serving({**room, **(environment or {})}, folder / "app.log") as served:
        found = visit(served, count, at_once, minutes, seed, tell)
    return {"model": names["memory_model"], "answer_tokens": settings.answer_tokens, **found}
