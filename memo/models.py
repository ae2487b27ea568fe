"""Where weights come from, and in which precision and on which device they run.

In: "embedded", a local folder, or a hub id. Out: a causal language model with its tokenizer, or an `Embedder`.

"embedded" stands for the models of `memo.embedded`. Nothing else is fetched unless a hub id is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from memo.embedded import CONVERTER, EMBEDDED_NAME, GGUF_SHA256, embedded_embedder, embedded_language_model
from memo.errors import ModelError, SettingsError, reason
from memo.settings import Settings

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from memo.attention import MemoryWeights
    from memo.generate import Generator
    from memo.memory import MemoryModel
    from memo.mixing import Mixing

UNTRAINED, NONE = "untrained", "none"
SHIPPED = Path(__file__).parent.parent / "assets" / "models" / "smollm2-135m-memory"  # weights for the embedded model
SHIPPED_DECODER = SHIPPED.with_name("smollm2-135m-law-decoder")  # a Memory Decoder for it
SHIPPED_START = SHIPPED.with_name("smollm2-135m-small-decoder")  # and what others start from
# architectures whose attention is plain: Q, K, V projections, rotary positions in every layer, softmax. Others
# (soft-capped scores, sinks in the weights, layers without positions) would run through memo.attention, wrongly.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def choose_device(wanted: str) -> str:
    """"auto" -> "cuda" if there is a GPU of our own, else "cpu". On ZeroGPU, where one is lent call by call: "cpu"."""
    import torch

    if wanted != "auto":
        return wanted
    lent = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
    return "cuda" if torch.cuda.is_available() and not lent else "cpu"


def choose_dtype(wanted: str, device: str) -> torch.dtype:
    """"auto" -> bfloat16 where it is computed natively (GPU, or a CPU with bf16 instructions), else float32.

    Raises:
        ModelError: neither "auto" nor "bfloat16" nor "float32".
    """
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if wanted == "auto":
        if device.startswith("cuda"):
            native = torch.cuda.is_bf16_supported()
        else:
            flags = Path("/proc/cpuinfo")
            text = flags.read_text() if flags.exists() else ""
            native = device == "cpu" and ("avx512_bf16" in text or "amx_bf16" in text)
        return torch.bfloat16 if native else torch.float32
    if wanted not in kinds:
        raise ModelError(f"No computing in {wanted!r}.", f"Set MEMO_DTYPE to auto, {' or '.join(kinds)}.")
    return kinds[wanted]


def attention_of(model_type: str) -> str | None:
    """The attention a model of that kind is loaded with: ours where we can run it, else transformers' choice."""
    from memo import attention

    attention.register()
    return attention.NAME if model_type in FAMILIES else None


@lru_cache(maxsize=1)
def cache_name() -> str:
    """What transformers' models call their cache: `past_key_values`, and `cache` from some version on."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def load_language_model(
    name: str, settings: Settings, chat: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A frozen causal LM, which attends through `memo.attention` if it is of one of the `FAMILIES`, and its tokenizer.

    chat: whether it must have a chat template, as whoever answers questions needs.

    Raises:
        ModelError: it cannot be found, is no causal LM, or has no chat template.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = choose_device(settings.device)
    source = str(embedded_language_model(settings.cache)) if name == "embedded" else name
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ModelError(f"There is no folder {name!r} with a model.", "Check the path.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=choose_dtype(settings.dtype, device),
            attn_implementation=attention_of(AutoConfig.from_pretrained(source).model_type),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        told = f"The model {name!r} cannot be loaded: {reason(error)}"
        raise ModelError(told, "Check the id or the folder.") from error
    if chat and not tokenizer.chat_template:
        raise ModelError(f"The model {name!r} has no chat template.", "Choose an instruction-tuned model.")
    every_core = settings.device == "auto" and device == "cpu" and "OMP_NUM_THREADS" not in os.environ
    if every_core and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        return model.to(device).eval().requires_grad_(False), tokenizer
    except (AssertionError, RuntimeError) as error:  # no such device, or not enough memory on it
        raise ModelError(f"The model cannot run on {device!r}: {error}", "Set MEMO_DEVICE to auto or cpu.") from error


def trained_weights(settings: Settings) -> Path | None:
    """Where the trained memory weights are; None for a memory that was not trained."""
    if settings.memory_weights:
        return None if settings.memory_weights == UNTRAINED else Path(settings.memory_weights)
    return SHIPPED if settings.memory_model == "embedded" and SHIPPED.is_dir() else None


def decoder_place(settings: Settings) -> str:
    """Where the Memory Decoder is, a folder or a hub id; empty: there is none."""
    if settings.memory_decoder:
        return "" if settings.memory_decoder == NONE else settings.memory_decoder
    answers = settings.generator or settings.memory_model
    plain = answers == "embedded" and not settings.endpoint_url
    return str(SHIPPED_DECODER) if plain and SHIPPED_DECODER.is_dir() else ""


def decoder_start(settings: Settings) -> str:
    """What a new Memory Decoder for the model that answers starts from; empty: from the model's own first layers."""
    embedded = (settings.generator or settings.memory_model) == "embedded"
    return str(SHIPPED_START) if embedded and SHIPPED_START.is_dir() else ""


