"""The Memory Decoder beside our own decoding: the same mix as transformers', in one batch with answers without it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn.functional import log_softmax

from memo import decoder
from memo.attention import Row
from memo.decoder import interpolate
from memo.decoder_file import ROUTED
from memo.errors import ModelError
from memo.generate import LocalGenerator, PlainModel, Prompt, write, write_all
from memo.memory import MemoryModel, inference, read_all
from memo.mixing import Mixing
from memo.models import Models
from memo.settings import Settings
from memo.ui.decoding import best_alpha, routed
from memo.ui.texts import note

QUESTION = (("user", "Who bought the mill?"),)


def moved(llm):
    made = decoder.first_layers(llm, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in decoder.own(made, llm).parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reader():
    return tiny.memory_model()


@pytest.fixture(params=["one head", "heads of their own", "another architecture"])
def generator(request, reader):
    other = {"one head": lambda: moved(reader.model), "another architecture": tiny.foreign}.get(
        request.param, lambda: tiny.model("llama", seed=9, num_hidden_layers=1)
    )()
    made = LocalGenerator(reader, "tiny")
    made.mixing = Mixing(reader, other, 0.4)
    assert made.mixing.one_head == (request.param == "one head")
    return made


def test_the_mix_is_the_one_of_the_equation(generator):
    llm, other = generator.model.model, generator.mixing.memory.model
    ids = torch.tensor([list(b"The mill stood at the")])
    for alpha in (0.3, 1.0):
        with inference(generator.model):
            rows, others = [Row()], [generator.mixing.row()]
            logits = generator.mixing.advance(ids, rows, others, [alpha])
            more = generator.mixing.advance(torch.tensor([[66]]), rows, others, [alpha])
        whole = torch.cat([ids, torch.tensor([[66]])], dim=1)
        a, b = (log_softmax(model(whole).logits[0, -2:].float(), -1) for model in (llm, other))
        expected = interpolate(a, b, torch.tensor(alpha))
        assert torch.allclose(log_softmax(torch.cat([logits, more]), -1), expected, atol=1e-4)


def test_a_router_decides_for_its_rows_alone(reader):
    other = moved(reader.model)
    torch.manual_seed(5)
    router = decoder.Router(reader.model.config.hidden_size, other.config.hidden_size)
    mixing = Mixing(reader, other, 0.4, router=router)
    assert mixing.best == ROUTED and Mixing(reader, other, 0.4).best == 0.4
    ids = torch.tensor([list(b"The mill stood at the")])
    with inference(reader):
        routed = mixing.advance(ids, [Row()], [mixing.row()], [ROUTED])
        rows = [Row(), Row(), Row()]
        others = [mixing.row(), mixing.row(), None]
        for row, theirs in zip(rows, others, strict=True):
            if theirs is None:
                reader.advance(ids[:, :-1], [row])
            else:
                mixing.advance(ids[:, :-1], [row], [theirs], [0.4])
        both = mixing.advance(ids[:, -1:].expand(3, 1), rows, others, [0.4, ROUTED, 0.0])
        fixed = mixing.advance(ids, [Row()], [mixing.row()], [0.4])
    expected = decoder.Mixed(reader.model, other, router)(ids).logits[:, -1]
    assert torch.allclose(log_softmax(routed, -1), expected, atol=1e-4)
    assert torch.allclose(both[1:2], routed, atol=1e-4) and torch.allclose(both[:1], fixed, atol=1e-4)
    assert torch.allclose(both[2:], reader.model(ids).logits[:, -1], atol=1e-4)


def test_heads_of_their_own_use_no_router(reader):
    other = tiny.model("llama", seed=9, num_hidden_layers=1)
    router = decoder.Router(reader.model.config.hidden_size, other.config.hidden_size)
    mixing, ids = Mixing(reader, other, 0.4, router=router), torch.tensor([list(b"The mill stood at the")])
    assert mixing.best == 0.4
    with inference(reader):  # for whoever asks for it all the same, the alpha that suits
        routed, fixed = (mixing.advance(ids, [Row()], [mixing.row()], [alpha]) for alpha in (ROUTED, 0.4))
    assert torch.equal(routed, fixed)


def test_the_mix_has_the_scale_of_the_llm(generator):
    ids = torch.tensor([list(b"The mill")])
    with inference(generator.model):
        plain = generator.model.advance(ids, [Row()])
        mixed = generator.mixing.advance(ids, [Row()], [generator.mixing.row()], [1e-10])
    assert torch.allclose(plain, mixed, atol=1e-3)


def test_answers_with_and_without_it_in_one_batch(generator):
    prompts = [Prompt(QUESTION, 8, alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    together = [stream.text for stream in write_all(generator, prompts)]
    assert together == [write(generator, prompt).text for prompt in prompts]
    generator.mixing = None
    assert together[0] == write(generator, prompts[0]).text
    assert together[0] != together[2]


def test_a_prompt_may_bring_a_decoder_of_its_own(generator):
    own, shared = Mixing(generator.model, tiny.model("llama", seed=7, num_hidden_layers=1), 0.5), generator.mixing
    found = {name: write(generator, Prompt(QUESTION, 8, alpha=0.9, mixing=one)).text
             for name, one in (("own", own), ("shared", None))}  # fmt: skip
    generator.mixing = None
    assert found["own"] == write(generator, Prompt(QUESTION, 8, alpha=0.9, mixing=own)).text != found["shared"]
    assert found["shared"] == write(generator, Prompt(QUESTION, 8, alpha=0.9, mixing=shared)).text


def test_it_reads_no_memory(generator):
    memory = read_all(generator.model.memorize(tiny.TEXT, "mill", ratio=4, window=64))
    slots = generator.model.slots(memory.keys[:, None], memory.values[:, None])
    ids = torch.tensor([list(b"The mill")])
    with inference(generator.model):
        found = generator.mixing.advance(ids, [Row(slots)], [generator.mixing.row()], [1.0])
        alone = generator.mixing.memory.model(ids).logits[:, -1].float()
    assert torch.allclose(log_softmax(found, -1), log_softmax(alone, -1), atol=1e-4)


def test_a_plain_model_can_have_one_too():
    plain = PlainModel(tiny.foreign(), tiny.tokenizer())
    made = LocalGenerator(plain, "gpt")
    made.mixing = Mixing(plain, tiny.foreign(seed=2), 0.5)
    alone = LocalGenerator(PlainModel(tiny.foreign(seed=2), tiny.tokenizer()), "gpt")
    assert write(made, Prompt(QUESTION, 8, alpha=1.0)).tokens == write(alone, Prompt(QUESTION, 8)).tokens


def test_models_load_the_one_of_the_settings(tmp_path):
    tiny.save(tmp_path / "llm")
    llm = tiny.model("llama")
    decoder.save(moved(llm), llm, tiny.tokenizer(), tmp_path / "decoder", {"alpha": 0.3})
    place = str(tmp_path / "decoder")
    settings = Settings(memory_model=str(tmp_path / "llm"), memory_decoder=place, dtype="float32", device="cpu")
    mixing = Models(settings).mixing()
    assert math.isclose(mixing.alpha, 0.3) and mixing.one_head
    assert isinstance(mixing.llm, MemoryModel)
    for chosen, told in ((Settings(memory_model=str(tmp_path / "llm"), device="cpu"), "There is no Memory Decoder"),
                         (Settings(memory_model=str(tmp_path / "llm"), memory_decoder="none"), "no Memory Decoder"),
                         (Settings(memory_decoder=place, endpoint_url="http://127.0.0.1:1/v1", endpoint_model="m"),
                          "cannot be mixed into an endpoint")):  # fmt: skip
        with pytest.raises(ModelError, match=told):
            Models(chosen).mixing()


def test_a_decoder_with_a_router_is_known_without_loading_it(tmp_path):
    session = SimpleNamespace(settings=Settings(memory_decoder=str(tmp_path)), rag=SimpleNamespace(mixing=None))
    assert not routed(session)
    (tmp_path / "router.safetensors").write_bytes(b"")
    assert routed(session)
    fixed = SimpleNamespace(settings=replace(session.settings, alpha=0.3), rag=session.rag)
    assert not routed(fixed) and best_alpha(fixed) == 0.3  # the host has chosen
    session.rag.mixing = object()  # the visitor's own, which has none
    assert not routed(session)


def test_the_answer_says_who_chose_the_share():
    said = "The Memory Decoder has a share of its own for every word in this answer."
    assert "router" in note("en", said) and "라우터" in note("ko", said)


@pytest.mark.models
def test_the_embedded_model_brings_a_decoder_with_a_router(models):
    mixing = models.mixing()
    assert mixing.best == ROUTED and 0 < mixing.alpha < 1 and mixing.one_head
    generator = models.generator()
    law = (("user", "Complete the sentence: The judgment of the district court is"),)
    plain, routed = (write(generator, Prompt(law, 6, alpha=alpha, mixing=mixing)).text for alpha in (0.0, ROUTED))
    assert plain and routed and plain == write(generator, Prompt(law, 6)).text
