"""A generator behind the network: any server that speaks OpenAI's protocol.

In: `Prompt`s. Out: `Stream`s that grow as the answers arrive; each is listened to in a thread of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from memo.errors import BackendError, reason
from memo.generate import Prompt, Stream

TIMEOUT = 120  # seconds without a word from the endpoint
LETTERS = 16  # of a token at most, on the average of an answer


class EndpointGenerator:
    """A model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama, a hosted one)."""

    max_positions = 32_768  # the protocol does not tell; an endpoint that has fewer says so itself

    def __init__(self, url: str, model: str, key: str = "") -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=url, api_key=key or "none", max_retries=1, timeout=TIMEOUT)
        self.model = self.name = model

    def open(self) -> EndpointRun:
        return EndpointRun(self)

    def count(self, text: str) -> int:
        """About three UTF-8 bytes a token."""
        return len(text.encode()) // 3 + 1

    def stream(self, prompt: Prompt) -> Any:
        """The endpoint's own stream of chunks."""
        messages: list[Any] = [{"role": role, "content": content} for role, content in prompt.messages]
        return self.client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=prompt.max_tokens, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip


class EndpointRun:
    def __init__(self, generator: EndpointGenerator) -> None:
        self.generator = generator
        self._arrived: queue.Queue[Callable[[], None]] = queue.Queue()
        self._streams: list[Stream] = []

    def add(self, prompt: Prompt) -> Stream:
        stream = Stream(prompt, prompt_tokens=sum(self.generator.count(content) for _, content in prompt.messages))
        self._streams.append(stream)
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()
        return stream

    def _listen(self, stream: Stream) -> None:
        """In a thread of its own. The stream itself is only changed in `step`."""
        try:
            with self.generator.stream(stream.prompt) as chunks:
                for chunk in chunks:
                    if stream._stop:
                        break
                    self._arrived.put(lambda chunk=chunk: self._take(stream, chunk))  # type: ignore[misc]
        except Exception as error:  # whatever the network and the other side come up with
            told = f"The generator's endpoint failed: {reason(error)}"
            failure = BackendError(told, "Check its address, model and key.")
            self._arrived.put(lambda: setattr(stream, "error", failure))
        self._arrived.put(lambda: setattr(stream, "done", True))

    def _take(self, stream: Stream, chunk: Any) -> None:
        if chunk.usage:
            stream.prompt_tokens = chunk.usage.prompt_tokens or stream.prompt_tokens
            stream.tokens = chunk.usage.completion_tokens or stream.tokens
        for choice in chunk.choices or []:
            if choice.delta and choice.delta.content and not stream.done:
                stream.first_token = stream.first_token or time.monotonic()
                stream.text += choice.delta.content
                stream.tokens += not chunk.usage
        if len(stream.text) > LETTERS * stream.prompt.max_tokens:  # an endpoint that does not end where it was told to
            stream.stop()
            stream.done = True

    def step(self) -> bool:
        self._streams = [s for s in self._streams if not s.done]
        for stream in self._streams:
            stream.done = stream.done or stream._stop
        if not self._streams:
            return False
        try:
            self._arrived.get(timeout=0.01)()
            while True:
                self._arrived.get_nowait()()
        except queue.Empty:
            pass
        return True

    def close(self) -> None:
        for stream in self._streams:
            stream.stop()
