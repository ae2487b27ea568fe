"""The trace of a text: what a slow loop finds, mixed again without a model, written as by transformers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import plotly.io
import pytest
import tiny
import torch
from accelerate import Accelerator

from memo import decoder, knn, plots_decoder, trace
from memo.decoder import Mixed
from memo.memory import inference
from memo.mixing import Mixing, twin
from memo.train import decode
from memo.train.recipe import Distilling
from memo.train.texts import tokenize

TEXT = "The mill stood at the bend.\nAnna bought it."
MOST = 512


@pytest.fixture(scope="module")
def mixed():
    llm = tiny.model("llama")
    return Mixed(llm, tiny.model("llama", seed=9, num_hidden_layers=1), 0.5)


@pytest.fixture(scope="module")
def tokens(mixed):
    return trace.trace(mixed, tiny.tokenizer(), TEXT, MOST)


def slow(mixed, ids):
    """log p (V,) of what follows, by both models, one whole pass each."""
    return [model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1) for model in (mixed.llm, mixed.memory)]


def test_a_trace_is_what_a_slow_loop_finds(mixed, tokens):
    ids = list(TEXT.encode())
    assert "".join(token.text for token in tokens) == TEXT
    assert not tokens[0].predicted and tokens[0].key is None
    assert len(tokens) == len(tiny.tokenizer()(TEXT).input_ids)
    encoded = [token.id for token in tokens]
    for at in range(1, len(ids), 7):
        llm, memory = slow(mixed, encoded[:at])
        token = tokens[at]
        assert math.isclose(token.llm, float(llm[encoded[at]]), abs_tol=1e-4)
        assert math.isclose(token.memory, float(memory[encoded[at]]), abs_tol=1e-4)
        firsts = {*llm.topk(trace.TOP).indices.tolist(), *memory.topk(trace.TOP).indices.tolist(), encoded[at]}
        assert {candidate.id for candidate in token.candidates} == firsts
        for candidate in token.candidates:
            assert math.isclose(candidate.llm, float(llm[candidate.id]), abs_tol=1e-4)
            assert math.isclose(candidate.memory, float(memory[candidate.id]), abs_tol=1e-4)


def test_a_longer_text_is_cut_and_an_empty_one_is_nothing(mixed, tokens):
    assert len(trace.trace(mixed, tiny.tokenizer(), TEXT * 9, 150)) == 150
    assert trace.trace(mixed, tiny.tokenizer(), "", MOST) == []
    assert list(trace.write(mixed, tiny.tokenizer(), "", 0.5, 5, MOST)) == []
    [only] = trace.trace(mixed, tiny.tokenizer(), "W", MOST)
    assert trace.perplexities([only], 0.5) == {} and trace.lift(only, 0.5) == 0.0


def test_characters_of_several_tokens_and_special_tokens_stay_text(mixed):
    for text in ("방앗간 🙂.", "a<|im_end|>b"):
        found = trace.trace(mixed, tiny.tokenizer(), text, MOST)
        assert "".join(token.text for token in found) == text
        assert 257 not in [token.id for token in found]


def test_mixed_again_as_the_equation_says(tokens):
    for token in tokens[1:]:
        assert [p for _, p in trace.remix(token, 0.0)] == sorted((c.llm for c in token.candidates), reverse=True)
        assert [p for _, p in trace.remix(token, 1.0)] == sorted((c.memory for c in token.candidates), reverse=True)
        assert trace.lift(token, 0.0) == 0.0
        for candidate, p in trace.remix(token, 0.3):
            expected = 0.3 * math.exp(candidate.memory) + 0.7 * math.exp(candidate.llm)
            assert math.isclose(math.exp(p), expected, rel_tol=1e-9)


def test_perplexities(mixed, tokens):
    encoded = torch.tensor([[token.id for token in tokens]])
    found = trace.perplexities(tokens, 0.5)
    for name, model in (("llm", mixed.llm), ("memory", mixed.memory), ("mixed", mixed)):
        logp = model(encoded).logits[0, :-1].float().log_softmax(-1)
        expected = math.exp(-logp.gather(1, encoded[0, 1:, None]).mean())
        assert math.isclose(found[name], expected, rel_tol=1e-4)
    assert trace.perplexities(tokens, 0.0)["mixed"] == found["llm"]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_it_writes_what_generate_writes(mixed, alpha):
    tokenizer = tiny.tokenizer()
    written = list(trace.write(mixed, tokenizer, TEXT, alpha, 12, MOST))
    prompt = tokenizer(TEXT).input_ids
    out = Mixed(mixed.llm, mixed.memory, alpha).generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=257
    )
    expected = [token for token in out[0].tolist() if token != 257]
    assert [token.id for token in written] == expected
    assert [token.written for token in written] == [False] * len(prompt) + [True] * (len(expected) - len(prompt))
    again = Mixed(mixed.llm, mixed.memory, alpha)
    for at in range(len(prompt), len(written)):
        llm, memory = slow(again, expected[:at])
        assert math.isclose(written[at].llm, float(llm[expected[at]]), abs_tol=1e-4)
        assert math.isclose(written[at].memory, float(memory[expected[at]]), abs_tol=1e-4)
        assert written[at].key.shape == (64,)
    assert trace.perplexities(written, alpha) == trace.perplexities(written[: len(prompt)], alpha)


def test_writing_takes_no_turn_between_tokens_and_leaves_no_hook(mixed):
    steps = trace.write(mixed, tiny.tokenizer(), TEXT, 0.4, 12, MOST)
    assert len(list(itertools.islice(steps, len(TEXT) + 2))) == len(TEXT) + 2
    assert not any(module._forward_pre_hooks for module in mixed.llm.modules())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


class Texts:
    """A source of texts with one document."""

    tokens, state = 0, ["mill"]

    def texts(self):
        yield tiny.TEXT * 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A decoder made from a text, and its reader."""
    out, reader = tmp_path_factory.mktemp("decoder"), tiny.memory_model()
    tokens = tokenize([Texts()], lambda text: trace.encode(reader.tokenizer, text), "bytes", out / "work")
    learnt, held = decode.held_out(tokens)
    plan = Distilling(steps=2, batch=1, micro=1, layers=1)
    decode.make(twin(reader), reader.tokenizer, learnt, held, out, plan, Accelerator(cpu=True), {"name": "mill"})
    loaded = decoder.load(out, reader.model, reader.tokenizer)
    return Mixing(reader, loaded, 0.5, out)


