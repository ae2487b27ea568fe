"""The strategies: seven ways to answer a question, one signature each.

In: an `Ask`. Out: a Python generator that yields events, lists of prompts, and last the answer's own prompt. For a list
of prompts it is sent back the finished streams. So a strategy never waits by itself, and the pipeline can advance
several of them in one batch.

    memorag       clues from memory; question, clues, where in memory the question looked and the names that lead on
                  find the passages
    rag           the question is searched; answer from the passages
    hyde          a made-up answer is searched (mean with the question; arXiv 2212.10496)
    rq_rag        simpler questions are made and searched (arXiv 2404.00610)
    full_context  the documents themselves, as far as they fit
    memory_only   the memory, nothing else
    closed_book   nothing

Every strategy gets the same passage budget, the same answer prompt and the same decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memo import clues as recall
from memo import names
from memo.errors import NothingToAsk
from memo.events import Clue, CluesRecalled, Event, Found, PassagesFound
from memo.generate import Generator as TextGenerator
from memo.generate import Prompt, Stream
from memo.search import Query, Ranked, fuse, point, within

if TYPE_CHECKING:
    import torch

    from memo.attention import Slots
    from memo.library import Library
    from memo.memory import Composed, MemoryModel
    from memo.settings import Settings

SYSTEM = "You answer questions from the given passages, briefly and exactly."
ASK = "{passages}\n\nAnswer in one or two sentences, from the passages above only.\nQuestion: {question}"
ASK_DOCUMENT = "{document}\n\nAnswer in one or two sentences, from the text above only.\nQuestion: {question}"
ASK_MEMORY = "Answer from the document above, in one or two sentences.\n\nQuestion: {question}"
ASK_NOTHING = "Answer in one or two sentences.\nQuestion: {question}"
HYDE = "Write a short passage, as from a book or report, that answers this question.\nQuestion: {question}"
REFINE = "Split this question into up to three simpler questions, one a line.\nQuestion: {question}"
STAND_ALONE = (
    "Rewrite the last question so that it can be understood without the conversation. "
    "Write only the question.\n\n{history}\nLast question: {question}"
)

QUESTION_TOKENS = 400  # the longest question
# Chosen on train splits (hotpotqa, 2wiki, musique, squad, fairytaleqa) for recall@3
CLUE_WEIGHT = 0.1  # of all clues together; the question's own ranking has 1
POINTER_WEIGHT = 0.2  # of where in memory the question looked

Steps = Generator[Event | list[Prompt] | Prompt, list[Stream], None]


@dataclass
class Ask:
    """A question on its way through one strategy, and what has been found for it so far."""

    question: str
    strategy: str
    settings: Settings
    library: Library
    generator: TextGenerator
    memory_model: Callable[[], MemoryModel]
    edited: tuple[Clue, ...] | None = None  # clues the person has chosen, in place of recalling
    clues: tuple[Clue, ...] = ()
    ranked: list[Ranked] = field(default_factory=list)  # every passage that was found, best first
    passages: tuple[Found, ...] = ()  # those that fit the budget, in document order
    notes: list[str] = field(default_factory=list)
    memory: Composed | None = None
    looked: torch.Tensor | None = None  # (layers, M) where in memory the question looked

    def compose(self) -> Composed:
        """The memory for this question: all documents, or the most relevant that fit (noted)."""
        if self.memory is None:
            self.memory = self.library.memory(self.memory_model()).compose(relevant(self.library, self.question))
            if self.memory.left_out:
                left = ", ".join(self.library.entry(d).name for d in self.memory.left_out)
                self.notes.append(f"Not all memories fit the model together; left out as least relevant: {left}.")
        return self.memory

    def names(self) -> tuple[Clue, ...]:
        """Names that lead on from what the question itself finds; none where there is but one document."""
        library = self.library
        if len(library.documents) < 2:
            return ()
        [hits] = library.rank([Query("question", (self.question,))], names.READ)
        texts = [library.text_of(hit["document"], hit["start"], hit["end"]) for hit in hits]
        return names.read(self.question, list(zip(hits, texts, strict=True)))

    def _led(self, name: Clue) -> list[dict[str, Any]]:
        """What a name finds in other documents than its own, and the nearest passage there."""
        query, home = Query(name.text, (name.text,)), names.home_of(name)
        [there] = self.library.rank([query], 1, [home])
        [away] = self.library.rank([query], among=[one for one in self.library.documents if one != home])
        return there + away

    def search(self, queries: Sequence[Query], pointers: bool = False, leading: Sequence[Clue] = ()) -> PassagesFound:
        """Looks the queries up, fuses the rankings, keeps what fits.

        pointers: also where the question looked. leading: names to look up as well.
        """
        library = self.library
        hits = library.rank(queries)
        rankings = [(query.label, query.weight, found) for query, found in zip(queries, hits, strict=True)]
        if leading:
            others = [hit for found in hits for hit in found]
            led = [self._led(name) for name in leading]
            rankings.append(("names", names.NAME_WEIGHT, names.ranking(leading, led, others)))
        if pointers and self.memory is not None:
            there = [document for document in self.memory.documents if document in library.documents]
            passages = [passage for document in there for passage in library.passages(document)]
            strengths = recall.pointers(self.looked, self.memory, passages)
            rankings.append(("memory", POINTER_WEIGHT, point(strengths, passages)))
        return self.keep(rankings)

    def keep(self, rankings: Sequence[tuple[str, float, list[dict[str, Any]]]]) -> PassagesFound:
        """Fuses rankings (label, weight, passages best first), keeps what fits the budget."""
        self.ranked, library = fuse(rankings), self.library
        room = self.generator.max_positions - self.settings.answer_tokens - QUESTION_TOKENS - 100
        budget = min(self.settings.context_tokens, room)
        self.passages = within(self.ranked, library.text_of, self.generator.count, budget, list(library.documents))
        return PassagesFound(self.strategy, self.passages)

    def prompt(self, system: str, user: str, max_tokens: int, prefix: str = "", stop_at: int = 0) -> Prompt:
        return Prompt((("system", system), ("user", user)), max_tokens, prefix, stop_at=stop_at)

    def answer_prompt(self) -> Prompt:
        """The one prompt that every strategy with passages ends in."""
        shown = []
        for found in self.passages:
            name = self.library.entry(found.document).name
            place = f"{name}, page {found.page}" if found.page else name
            shown.append(f"[{place}]\n{found.text.strip()}")
        user = ASK.format(passages="\n\n".join(shown), question=self.question)
        return self.prompt(SYSTEM, user, self.settings.answer_tokens)


def relevant(library: Library, question: str) -> list[str]:
    """Documents with passages near the question, the nearest first."""
    [hits] = library.rank([Query("question", (question,))], depth=100)
    return list(dict.fromkeys(hit["document"] for hit in hits))


def leading(clues: Sequence[Clue]) -> list[Clue]:
    """Those that are names."""
    return [clue for clue in clues if clue.kind == "name"]


def clue_queries(question: str, clues: Sequence[Clue], weight: float = CLUE_WEIGHT) -> list[Query]:
    """The question and every clue but names as queries; a clue's share of their `weight` follows from its score."""
    clues = [clue for clue in clues if clue.kind != "name"]
    shares = [2.718 ** max(-4.0, clue.score) for clue in clues]
    total = sum(shares) or 1.0
    queries = [Query("question", (question,))]
    return queries + [
        Query(clue.text, (clue.text,), weight * share / total) for clue, share in zip(clues, shares, strict=True)
    ]


