"""Distillation: the sparse loss is the dense one, groups do not matter, the mix with what comes out beats the model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from test_datastore import corpus

from memo import datastore, decoder, knn, targets
from memo.errors import SettingsError
from memo.evaluate import perplexity
from memo.knn import Sparse
from memo.train import decode, distill, loop
from memo.train.distill import sparse_kl
from memo.train.recipe import Distilling

PLAN = Distilling(steps=6, batch=4, micro=2, learning_rate=3e-3, layers=2, save_every=2)
TEXTS = tuple(tiny.TEXT[i : i + 150] for i in range(0, 240, 60))


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def taught(llm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    store = datastore.build(llm, corpus(*TEXTS), folder / "store", window=64, stride=32)
    return store, targets.write_targets(knn.index(store), 6, 30.0, folder / "targets")


def test_sparse_kl_equals_dense_kl():
    torch.manual_seed(0)
    logits, dense = torch.randn(5, 30, requires_grad=True), torch.zeros(5, 30)
    for row in range(4):  # the last row has no target
        dense[row, torch.randperm(30)[: row + 1]] = torch.rand(row + 1) + 0.1
    dense[:4] /= dense[:4].sum(-1, keepdim=True)
    rows, tokens = dense.nonzero(as_tuple=True)
    sparse = sparse_kl(logits, rows, tokens, dense[rows, tokens])
    whole = torch.nn.functional.kl_div(logits.log_softmax(-1), dense, reduction="none").sum(-1)
    assert torch.allclose(sparse, whole, atol=1e-5)
    ours, theirs = (torch.autograd.grad(one.sum(), logits, retain_graph=True)[0] for one in (sparse, whole))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_losses_by_a_slow_loop(llm, taught):
    store, known = taught
    student = decoder.first_layers(llm, 2)
    some = [store.blocks[0], store.blocks[5], store.blocks[1]]
    batch = distill.batch(store.tokens, some, [known.of(*store.entries(block)) for block in some])
    found = distill.losses(student, batch, replace(PLAN, kl_weight=0.3))
    for number, block in enumerate(some):
        ids = store.tokens.piece(block.start, block.end - block.start)
        logp = student(ids[None]).logits[0].log_softmax(-1).detach()
        sparse, kl, ce = known.of(*store.entries(block)), 0.0, 0.0
        for row, place in enumerate(range(block.first, block.end)):
            before = logp[place - block.start - 1]
            ce -= float(before[int(store.tokens.ids[place])]) / len(sparse)
            for at in range(sparse.ends[row], sparse.ends[row + 1]):
                p = float(sparse.probabilities[at])
                kl += p * (np.log(p) - float(before[sparse.tokens[at]])) / len(sparse)
        assert found["ce"][number].item() == pytest.approx(ce, abs=1e-4)
        assert found["kl"][number].item() == pytest.approx(kl, abs=1e-4)
        assert found["loss"][number].item() == pytest.approx(0.3 * kl + 0.7 * ce, abs=1e-4)


def test_logits_in_parts_are_the_same(llm, taught, monkeypatch):
    store, known = taught
    student = decoder.first_layers(llm, 2).requires_grad_(True)
    some = store.blocks[:3]
    batch = distill.batch(store.tokens, some, [known.of(*store.entries(block)) for block in some])
    weights, found = list(decoder.own(student, llm).parameters()), []
    for size in (512, 7):
        monkeypatch.setattr(distill, "PART", size)
        loss = distill.losses(student, batch, PLAN)["loss"]
        found.append([loss, *torch.autograd.grad(loss.sum(), weights)])
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)


def run(llm, taught, plan, folder, until=None):
    store, known = taught
    student = decoder.first_layers(llm, plan.layers).requires_grad_(False)
    weights = decoder.own(student, llm).requires_grad_(True)
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    groups = distill.groups(store, known, plan)
    losses = partial(distill.losses, student, plan=plan)
    loop.train(weights, groups, losses, plan, folder, {}, accelerator, until=until)
    return {name: weight.detach().clone() for name, weight in weights.state_dict().items()}


def test_small_batches_add_up_to_the_large_one(llm, taught, tmp_path):
    one = run(llm, taught, replace(PLAN, micro=4, steps=2), tmp_path / "one")
    four = run(llm, taught, replace(PLAN, micro=1, steps=2), tmp_path / "four")
    for name in one:
        assert torch.allclose(one[name], four[name], atol=1e-4), name


def test_resumed_equals_uninterrupted_and_the_llm_is_untouched(llm, taught, tmp_path):
    before = {name: weight.clone() for name, weight in llm.state_dict().items()}
    whole = run(llm, taught, PLAN, tmp_path / "whole")
    run(llm, taught, PLAN, tmp_path / "parts", until=4)
    parts = run(llm, taught, PLAN, tmp_path / "parts")
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    for name, weight in llm.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_corpus_shorter_than_a_step_is_refused(llm, taught):
    store, known = taught
    with pytest.raises(SettingsError, match="a step reads 100"):
        distill.groups(store, known, replace(PLAN, batch=100))
    with pytest.raises(SettingsError, match="needs targets"):
        distill.groups(store, None, PLAN)


def test_held_out_text_is_not_learnt():
    many = corpus(*(chr(65 + i) * 10 for i in range(45)))
    learnt, held = decode.held_out(many)
    assert len(held.ids) == 20
    assert not set(learnt.ids.tolist()) & set(held.ids.tolist())
    few = corpus("a" * 90 + "b" * 10, "c" * 45 + "d" * 5)
    learnt, held = decode.held_out(few)
    assert set(learnt.ids.tolist()) == {ord("a"), ord("c")}
    assert set(held.ids.tolist()) == {ord("b"), ord("d")}
    assert held.bounds == (0, 10, 15)


def test_from_a_corpus_to_a_decoder(llm, tmp_path):
    tokens = corpus(*(tiny.TEXT[i : i + 200] for i in range(0, 160, 20)))
    plan = replace(PLAN, steps=60, batch=4, micro=4)
    told: list[str] = []
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    learnt, held = decode.held_out(tokens)

    def make():
        return decode.make(
            llm, tiny.tokenizer(), learnt, held, tmp_path, plan, accelerator, {"name": "mill"},
            lambda progress: told.append(progress.stage),
        )  # fmt: skip

    about = make()
    assert list(dict.fromkeys(told)) == ["reading", "indexing", "choosing", "neighbours", "training", "done"]
    losses = about["held_out_perplexity"]
    assert losses["mixed"] < losses["llm"]
    assert losses["mixed"] <= losses["decoder"]
    assert about["alpha"] > 0 and about["name"] == "mill"
    saved = decoder.load(tmp_path, llm, tiny.tokenizer())
    some = decode.first_blocks(held, decode.HELD_TOKENS)
    plain, alone = (perplexity.read(model, held, some).logp for model in (llm, saved))
    assert perplexity.perplexity(perplexity.mixed(plain, alone, about["alpha"])) == pytest.approx(losses["mixed"])
    told.clear()
    assert make() == about  # finished: nothing is trained again
    assert "training" not in told


def test_perplexity_by_a_slow_loop(llm):
    tokens = corpus(tiny.TEXT[:150], "short one")
    some = datastore.blocks(tokens.bounds, 64, 32)
    found, logps = perplexity.read(llm, tokens, some, keys=True), []
    for block in some:
        logp = llm(tokens.piece(block.start, block.end - block.start)[None]).logits[0].log_softmax(-1)
        logps += [float(logp[t - block.start - 1, int(tokens.ids[t])]) for t in range(block.first, block.end)]
    assert np.allclose(found.logp, logps, atol=1e-4)
    assert perplexity.labels(tokens, some).tolist() == [int(tokens.ids[t]) for b in some for t in range(b.first, b.end)]
    assert found.keys.shape == (len(logps), 64)


def test_mixing_label_probabilities():
    a, b = np.log([0.5, 0.1]), np.log([0.1, 0.9])
    assert np.allclose(np.exp(perplexity.mixed(a, b, 0.25)), [0.4, 0.3])
    assert np.allclose(perplexity.mixed(a, b, 0.0), a)
    assert np.allclose(perplexity.mixed(a, b, 1.0), b)
    assert perplexity.best_alpha(np.log([0.5]), np.log([0.1])) == 0.0


def test_rows_joined():
    one = Sparse(np.array([0, 2, 3]), np.array([1, 2, 3]), np.array([0.5, 0.5, 1.0], np.float32))
    both = knn.joined([one, one])
    assert both.ends.tolist() == [0, 2, 3, 5, 6]
    assert both.rows().tolist() == [0, 0, 1, 2, 2, 3]
