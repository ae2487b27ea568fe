"""Generators: prompts -> text, several at once, streamed, each of them stoppable.

In: `Prompt`s, put into a run at any time. Out: `Stream`s that grow with each `step()` of the run. `LocalRun` decodes
all its streams in one batch of the local model, without padding: each stream keeps K and V of its own length, and
prompts are read in pieces between the steps of the others. `memo.endpoint` asks an OpenAI-compatible server instead.
Decoding is greedy, for every strategy alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from memo.errors import BackendError
from memo.models import cache_name, untrusted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from memo.attention import Row, Slots
    from memo.memory import MemoryModel
    from memo.mixing import Mixing

PIECE = 256  # tokens of a prompt read in one step
LONG = 1536  # a prompt with more than this left to read waits until nobody else is writing
BEGUN = 8  # one of more than a piece waits until everybody who writes has so many tokens: words come before passages
REPETITION = 1.15  # logits of tokens already generated are divided by this (multiplied if negative)


@dataclass(frozen=True)
class Prompt:
    """What is asked of a generator.

    prefix: how the answer begins, put in its mouth; part of the text that is returned (local models only).
    slots: a memory the model looks at before the prompt (local models only).
    watch: note where in the memory the generated tokens looked.
    alpha: how much of the Memory Decoder is mixed in, 0 to 1, or `decoder.ROUTED` (a generator that has one).
    mixing: the decoder that is mixed in; None: the generator's own. The same in all prompts of a run.
    look: a part of the last message, the question say: note too where its tokens, and those up to the answer, looked.
    stop_at: end once the text has this many lines (local models only).
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    prefix: str = ""
    slots: Slots | None = None
    watch: bool = False
    stop_at: int = 0
    look: str = ""
    alpha: float = 0.0
    mixing: Mixing | None = None


@dataclass
class Stream:
    """A text that is being generated."""

    prompt: Prompt
    text: str = ""
    done: bool = False
    error: Exception | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    logprob: float = 0.0  # sum over the generated tokens
    marks: list[tuple[int, float]] = field(default_factory=list)  # (length of the text, logprob) after each token
    mass: list[torch.Tensor] = field(default_factory=list)  # per generated token: (layers, M) attention on the slots
    looked: torch.Tensor | None = None  # (layers, M) where the tokens of `prompt.look` looked, the mean over them
    first_token: float | None = None  # time.monotonic()
    _stop: bool = False

    @property
    def stopped(self) -> bool:
        """Whether it was ended from outside."""
        return self._stop

    def stop(self) -> None:
        """Ends it where it is; the text so far stays."""
        self._stop = True


class Run(Protocol):
    """A set of streams that advance together."""

    def add(self, prompt: Prompt) -> Stream: ...
    def step(self) -> bool:
        """Advances every unfinished stream; False when there is none."""
        ...

    def close(self) -> None: ...


class Generator(Protocol):
    """Something that answers prompts."""

    name: str
    max_positions: int

    def open(self) -> Run: ...
    def count(self, text: str) -> int:
        """Tokens of a text (an estimate, where the tokenizer is not known)."""
        ...


def write(generator: Generator, prompt: Prompt) -> Stream:
    """The finished answer to one prompt; it carries its error, if there was one."""
    [stream] = write_all(generator, [prompt])
    return stream


def write_all(generator: Generator, prompts: Sequence[Prompt]) -> list[Stream]:
    """The finished answers to several prompts, written in one batch; each carries its error, if there was one."""
    run = generator.open()
    streams = [run.add(prompt) for prompt in prompts]
    while run.step():
        pass
    run.close()
    return streams


# --- the local model -------------------------------------------------------------------------------------------------


class PlainRow:
    """One sequence of a `PlainModel`."""

    mass, looking = None, False

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers import DynamicCache

        self.cache, self.position = DynamicCache(config=model.config), 0