def memorag(ask: Ask) -> Steps:
    """Clues from memory, then search by question and clues, then an answer from the passages."""
    memory = ask.compose()
    if ask.edited is None:
        prompts = recall.prompts(ask.question, memory, ask.settings.clue_tokens)
    else:
        prompts = {"draft": recall.look(ask.question, memory)}
    first = [] if memory.usual is not None else [recall.neutral(memory)]  # once for each set of documents
    streams = yield [*prompts.values(), *first]
    if first and not streams[-1].stopped:
        recall.learn_usual(memory, streams[-1])
    recalled = dict(zip(prompts, streams, strict=False))
    ask.looked = recalled["draft"].looked
    if ask.edited is None:
        leading_on = ask.names()
        known = {recall.key_of(name.text) for name in leading_on}
        found = recall.collect(recalled, ask.question, memory)
        ask.clues = (*(clue for clue in found if recall.key_of(clue.text) not in known), *leading_on)
    else:
        ask.clues = ask.edited
    yield CluesRecalled(ask.clues, final=True)
    yield ask.search(clue_queries(ask.question, ask.clues), pointers=True, leading=leading(ask.clues))
    yield ask.answer_prompt()


def rag(ask: Ask) -> Steps:
    """The question is searched, the answer comes from the passages."""
    yield ask.search([Query("question", (ask.question,))])
    yield ask.answer_prompt()


