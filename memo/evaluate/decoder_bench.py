"""What a measurement of the Memory Decoder is made of: models trained, and log p of every token by each of them.

In: a language model, tokens to learn, texts to predict, a plan. Out: parts of `memo.evaluate.decoder`, each measured
once: `rows` keeps what is done, and the folder `work` holds stores, runs of training with their checkpoints, decoders.

    log p(x_t) of the mix with the datastore = log(weight p_kNN(x_t) + (1 - weight) p_LLM(x_t))
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memo import datastore, decoder, knn, targets
from memo.datastore import Block
from memo.errors import ModelError
from memo.evaluate import adaptation, in_context, perplexity, routing, speed_decoder
from memo.evaluate.adaptation import Rivals
from memo.evaluate.rows import Rows
from memo.evaluate.speed_memory import slope
from memo.evaluate.turns import short
from memo.models import fingerprint
from memo.train import decode
from memo.train.recipe import Distilling
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BUILT = 40_000  # tokens of the larger of two stores whose building is timed; the other has half of them
ROUNDING = 2  # roundings of a logit that alpha 0 may differ by: both heads are one product then

Logps = dict[str, np.ndarray]  # of a text, "held", "test" or "other": (n,) log p of its tokens, nats


@dataclass(frozen=True)
class Text:
    """Tokens to predict, and the blocks of them that are."""

    tokens: TokenFile
    blocks: Sequence[Block]

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) int64"""
        return perplexity.labels(self.tokens, self.blocks)

    @cached_property
    def documents(self) -> list[int]:
        """(n,) the document of each token"""
        counts = [(self.tokens.document_of(one.first), one.end - one.first) for one in self.blocks]
        return [document for document, count in counts for _ in range(count)]


def about(tokens: TokenFile) -> dict[str, int]:
    """What tells a text from others."""
    return {"tokens": len(tokens.ids), "documents": len(tokens.bounds) - 1,
            "sum": int(np.asarray(tokens.ids).astype(np.uint64).sum())}  # fmt: skip


def first_tokens(tokens: TokenFile, count: int) -> TokenFile:
    """A corpus up to its `count`th token."""
    end = min(count, tokens.bounds[-1])
    return TokenFile(tokens.ids[:end], (*(bound for bound in tokens.bounds if bound < end), end), (end,))