class PlainModel:
    """A causal language model of any architecture, as transformers runs it: it generates, but looks at no memory."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        from memo.turn import Turn

        self.model, self.tokenizer, self.turn = model, tokenizer, Turn()
        self.max_positions: int = getattr(model.config, "max_position_embeddings", None) or 2048
        self.device = model.device
        self._plain = untrusted(tokenizer)

    def encode(self, text: str, start: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and their character spans; special tokens in it are taken as text."""
        encoding = self._plain.encode(text, add_special_tokens=start)
        return encoding.ids, encoding.offsets

    def row(self, prompt: Prompt) -> PlainRow:
        return PlainRow(self.model)

    def advance(self, ids: torch.Tensor, rows: list[PlainRow]) -> torch.Tensor:
        """Reads T tokens of each row, one row after another. ids (B, T) -> next-token logits (B, V)."""
        import torch

        logits = []
        for index, row in enumerate(rows):
            out = self.model(input_ids=ids[index : index + 1], use_cache=True, **{cache_name(): row.cache})
            row.position += ids.shape[1]
            logits.append(out.logits[:, -1])
        return torch.cat(logits)


class LocalGenerator:
    """A model of this process, as a generator. Streams of one run share every step through a `MemoryModel`."""

    def __init__(self, model: MemoryModel | PlainModel, name: str) -> None:
        self.model, self.name, self.max_positions = model, name, model.max_positions
        self.mixing: Mixing | None = None  # its Memory Decoder, once one is loaded
        tokenizer, config = model.tokenizer, model.model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        # what ends a turn, where several tokens end a text
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id in self.ends else min(self.ends)
        # all tokens that stand beside the vocabulary: transformers counts only a few of them as special
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()}
        self._special = re.compile("|".join(map(re.escape, sorted(added, key=len)[::-1])) or "$^")

    def open(self) -> LocalRun:
        return LocalRun(self)

    def count(self, text: str) -> int:
        return len(self.model.encode(text, start=False)[0])

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt through the model's chat template. Special tokens inside the contents are broken up: they are
        other people's text, not commands."""
        return self.model.tokenizer(self._text(prompt), add_special_tokens=False).input_ids

    def watched(self, prompt: Prompt) -> int:
        """How many tokens of the prompt there are from where `look` begins; 0 if nothing is to be watched."""
        if not prompt.look:
            return 0
        text, content = self._text(prompt), self._harmless(prompt.messages[-1][1]).strip()
        message, inside = text.rfind(content), content.rfind(self._harmless(prompt.look).strip())
        if message < 0 or inside < 0:  # a template that changes the text
            return 0
        encoding = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return sum(end > message + inside for _, end in encoding.offset_mapping)

    def _text(self, prompt: Prompt) -> str:
        messages = [{"role": role, "content": self._harmless(content)} for role, content in prompt.messages]
        from jinja2 import TemplateError

        try:
            text = self._template(messages)
        except TemplateError:  # some models know no system message: it goes before the question
            content = "\n\n".join(message["content"] for message in messages)
            text = self._template([{"role": "user", "content": content}])
        return text + prompt.prefix

    def _harmless(self, content: str) -> str:
        return self._special.sub(lambda match: " ".join(match[0]), content)

    def _template(self, messages: list[dict[str, str]]) -> str:
        # enable_thinking: models that think before they answer would spend all their tokens on it; others ignore it
        return self.model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


@dataclass
class _Decoding:
    """A stream in the works: what is still to be read of its prompt, and what was generated."""

    stream: Stream
    row: Row | PlainRow
    unread: list[int]
    memory: Row | PlainRow | None = None  # the Memory Decoder's, where it is mixed in
    look: int = 0  # this many of the prompt's last tokens are watched
    ids: list[int] = field(default_factory=list)