def hyde(ask: Ask) -> Steps:
    """A passage that could answer the question is made up and searched, in the mean with the question."""
    user = HYDE.format(question=ask.question)
    [made_up] = yield [ask.prompt("You write plainly.", user, ask.settings.clue_tokens)]
    yield ask.search([Query("made-up answer", tuple(t for t in (ask.question, made_up.text.strip()) if t))])
    yield ask.answer_prompt()


def rq_rag(ask: Ask) -> Steps:
    """Simpler questions are made from the question; all are searched."""
    user = REFINE.format(question=ask.question)
    [stream] = yield [ask.prompt("You write plainly.", user, ask.settings.clue_tokens, "1. ", stop_at=4)]
    refined = list(dict.fromkeys(stream.text[a:b] for a, b in recall.lines(stream.text)))[:3]
    queries = [Query("question", (ask.question,))]
    yield ask.search(queries + [Query(text, (text,), 1 / len(refined)) for text in refined])
    yield ask.answer_prompt()


def full_context(ask: Ask) -> Steps:
    """The documents themselves, in order, cut (and said so) where the generator's positions end."""
    frame = ask.generator.count(SYSTEM + ASK_DOCUMENT.format(document="", question=ask.question)) + 60
    room = max(0, ask.generator.max_positions - ask.settings.answer_tokens - frame)
    texts = [ask.library.text(document) for document in list(ask.library.documents)]
    whole = "\n\n".join(texts)
    size = ask.generator.count(whole)
    shown = whole
    while (count := ask.generator.count(shown)) > room:
        shown = shown[: int(len(shown) * room / count * 0.995)]
    if len(shown) < len(whole):
        ask.notes.append(f"Only the first {count:,} of {size:,} tokens fit the model; the rest was not read.")
    user = ASK_DOCUMENT.format(document=shown, question=ask.question)
    yield ask.prompt(SYSTEM, user, ask.settings.answer_tokens)


def memory_prompt(question: str, max_tokens: int, slots: Slots | None = None) -> Prompt:
    """The prompt that answers from a memory alone."""
    user = ASK_MEMORY.format(question=question)
    return Prompt((("system", recall.SYSTEM), ("user", user)), max_tokens, slots=slots)


def memory_only(ask: Ask) -> Steps:
    """The memory before the question, no passages."""
    yield memory_prompt(ask.question, ask.settings.answer_tokens, ask.compose().slots)


def closed_book(ask: Ask) -> Steps:
    """What the generator knows by itself."""
    yield ask.prompt("You are brief and exact.", ASK_NOTHING.format(question=ask.question), ask.settings.answer_tokens)


STRATEGIES: dict[str, Callable[[Ask], Steps]] = {
    function.__name__: function
    for function in (memorag, rag, hyde, rq_rag, full_context, memory_only, closed_book)
}
DEFAULT_COMPARISON = ("memorag", "rag", "full_context", "closed_book")


def stand_alone(question: str, history: Sequence[tuple[str, str]]) -> Prompt:
    """The prompt that makes a follow-up question stand alone. history: (question, answer) pairs, oldest first."""
    told = "\n".join(f"Question: {q}\nAnswer: {a[:300]}" for q, a in history[-3:])
    user = STAND_ALONE.format(history=told, question=question)
    return Prompt((("system", "You rewrite questions."), ("user", user)), 48, stop_at=1)


def clean_question(question: str) -> str:
    """The question without surrounding space.

    Raises:
        NothingToAsk: it has no letter or digit, or is too long.
    """
    question = " ".join(question.split())
    if not any(c.isalnum() for c in question):
        raise NothingToAsk("There is no question.", "Type one, then ask.")
    if len(question) > 5 * QUESTION_TOKENS:
        raise NothingToAsk("The question is too long.", "Put long texts in as documents.")
    return question