def stores(llm: PreTrainedModel, tokens: TokenFile, sizes: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """Seconds to build a store and its index, a row a size: the less of two rounds, the first of which is slower."""
    rows = dict[int, dict[str, Any]]()
    for size in (*sizes, *sizes):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            began, core = time.perf_counter(), time.process_time()
            store = datastore.build(llm, first_tokens(tokens, size), Path(folder))
            read, core = time.perf_counter(), time.process_time() - core
            index = knn.index(store, device=llm.device)
            took = {"seconds": read - began, "core_seconds": core, "index_seconds": time.perf_counter() - read}
            held = sum(path.stat().st_size for path in Path(folder).glob("keys-*"))
        before = rows.get(size, took)
        least = {name: short(min(seconds, before[name])) for name, seconds in took.items()}
        rows[size] = {"entries": store.size, "index": index.kind, "bytes": held, **least}
    return list(rows.values())


@dataclass
class Bench:
    """What every part of the measurement needs. `rows` keeps what is done; `work` holds stores and runs of training."""

    domain: str  # for people to read
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    learnt: TokenFile
    texts: dict[str, Text]  # "held", "test", and maybe "other"
    plan: Distilling
    rivals: Rivals
    work: Path
    accelerator: Accelerator
    rows: Rows
    tell: Callable[[str], None]
    start: str = ""  # what decoders start from (`decode.make`)

    def unit(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is measured once, also over runs that are killed."""
        if key not in self.rows.done:
            self.tell(f"Measuring {key}.")
            self.rows.add(key, [measure()])
        return self.rows.done[key][0]

    def logps(self, key: str, which: Sequence[str], make: Callable[[], Callable[[Text], np.ndarray]]) -> Logps:
        """log p of the tokens of some texts. make: called if one of them is missing -> what measures a text."""
        if any(f"{key}, {one}" not in self.rows.done for one in which):
            read = make()
            for one in which:
                self.unit(f"{key}, {one}", lambda one=one: {"logp": read(self.texts[one]).round(6).tolist()})
        return {one: np.array(self.rows.done[f"{key}, {one}"][0]["logp"]) for one in which}

    @property
    def judged(self) -> list[str]:
        """The texts that nothing is chosen on."""
        return [one for one in self.texts if one != "held"]

    @property
    def run(self) -> dict[str, Any]:
        """What determines a run of training besides its plan."""
        return {"model": fingerprint(self.llm), "corpus": about(self.learnt)}

    # --- the datastore and decoders from it

    @cached_property
    def made(self) -> dict[str, Any]:
        """The Memory Decoder as `memo decode-train` makes it. -> what its decoder.json says, and the seconds of each
        stage; none where it went on from an earlier start, whose seconds are not known"""
        folder, began = self.work / "decoder", dict[str, float]()

        def make() -> dict[str, Any]:
            fresh = not folder.exists()
            told = decode.make(
                self.llm, self.tokenizer, self.learnt, self.texts["held"].tokens, folder, self.plan, self.accelerator,
                {"name": self.domain}, lambda progress: began.setdefault(progress.stage, time.perf_counter()),
                self.start,
            )  # fmt: skip
            pairs = itertools.pairwise(began.items())
            return told | {"stages": {name: short(end - at) for (name, at), (_, end) in pairs} if fresh else {}}

        return self.unit("the decoder", make)

    @cached_property
    def index(self) -> knn.Index:
        assert self.made
        store = datastore.build(self.llm, self.learnt, self.work / "decoder" / "work" / "store")
        return knn.index(store, device=self.llm.device)

    @cached_property
    def decoder(self) -> PreTrainedModel:
        assert self.made
        return decoder.load(self.work / "decoder", self.llm, self.tokenizer)

    def distilled(self, name: str, kl_weight: float) -> PreTrainedModel:
        """A decoder of another objective, of the same size, saved and loaded as any is."""
        assert self.made
        plan, folder, known = replace(self.plan, kl_weight=kl_weight), self.work / name, None
        if kl_weight:
            known = targets.Targets(self.index.store, self.work / "decoder" / "work" / "targets")
        first = decoder.load(self.start, self.llm, self.tokenizer) if self.start else None
        student, weights = decoder.student(self.llm, plan.layers, first)
        self.train(name, student, weights, plan, known)
        decoder.save(student, self.llm, self.tokenizer, folder, {"plan": asdict(plan)})
        return decoder.load(folder, self.llm, self.tokenizer)

    def train(
        self, name: str, model: PreTrainedModel, weights: torch.nn.Module, plan: Distilling,
        known: targets.Targets | None = None,
    ) -> None:  # fmt: skip
        """Trains, and keeps what it took as a unit."""
        run = self.work / name / "run"
        took = adaptation.train(model, weights, self.index.store, plan, run, self.run, self.accelerator, known)
        self.unit(f"training {name}", lambda: took)

    def adapted(self, name: str, rates: Sequence[float], make: Callable[[], Any]) -> PreTrainedModel:
        """The model's own weights trained, at the learning rate that does best on the held-out text in short trials."""
        plan, held = replace(self.plan, kl_weight=0.0), self.texts["held"]

        def loss(model: PreTrainedModel) -> float:
            return -float(perplexity.read(model, held.tokens, held.blocks).logp.mean())

        def trial(rate: float) -> dict[str, Any]:
            return {"loss": adaptation.tried(make, self.index.store, replace(plan, learning_rate=rate),
                                             self.rivals.trial, self.work / name / f"trial-{rate:g}", self.run,
                                             self.accelerator, loss)}  # fmt: skip

        best = min(rates, key=lambda rate: self.unit(f"{name} at {rate:g}", lambda: trial(rate))["loss"])
        model, weights = make()
        self.train(name, model, weights, replace(plan, learning_rate=best))
        return model.to(self.llm.dtype).eval().requires_grad_(False)

    # --- measuring

    def reading(self, make: Callable[[], PreTrainedModel]) -> Callable[[], Callable[[Text], np.ndarray]]:
        """For `logps`: a model that is made when it is needed, and reads."""

        def maker() -> Callable[[Text], np.ndarray]:
            model = make()
            return lambda text: perplexity.read(model, text.tokens, text.blocks).logp

        return maker

    def with_neighbours(self, text: Text) -> np.ndarray:
        """log(weight p_kNN + (1 - weight) p_LLM)"""
        choice, plain = self.made["neighbours"], perplexity.read(self.llm, text.tokens, text.blocks, keys=True)
        found = self.index.search(plain.keys, choice["k"])
        voted = knn.distribution(found, self.index.store.values, choice["temperature"]).of(text.labels)
        return knn.mixed(voted, plain.logp, choice["weight"])

    def with_passages(self) -> Callable[[Text], np.ndarray]:
        positions = self.llm.config.max_position_embeddings
        passages = self.passages

        def read(text: Text) -> np.ndarray:
            written = in_context.prompts(passages, text.tokens, text.blocks, self.rivals, positions)
            return perplexity.read(self.llm, *written).logp

        return read

    @cached_property
    def passages(self) -> in_context.Passages:
        return in_context.Passages(self.learnt, self.tokenizer, self.rivals.passage)

    def also_learnt(self) -> dict[str, int]:
        """How many documents of each text the learnt corpus has too: those say nothing about new text."""
        found = {}
        for one in self.judged:
            tokens = self.texts[one].tokens
            numbers, spans = datastore.context_numbers(tokens), list(itertools.pairwise(tokens.bounds))
            some = [spans[document] for document in set(self.texts[one].documents)]
            masks = [self.passages.allowed(np.asarray(tokens.ids[a:b]), numbers[a:b]) for a, b in some]
            found[one] = sum(bool((mask == 0).any()) for mask in masks)
        return found

    def router(self, held: Logps, alone: Logps) -> tuple[dict[str, Any], Logps]:
        """The router against the best one alpha, both of the same half of the held-out text. -> about both; log p"""
        text = self.texts["held"]
        some, half = routing.halves(text.blocks)
        llm, memory = half(held["held"]), half(alone["held"])
        fixed = perplexity.best_alpha(llm, memory)

        def measure() -> dict[str, Any]:
            mixed = routing.made(self.llm, self.decoder, self.plan.seed)
            size = routing.train(mixed, text.tokens, some, self.rivals, self.plan.seed, self.work / "router",
                                 self.run, self.accelerator)  # fmt: skip
            found: dict[str, Any] = {"parameters": size, **adaptation.log_of(self.work / "router")}
            for one, of in self.texts.items():
                logp, alphas = routing.read(mixed, of.tokens, of.blocks)
                found[one] = {"logp": logp.round(6).tolist(), "alpha": round(float(alphas.mean()), 4),
                              "alphas": np.quantile(alphas, (0.1, 0.5, 0.9)).round(4).tolist()}  # fmt: skip
            return found

        told = self.unit("the router", measure)
        logps = {one: np.array(told[one]["logp"]) for one in self.texts}
        learnt = {"router": half(logps["held"]), "fixed": perplexity.mixed(llm, memory, fixed)}
        return {
            **{name: told[name] for name in ("parameters", "tokens", "seconds")}, "fixed_alpha": fixed,
            "learnt_on": {name: round(perplexity.perplexity(logp), 4) for name, logp in learnt.items()},
            **{one: {name: told[one][name] for name in ("alpha", "alphas")} for one in self.judged},
        }, logps  # fmt: skip

    def alpha_zero(self) -> dict[str, Any]:
        """Whether the mix at alpha 0 is the language model.

        Raises:
            ModelError: it is not.
        """
        text, largest, tolerated = self.texts["test"], 0.0, 0.0
        mixed = decoder.Mixed(self.llm, self.decoder, 0.0)
        for block in text.blocks[:4]:
            ids = text.tokens.piece(block.start, block.end - block.start)[None].to(self.llm.device)
            with torch.no_grad():
                plain, ours = self.llm(input_ids=ids).logits.float(), mixed(input_ids=ids).logits.float()
            largest = max(largest, float((plain.log_softmax(dim=-1) - ours).abs().max()))
            rounding = torch.finfo(self.llm.dtype).eps * float(plain.abs().max())
            tolerated = max(tolerated, ROUNDING * rounding)
        if largest > tolerated:
            raise ModelError(f"The mix at alpha 0 differs from the language model by {largest:g} nats.")
        return {"exact": largest == 0, "largest_difference": largest}

    def building(self) -> dict[str, Any]:
        """Seconds to build a store, of two sizes."""
        whole = min(BUILT, len(self.learnt.ids))
        rows = stores(self.llm, self.learnt, (whole // 2, whole), self.work)
        return {"sizes": rows, "exponent": round(slope([(row["entries"], row["seconds"]) for row in rows]), 3)}

    def speed(self, repeats: int) -> dict[str, Any]:
        choice, plain = self.made["neighbours"], speed_decoder.Plain(self.llm)
        systems: dict[str, speed_decoder.System] = {
            "base": plain,
            "mixed": speed_decoder.Plain(decoder.Mixed(self.llm, self.decoder, 0.5)),
            "knn_lm": speed_decoder.Searching(self.llm, self.index, choice["k"], choice["temperature"],
                                              choice["weight"]),
            "rag": speed_decoder.WithPassage(plain, self.passages, self.rivals.passage, self.rivals.query),
        }  # fmt: skip
        text = np.asarray(self.texts["test"].tokens.ids)
        sizes = speed_decoder.PROMPT, speed_decoder.TOKENS, speed_decoder.BATCHES
        return {"rows": speed_decoder.measure(systems, text, self.llm.device, self.rivals.refresh, repeats, *sizes)}
