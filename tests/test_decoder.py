"""The mix: equations, generation like a slow loop, saving, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import tiny
import torch

from memo import decoder
from memo.decoder import Mixed, Router, aligned, first_layers, interpolate, own, shares
from memo.errors import ModelError, WrongModel


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def student(llm):
    """A decoder of the LLM's first two layers, moved away from them."""
    made = first_layers(llm, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in own(made, llm).parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)


def logps(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape).log_softmax(-1), torch.randn(*shape).log_softmax(-1)


def test_mix_is_the_weighted_sum_of_probabilities():
    a, b = logps(2, 5, 11)
    for alpha in (0.2, torch.rand(2, 5, 1)):
        mixed = interpolate(a, b, alpha)
        assert torch.allclose(mixed.exp(), alpha * b.exp() + (1 - alpha) * a.exp(), atol=1e-6)
        assert torch.allclose(mixed.exp().sum(-1), torch.ones(2, 5), atol=1e-5)


def test_alpha_zero_and_one_are_exact():
    a, b = logps(3, 7)
    assert torch.equal(interpolate(a, b, 0.0), a)
    assert torch.equal(interpolate(a, b, 1.0), b)


def test_padded_vocabularies_are_aligned():
    logits = torch.randn(2, 5)
    assert torch.equal(aligned(logits, 3), logits[:, :3])
    wider = aligned(logits, 7)
    assert torch.equal(wider[:, :5], logits)
    assert torch.isinf(wider[:, 5:]).all()
    a = torch.randn(2, 7).log_softmax(-1)
    mixed = interpolate(a, wider.log_softmax(-1), 0.5)
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(2), atol=1e-5)
    assert torch.isfinite(mixed).all()


def test_first_layers_are_those_of_the_llm(llm):
    whole = first_layers(llm, llm.config.num_hidden_layers)
    ids = torch.randint(0, 256, (2, 9))
    assert torch.allclose(whole(ids).logits, llm(ids).logits, atol=1e-5)
    assert shares(whole, llm)
    assert whole.get_input_embeddings() is llm.get_input_embeddings()
    with pytest.raises(ModelError, match="3 layers, not 4"):
        first_layers(llm, 4)


def test_what_is_trained_is_not_what_is_shared(llm, student):
    names = {name for name, _ in own(student, llm).named_parameters()}
    assert names
    assert not any("embed" in name or "head" in name for name in names)
    foreign = tiny.model("llama", seed=5)
    assert any("head" in name for name, _ in own(foreign, llm).named_parameters())


def test_one_product_gives_what_two_give(llm, student):
    mixed = Mixed(llm, student, 0.4)
    ids = torch.randint(0, 256, (2, 9))
    a, b = mixed.both(*mixed.hidden(ids))
    assert torch.allclose(a, llm(ids).logits.log_softmax(-1), atol=1e-5)
    assert torch.allclose(b, student(ids).logits.log_softmax(-1), atol=1e-5)


def slow(models, alpha, prompt: list[int], steps: int, end: int) -> list[int]:
    """Greedy, one whole pass of each model a token."""
    ids = list(prompt)
    for _ in range(steps):
        a, b = (model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for model in models)
        ids.append(int(interpolate(a, b, alpha).argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


PROMPTS = [list(b"The mill stood"), list(b"In 1903 a flood took the"), list(b"W")]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("where", ["shared", "apart"])
def test_generation_equals_a_slow_mixture(llm, student, alpha, where):
    other = student if where == "shared" else tiny.model("llama", seed=9, num_hidden_layers=1)
    mixed, width = Mixed(llm, other, alpha), max(map(len, PROMPTS))
    ids = torch.tensor([[257] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    out = mixed.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=257)
    for row, prompt in zip(out, PROMPTS, strict=True):
        expected = slow((llm, other), alpha, prompt, 12, 257)
        assert row[width : width + len(expected)].tolist() == expected
        assert set(row[width + len(expected) :].tolist()) <= {257}


def test_alpha_zero_generates_what_the_llm_does(llm, student):
    ids = torch.tensor([PROMPTS[1]])
    plain, mixed = (model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=257)
                    for model in (llm, Mixed(llm, student, 0.0)))  # fmt: skip
    assert torch.equal(mixed, plain)


def test_generation_stops_at_the_end_of_text(llm, student):
    mixed = Mixed(llm, student, 0.5)
    ids = torch.tensor([PROMPTS[0]])
    first = int(mixed(ids).logits[0, -1].argmax())
    out = mixed.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=first, pad_token_id=257)
    assert out[0, len(PROMPTS[0]) :].tolist() == [first]


def test_sampling_and_streaming_and_beams(llm, student):
    mixed, ids = Mixed(llm, student, 0.5), torch.tensor([PROMPTS[0]])
    told: list[int] = []

    class Streamer:
        def put(self, value):
            told.extend(value.flatten().tolist())

        def end(self):
            pass

    out = mixed.generate(ids, max_new_tokens=6, do_sample=True, streamer=Streamer(), pad_token_id=257)
    assert told == out[0].tolist()
    beams = mixed.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=257)
    again = mixed.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=257)
    assert torch.equal(beams, again)


