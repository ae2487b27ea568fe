"""Tiny random language models with a byte tokenizer, and an embedder of word counts: made here, in milliseconds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from memo import attention
from memo.attention import MemoryWeights
from memo.documents import Document
from memo.errors import MemoError
from memo.generate import Prompt, Stream
from memo.memory import MemoryModel

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "The mill stood at the river bend. Anna Okafor bought it in 1887 for 412 crowns; nobody knew why. "
    "Its wheel had nine blades of oak, and the tenth was missing. Each winter the river froze, and the mill slept. "
    "In 1903 a flood took the bridge, the boat house and the east wall. Her son Piet rebuilt them, stone by stone. "
)
KOREAN = "방앗간은 강이 굽이치는 곳에 있었다. 1887년에 안나가 412 크로네에 샀다. 겨울마다 강이 얼고 방앗간은 잠들었다. "


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the two control tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=engine, bos_token=START, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    return fast


BASE = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.3, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
FAMILIES = {
    "llama": lambda **more: LlamaConfig(**BASE | more),
    "qwen2": lambda **more: Qwen2Config(**BASE | more),
    "qwen3": lambda **more: Qwen3Config(**BASE | {"head_dim": 24} | more),
    "mistral": lambda **more: MistralConfig(**BASE | {"sliding_window": None} | more),
    "mistral, sliding window": lambda **more: MistralConfig(**BASE | {"sliding_window": 40} | more),
    "llama, yarn": lambda **more: LlamaConfig(
        **BASE,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512,
        },
        **more,
    ),
    "llama, llama3": lambda **more: LlamaConfig(
        **BASE,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
        },
        **more,
    ),
}


def model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **config: object):
    """A frozen random model of that family, which attends through `memo.attention`."""
    attention.register()
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(FAMILIES[family](**config), attn_implementation=attention.NAME)
    for name, weight in made.named_parameters():
        if name.endswith("bias"):  # they start at zero, which would hide that they are used
            torch.nn.init.normal_(weight, std=0.3)
    return made.to(dtype).eval().requires_grad_(False)


def perturbed(plain: torch.nn.Module, seed: int = 1, by: float = 0.1) -> MemoryWeights:
    """Memory weights as training might leave them."""
    torch.manual_seed(seed)
    weights = MemoryWeights(plain)
    with torch.no_grad():
        for weight in weights.parameters():
            weight += by * torch.randn_like(weight)
    return weights


def memory_model(family: str = "llama", seed: int = 0, **config: object) -> MemoryModel:
    return MemoryModel(model(family, seed, **config), tokenizer())


def save(folder: Path, seed: int = 0, **config: object) -> Path:
    """A folder that `Settings(memory_model=...)` can name."""
    model("llama", seed, **config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def foreign(kind: str = "gpt2", seed: int = 0):
    """A frozen random model of an architecture that `memo.attention` does not run."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=258, n_embd=64, n_layer=2, n_head=4, n_positions=2048, initializer_range=0.3, bos_token_id=256,
            eos_token_id=257, pad_token_id=257,
        )  # fmt: skip
    else:
        config = Gemma2Config(**BASE | {"head_dim": 16, "sliding_window": 40, "num_hidden_layers": 2})
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def document(name: str = "mill.txt", text: str = TEXT, id: str = "") -> Document:
    return Document(id or f"{zlib.crc32((name + text).encode()):016x}", name, text)


class Embedder:
    """Word counts, hashed into 96 dimensions: texts that share words are near."""

    name, max_tokens = "word counts", 512

    def __init__(self) -> None:
        self.tokenizer = tokenizer().backend_tokenizer

    def encode(self, texts: list[str]) -> list[list[float]]:
        rows = torch.full((len(texts), 96), 1e-3)
        for row, text in zip(rows, texts, strict=True):
            for word in text.casefold().replace(".", " ").replace(",", " ").replace("?", " ").split():
                row[zlib.crc32(word.encode()) % 96] += 1
        return (rows / rows.norm(dim=1, keepdim=True)).tolist()


class Says:
    """A generator that answers each prompt with what `say` makes of it: a text, or an error; a word a step."""

    name, max_positions = "says", 4096

    def __init__(self, say: Callable[[Prompt], str | MemoError]) -> None:
        self.say, self.prompts = say, list[Prompt]()

    def count(self, text: str) -> int:
        return len(text.split())

    def open(self) -> Says:
        made = Says(self.say)
        made.prompts, made.streams = self.prompts, []
        return made

    def add(self, prompt: Prompt) -> Stream:
        self.prompts.append(prompt)
        self.streams.append(Stream(prompt, prompt_tokens=self.count(prompt.messages[-1][1])))
        return self.streams[-1]

    def step(self) -> bool:
        for stream in self.streams:
            said = self.say(stream.prompt)
            if isinstance(said, MemoError):
                stream.error = said
            elif not stream._stop:
                stream.tokens += 1
                stream.text = " ".join(said.split(" ")[: stream.tokens])
            stream.done = stream._stop or stream.error is not None or stream.text == said
        self.streams = [stream for stream in self.streams if not stream.done]
        return bool(self.streams)

    def close(self) -> None:
        self.streams = []