class LocalRun:
    def __init__(self, generator: LocalGenerator) -> None:
        self.generator, self.model = generator, generator.model
        self._decodings: list[_Decoding] = []

    def add(self, prompt: Prompt) -> Stream:
        ids, look = self.generator.encode(prompt), self.generator.watched(prompt)
        stream = Stream(prompt, text=prompt.prefix, prompt_tokens=len(ids))
        row = self.model.row(prompt)
        needed, there = row.position + len(ids), self.model.max_positions
        if needed >= there:
            told = f"The prompt needs {needed:,} positions; the model has {there:,}."
            stream.error, stream.done = BackendError(told, "Give it less to read (MEMO_CONTEXT_TOKENS)."), True
        else:
            mixing = self._mixing(prompt)
            memory = mixing.row() if mixing is not None and prompt.alpha else None
            self._decodings.append(_Decoding(stream, row, ids, memory, look))
        return stream

    def step(self) -> bool:
        """A piece of the shortest unread prompt, or one token for every stream whose prompt is read.

        Short prompts first, long ones last: nobody then ends later than if all took turns, and most end sooner.
        """
        from memo.memory import inference

        for decoding in self._decodings:
            if decoding.stream._stop:
                decoding.stream.done = True
        self._decodings = [d for d in self._decodings if not d.stream.done]
        reading = [d for d in self._decodings if d.unread]
        writing = [d for d in self._decodings if not d.unread]
        shortest = min(reading, key=lambda d: len(d.unread), default=None)
        begun = all(d.stream.tokens >= BEGUN for d in writing)
        if shortest and (not writing or len(shortest.unread) <= (LONG if begun else PIECE)):
            with inference(self.model):
                self._read_piece(shortest)
        elif writing:
            with inference(self.model):
                self._write(writing)
        return bool(self._decodings)

    def _read_piece(self, decoding: _Decoding) -> None:
        import torch

        row, size = decoding.row, PIECE
        if decoding.look and row.mass is not None:
            before = len(decoding.unread) - decoding.look
            if before > 0:
                size = min(PIECE, before)  # so that the watched tokens begin a piece of their own
            elif not row.looking:
                row.looking = True
                row.mass.zero_()
        piece, decoding.unread = decoding.unread[:size], decoding.unread[size:]
        ids = torch.tensor([piece], device=self.model.device)
        logits = self._advance(ids, [decoding])
        if not decoding.unread:
            if row.mass is not None:
                if row.looking:
                    row.looking, decoding.stream.looked = False, (row.mass / decoding.look).cpu()
                row.mass.zero_()  # from here on it is where the generated tokens look
            self._choose([decoding], logits)

    def _write(self, decodings: list[_Decoding]) -> None:
        import torch

        ids = torch.tensor([[d.ids[-1]] for d in decodings], device=self.model.device)
        logits = self._advance(ids, decodings)
        for decoding in decodings:
            if decoding.row.mass is not None:  # where the token just read looked, as it was about to say the next
                decoding.stream.mass.append(decoding.row.mass.to("cpu", torch.bfloat16, copy=True))
                decoding.row.mass.zero_()
        self._choose(decodings, logits)

    def _advance(self, ids: torch.Tensor, decodings: list[_Decoding]) -> torch.Tensor:
        """ids (B, T) -> next-token logits (B, V), with the Memory Decoder's part in those that want it."""
        rows = [decoding.row for decoding in decodings]
        mixing = next((self._mixing(d.stream.prompt) for d in decodings if d.memory is not None), None)
        if mixing is None:
            return self.model.advance(ids, rows)
        memory, alphas = zip(*[(d.memory, d.stream.prompt.alpha) for d in decodings], strict=True)
        return mixing.advance(ids, rows, memory, alphas)

    def _mixing(self, prompt: Prompt) -> Mixing | None:
        return prompt.mixing or self.generator.mixing

    def _choose(self, decodings: list[_Decoding], logits: torch.Tensor) -> None:
        """The next token of each: logits (B, V)."""
        logits = logits.float()
        logprobs = logits.log_softmax(dim=-1)
        for index, decoding in enumerate(decodings):
            if decoding.ids:
                seen = logits.new_tensor(sorted(set(decoding.ids))).long()
                held = logits[index, seen]
                logits[index, seen] = held.where(held < 0, held / REPETITION).where(held > 0, held * REPETITION)
            token = int(logits[index].argmax())
            self._append(decoding, token, float(logprobs[index, token]))

    def _append(self, decoding: _Decoding, token: int, logprob: float) -> None:
        stream, prompt = decoding.stream, decoding.stream.prompt
        if token in self.generator.ends:
            stream.done = True
            return
        stream.first_token = stream.first_token or time.monotonic()
        decoding.ids.append(token)
        stream.tokens += 1
        stream.logprob += logprob
        text = prompt.prefix + self.model.tokenizer.decode(decoding.ids, skip_special_tokens=True)
        stream.text = text.rstrip("\ufffd")  # half of a character: the rest comes with the next tokens
        stream.marks.append((len(stream.text), logprob))
        if prompt.stop_at and stream.text.strip().count("\n") >= prompt.stop_at:
            stream.done = True
        if stream.tokens >= prompt.max_tokens or decoding.row.position + 1 >= self.model.max_positions:
            stream.done = True

    def close(self) -> None:
        self._decodings.clear()