def test_router_gives_every_token_an_alpha_of_its_own(llm, student):
    torch.manual_seed(0)
    router = Router(llm.config.hidden_size, student.config.hidden_size)
    mixed, ids = Mixed(llm, student, router), torch.tensor([PROMPTS[1]])
    hidden = mixed.hidden(ids)
    a, b = mixed.both(*hidden)
    alpha = router(*hidden, a, b)
    assert alpha.shape == (1, len(PROMPTS[1]), 1)
    assert alpha.unique().numel() > 1
    assert torch.allclose(mixed(ids).logits, interpolate(a, b, alpha), atol=1e-6)


def test_a_router_is_kept_beside_its_decoder(llm, student, tmp_path):
    assert decoder.load_router(tmp_path, llm, student) is None
    torch.manual_seed(1)
    router = Router(llm.config.hidden_size, student.config.hidden_size)
    decoder.save_router(router, tmp_path)
    again, ids = decoder.load_router(tmp_path, llm, student), torch.tensor([PROMPTS[1]])
    assert torch.equal(Mixed(llm, student, router)(ids).logits, Mixed(llm, student, again)(ids).logits)
    wider = tiny.model("llama", hidden_size=128, num_attention_heads=4)
    with pytest.raises(ModelError, match="router"):
        decoder.load_router(tmp_path, wider, student)


def test_saved_and_loaded_says_the_same(llm, student, tmp_path):
    decoder.save(student, llm, tiny.tokenizer(), tmp_path, {"alpha": 0.3})
    loaded = decoder.load(tmp_path, llm, tiny.tokenizer())
    ids = torch.randint(0, 256, (1, 9))
    half = {name: weight.bfloat16().float() for name, weight in own(student, llm).state_dict().items()}
    again = first_layers(llm, 2)
    own(again, llm).load_state_dict(half)
    assert torch.allclose(loaded(ids).logits, again(ids).logits, atol=1e-5)
    assert shares(loaded, llm)
    assert decoder.about(tmp_path)["alpha"] == 0.3
    assert not list(tmp_path.glob("*tokenizer*"))


def test_decoder_of_another_llm_is_refused(llm, student, tmp_path):
    decoder.save(student, llm, tiny.tokenizer(), tmp_path, {})
    with pytest.raises(WrongModel, match="another language model"):
        decoder.load(tmp_path, tiny.model("llama", seed=7), tiny.tokenizer())


def test_any_causal_model_of_the_vocabulary_is_a_decoder(llm, tmp_path):
    tiny.foreign().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    gpt = decoder.load(tmp_path, llm, tiny.tokenizer())
    ids = torch.tensor([PROMPTS[0]])
    out = Mixed(llm, gpt, 0.5).generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=257)
    assert out[0, len(PROMPTS[0]) :].tolist() == slow((llm, gpt), 0.5, PROMPTS[0], 5, 257)


def test_another_vocabulary_is_refused(llm, tmp_path):
    tiny.foreign().save_pretrained(tmp_path)
    other = tiny.tokenizer()
    other.add_tokens(["more"])
    other.save_pretrained(tmp_path)
    with pytest.raises(WrongModel, match="vocabulary"):
        decoder.load(tmp_path, llm, tiny.tokenizer())


def test_damaged_decoder_is_refused(llm, student, tmp_path):
    decoder.save(student, llm, tiny.tokenizer(), tmp_path, {})
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        decoder.load(tmp_path, llm, tiny.tokenizer())
    (tmp_path / "decoder.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        decoder.load(tmp_path, llm, tiny.tokenizer())


@pytest.mark.parametrize("count", ["99999999999", "1", "-1", '"x"', "1e999", "[" * 5000])
def test_a_damaged_number_of_layers_is_refused_at_once(llm, student, tmp_path, count):
    decoder.save(student, llm, tiny.tokenizer(), tmp_path, {})
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(re.sub(r'"num_hidden_layers": \d+', f'"num_hidden_layers": {count}', config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        decoder.load(tmp_path, llm, tiny.tokenizer())


def test_certainty():
    logp = torch.tensor([[0.5, 0.5, 0.0]]).log()
    high, entropy = decoder.certainty(logp)
    assert math.isclose(float(high), math.log(0.5), rel_tol=1e-6)
    assert math.isclose(float(entropy), math.log(2), rel_tol=1e-6)
