"""Looking up one sentence in a long text: a pass key, or a made-up fact, at a chosen depth.

In: a text. Out: the text with the sentences put in at sentence boundaries, and for each how many tokens of its answer
are the top prediction after its first words (teacher-forced), and whether all are. Names and places are made up, so
nothing can be known from elsewhere.

    ... rose at six. The pass key is 48213. Remember it. The bay was ...    asked:  The pass key is | 48213
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memo.evaluate.probes import Context, score
from memo.memory import MemoryModel
from memo.passages import sentences

DEPTHS = (0, 25, 50, 75, 100)  # percent of the text before the sentence
KINDS = ("passkey", "fact")

FACTS = (
    ("The lighthouse at {place} was built by", "{name}", "."),
    ("The ferryman {name} was born in", "{place}", "."),
    ("{name} sold the orchard at {place} for", "{amount}", " crowns."),
    ("The clockmaker of {place} was called", "{name}", "."),
    ("The number of bees that {name} keeps is", "{amount}", "."),
    ("The treasure of {name} is buried at", "{place}", "."),
)
NAMES = (
    "Oskar Vennick", "Lidia Marrowby", "Teodor Quillan", "Anselm Dragovic", "Berit Holloway", "Casimir Oyelaran",
    "Delphine Strand", "Emeka Thorsby", "Fenella Krantz", "Gideon Applewhite", "Hanneke Ruiz", "Ignatius Pell",
)  # fmt: skip
PLACES = (
    "Harnsley", "Oberlund", "Kestrel Ford", "Vintermoor", "Saltash Row", "Quernby", "Aldermere", "Tolvania",
    "Brackenholt", "Pellworth", "Ysterdam", "Cormorant Bay",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """stem: what is asked with. answer: what is looked up."""

    kind: str
    stem: str
    answer: str
    rest: str

    @property
    def sentence(self) -> str:
        return f"{self.stem} {self.answer}{self.rest}"


def make(kind: str, seed: str) -> Needle:
    """A needle of one of the `KINDS`; the same for the same seed."""
    drawn = random.Random(f"{kind} {seed}")
    amount = str(drawn.randrange(10000, 100000))
    if kind == "passkey":
        return Needle(kind, "The pass key is", amount, ". Remember it.")
    words = {"name": drawn.choice(NAMES), "place": drawn.choice(PLACES), "amount": amount}
    stem, answer, rest = (part.format(**words) for part in drawn.choice(FACTS))
    return Needle(kind, stem, answer, rest)


def insert(text: str, needles: Sequence[tuple[Needle, int]]) -> str:
    """Puts each needle at the sentence boundary nearest to its depth in percent. What is no whole sentence at the end
    of the text goes first."""
    ends = [end for _, end in sentences(text)]
    text = text[: ends[-2]] if len(ends) > 1 else text
    boundaries = [0, *(end for end in ends if end <= len(text))]
    places = [(min(boundaries, key=lambda b: abs(b - depth / 100 * len(text))), needle) for needle, depth in needles]
    for at, needle in sorted(places, key=lambda place: place[0], reverse=True):  # from behind: places stay right
        text = f"{text[:at]} {needle.sentence}{text[at:]}" if at else f"{needle.sentence} {text}"
    return text


def look_up(model: MemoryModel, context: Context, needle: Needle) -> dict[str, float]:
    """share: of the answer's tokens that are the top prediction after the stem. exact: 1 if all are."""
    ids, offsets = model.encode(f"{needle.stem} {needle.answer}", start=False)
    begins = len(needle.stem) + 1  # a token that is only the space before the answer does not count
    first = next(i for i, (_, end) in enumerate(offsets) if end > begins)
    _, hits = score(model, context, ids, first)
    return {"share": hits.float().mean().item(), "exact": float(hits.all())}