def display_name(name: str) -> str:
    """What people read for a model: never a path of this machine."""
    return EMBEDDED_NAME if name == "embedded" else Path(name).name if Path(name).exists() else name


def embedder_name(settings: Settings) -> str:
    """What people read for the embedder."""
    return "all-MiniLM-L6-v2" if settings.embedder == "embedded" else display_name(settings.embedder)


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits over names, shapes and a sample of all weights, the same in float32 and bfloat16."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 4096)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def untrusted(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's engine for other people's text: "<|im_end|>" in it is text, not the control token."""
    engine = copy.deepcopy(tokenizer.backend_tokenizer)
    engine.encode_special_tokens = True
    engine.no_truncation()
    engine.no_padding()
    return engine


class Embedder:
    """Texts -> unit vectors (N, D), float32."""

    def __init__(self, settings: Settings) -> None:
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        device = choose_device(settings.device)
        source = str(embedded_embedder()) if settings.embedder == "embedded" else settings.embedder
        dtype = choose_dtype(settings.dtype, device)
        try:
            self.model = SentenceTransformer(source, device=device, model_kwargs={"dtype": dtype})
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            told = f"The embedder {settings.embedder!r} cannot be loaded."
            raise ModelError(told, "Check its id or folder.") from error
        except (AssertionError, RuntimeError) as error:  # no such device, or not enough memory on it
            told = f"The embedder cannot run on {device!r}: {error}"
            raise ModelError(told, "Set MEMO_DEVICE to auto or cpu.") from error
        self.name = embedder_name(settings)
        self.tokenizer = untrusted(self.model.tokenizer)
        self.max_tokens = int(self.model.max_seq_length or 512)

    def encode(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors, one a text; a text over the embedder's length is cut by it."""
        import numpy as np

        vectors = self.model.encode(texts, batch_size=32, convert_to_numpy=True, show_progress_bar=False)
        vectors = np.asarray(vectors, dtype=np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()


class Models:
    """The models of one process, loaded when first needed and shared by everybody."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loading = threading.RLock()

    def memory_model(self) -> MemoryModel:
        with self._loading:
            return self._memory_model

    def generator(self) -> Generator:
        with self._loading:
            return self._generator

    def embedder(self) -> Embedder:
        with self._loading:
            return self._embedder

    def mixing(self) -> Mixing:
        """The generator with its Memory Decoder, which from then on can be mixed into what it writes.

        Raises:
            ModelError: there is none, it cannot be loaded, or the generator is behind an endpoint. WrongModel: it does
            not fit the generator.
        """
        with self._loading:
            return self._mixing

    @cached_property
    def _memory_model(self) -> MemoryModel:
        from memo.attention import MemoryWeights
        from memo.memory import MemoryModel

        model, tokenizer = load_language_model(self.settings.memory_model, self.settings)
        if model.config.model_type not in FAMILIES:
            told = f"{display_name(self.settings.memory_model)!r} cannot be a memory model ({model.config.model_type})."
            raise ModelError(told, f"Choose one of these architectures: {', '.join(FAMILIES)}.")
        trained = trained_weights(self.settings)
        return MemoryModel(model, tokenizer, MemoryWeights.load(trained, model) if trained else None)

    @cached_property
    def _generator(self) -> Generator:
        from memo.endpoint import EndpointGenerator
        from memo.generate import LocalGenerator, PlainModel

        settings = self.settings
        if settings.endpoint_url:
            if not settings.endpoint_model:
                raise SettingsError("MEMO_ENDPOINT_MODEL is empty.", "Name the model the endpoint shall use.")
            return EndpointGenerator(settings.endpoint_url, settings.endpoint_model, settings.endpoint_key)
        if settings.generator in ("", settings.memory_model):
            return LocalGenerator(self.memory_model(), display_name(settings.memory_model))
        from memo.memory import MemoryModel

        model, tokenizer = load_language_model(settings.generator, settings)
        kind = MemoryModel if model.config.model_type in FAMILIES else PlainModel
        return LocalGenerator(kind(model, tokenizer), display_name(settings.generator))

    @cached_property
    def _mixing(self) -> Mixing:
        from memo import decoder, decoder_file
        from memo.generate import LocalGenerator
        from memo.mixing import Mixing

        place, generator = decoder_place(self.settings), self._generator
        if not place:
            raise ModelError("There is no Memory Decoder.", "Name one (MEMO_MEMORY_DECODER), or train one.")
        if not isinstance(generator, LocalGenerator):
            raise ModelError("A Memory Decoder cannot be mixed into an endpoint.", "Choose a local generator.")
        with generator.model.turn:  # whose weights are looked at: they are others while a document is memorized
            loaded = decoder.load(place, generator.model.model, generator.model.tokenizer)
        router = decoder.load_router(place, generator.model.model, loaded)
        alpha = self.settings.alpha if self.settings.alpha >= 0 else decoder_file.about(place).get("alpha", 0.5)
        generator.mixing = Mixing(generator.model, loaded, alpha, Path(place), router)
        return generator.mixing

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder(self.settings)

    def names(self) -> dict[str, str]:
        """What answers say about the models they come from."""
        trained = trained_weights(self.settings)
        return {
            "memory": display_name(self.settings.memory_model),
            "memory_weights": trained.stem if trained else UNTRAINED,
            "generator": self.generator().name,
            "embedder": embedder_name(self.settings),
        }


class Reweighted(Models):
    """The models of others, but for the memory weights. Nothing is loaded twice, and turns are taken with the others'.

    weights: frozen, of the memory model that `base` has.
    """

    def __init__(self, base: Models, weights: MemoryWeights) -> None:
        super().__init__(base.settings)
        self.base, self._weights = base, weights

    @cached_property
    def _memory_model(self) -> MemoryModel:
        from memo.memory import MemoryModel

        plain = self.base.memory_model()
        with plain.turn:  # the model is looked at: it has others' weights while a document is memorized
            own = MemoryModel(plain.model, plain.tokenizer, self._weights)
        own.turn = plain.turn
        return own

    @cached_property
    def _generator(self) -> Generator:
        from memo.generate import LocalGenerator

        answers, plain = self.base.generator(), self.base.memory_model()
        return LocalGenerator(self.memory_model(), answers.name) if answers_by(answers, plain) else answers

    @cached_property
    def _mixing(self) -> Mixing:
        from memo.generate import LocalGenerator

        mixing, generator = self.base.mixing(), self.generator()
        return mixing.beside(generator.model) if isinstance(generator, LocalGenerator) else mixing

    @cached_property
    def _embedder(self) -> Embedder:
        return self.base.embedder()

    def names(self) -> dict[str, str]:
        """What answers say about the models they come from."""
        return {**self.base.names(), "memory_weights": "own"}


def answers_by(generator: Generator, model: MemoryModel) -> bool:
    """Whether it is this model that answers."""
    return getattr(generator, "model", None) is model


def write_atomic(path: Path, data: str) -> None:
    """Writes text so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(data, encoding="utf-8")
    os.replace(temporary, path)


def chosen(settings: Settings) -> dict[str, str]:
    """Which models and memory weights the settings name."""
    generator = settings.generator or settings.memory_model
    trained = trained_weights(settings)
    return {
        "memory_model": display_name(settings.memory_model),
        "memory_weights": trained.name if trained else UNTRAINED,
        "generator": settings.endpoint_model if settings.endpoint_url else display_name(generator),
        "embedder": embedder_name(settings),
    }


def describe(settings: Settings) -> dict[str, object]:
    """What `memo models` tells: which weights are used, whether they are here, on what they run."""
    device = choose_device(settings.device)
    ready = any((settings.cache / "models").glob(f"smollm2-*-{GGUF_SHA256[:12]}-{CONVERTER}/config.json"))
    return {
        **chosen(settings),
        "device": device,
        "dtype": str(choose_dtype(settings.dtype, device)).removeprefix("torch."),
        "embedded_ready": ready,
    }


if __name__ == "__main__":  # `make setup`: fetch, check and convert now rather than at the first question
    from memo.cli import quiet_libraries
    from memo.settings import from_environment

    quiet_libraries()
    embedded_embedder()
    embedded_language_model(from_environment().cache)
    print(f"The embedded models are ready: {EMBEDDED_NAME}, all-MiniLM-L6-v2.")