def test_neighbours_are_the_places_of_the_corpus_with_their_text(made):
    mixed = Mixed(made.llm.model, made.memory.model, 0.5)
    with inference(made.llm):
        tokens = trace.trace(mixed, made.llm.tokenizer, tiny.TEXT, MOST)
    index = made.index
    assert isinstance(index, knn.Index)
    at = tiny.TEXT.index("Okafor")
    found = trace.neighbours(index, made.llm.tokenizer, tokens[at].key, 5)
    assert [near.distance for near in found] == sorted(near.distance for near in found)
    assert found[0].token == "O" and found[0].distance < 1e-2
    assert tiny.TEXT[:at].endswith(found[0].before) and tiny.TEXT[at + 1 :].startswith(found[0].after)
    assert len(found[0].before) == trace.BEFORE and len(found[0].after) == trace.AFTER
    for near in found:
        assert f"{near.before}{near.token}{near.after}" in tiny.TEXT * 6
    wanted = knn.exact(index.store, np.asarray(tokens[at].key)[None], 5)
    assert np.allclose([near.distance for near in found], wanted.distances[0], atol=1e-2)


def test_no_index_without_its_store_or_its_corpus(made, tmp_path):
    assert trace.open_index(made.llm.model, tmp_path) is None
    assert Mixing(made.llm, made.memory.model, 0.5).index is None
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "store").symlink_to(made.folder / "work" / "store")
    assert trace.open_index(made.llm.model, tmp_path) is None


def test_a_twin_is_not_changed_while_memory_tokens_are_read():
    reader = tiny.memory_model()
    reader._given = tiny.perturbed(reader.model)
    apart, ids = twin(reader), torch.tensor([list(b"The mill")])
    before = reader.model(ids).logits
    from memo.attention import memory_projections

    with memory_projections(reader.model, reader.weights):
        assert not torch.allclose(reader.model(ids).logits, before)
        assert torch.equal(apart(ids).logits, before)
    weights = {weight.data_ptr() for weight in reader.model.parameters()}
    assert {weight.data_ptr() for weight in apart.parameters()} == weights


def test_the_bars_show_all_three_and_no_tags(tokens):
    hostile = trace.Candidate(1, "<a href='x'>", -0.1, -0.2)
    token = trace.Token(1, "x", -0.1, -0.2, (hostile, *tokens[5].candidates))
    figure = plots_decoder.candidates(token, 0.3, ("LLM", "memory", "mix"))
    assert [bars.name for bars in figure.data] == ["LLM", "memory", "mix"]
    best = trace.remix(token, 0.3)[: plots_decoder.SHOWN]
    assert list(figure.data[2].x) == [math.exp(p) for _, p in best]
    assert "<a" not in "".join(figure.layout.yaxis.ticktext) and "&lt;a" in "".join(figure.layout.yaxis.ticktext)
    assert plotly.io.to_json(figure)
    last = trace.remix(tokens[5], 0.3)[-1][0]
    unlikely = trace.Token(last.id, last.text, last.llm, last.memory, tokens[5].candidates)
    ticks = plots_decoder.candidates(unlikely, 0.3).layout.yaxis.ticktext  # what came is there, however improbable
    assert len(ticks) == plots_decoder.SHOWN and ticks[-1] == f"<b>{plots_decoder.label(last.text)}</b>"
    assert plots_decoder.label("\n ") == "↵·" and plots_decoder.label("") == "∅"
