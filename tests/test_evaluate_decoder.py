"""A Memory Decoder against its rivals: what each of them is, by hand; equal budgets; resuming; the report."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator

from memo import datastore, decoder, knn
from memo.cli import main
from memo.errors import ModelError, SettingsError
from memo.evaluate import adaptation, in_context, perplexity, routing, speed_decoder
from memo.evaluate import decoder as measuring
from memo.evaluate.adaptation import Rivals
from memo.evaluate.decoder_bench import Bench, Text, first_tokens
from memo.evaluate.report import report
from memo.evaluate.rows import Rows
from memo.train import distill
from memo.train.recipe import Distilling
from memo.train.texts import TokenFile

PLAN = Distilling(steps=30, batch=4, micro=4, learning_rate=3e-3, layers=1, save_every=10, kl_weight=0.5)
RIVALS = Rivals(passage=40, query=16, refresh=24, router_steps=20, trial=0.2)
TOKENIZER = tiny.tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def corpus(*texts: str) -> TokenFile:
    ids = [ids_of(text) for text in texts]
    bounds = tuple(itertools.accumulate(map(len, ids), initial=0))
    return TokenFile(np.array([i for one in ids for i in one], dtype=np.uint32), bounds, (bounds[-1],))


LEARNT = corpus(*(tiny.TEXT[i : i + 200] for i in range(0, 160, 20)))
HELD = corpus(tiny.TEXT[10:180], tiny.TEXT[200:330], tiny.TEXT[100:220])
TEST = corpus(*(tiny.TEXT[i : i + 110] for i in (33, 87, 145, 201)))
OTHER = corpus(tiny.KOREAN, tiny.KOREAN[10:])


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def store(llm, tmp_path_factory):
    return datastore.build(llm, LEARNT, tmp_path_factory.mktemp("store"), window=64, stride=32)


def accelerator():
    return Accelerator(mixed_precision="no", cpu=True)


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def text(tokens):
    return Text(tokens, datastore.blocks(tokens.bounds))


def ce(model, tokens):
    some = datastore.blocks(tokens.bounds, 64, 32)
    return -perplexity.read(model, tokens, some).logp.mean()


# --- DAPT and LoRA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_dapt_trains_every_weight_of_a_copy(tied, store, tmp_path):
    llm = tiny.model("llama", tie_word_embeddings=tied)
    before, plan = weights_of(llm), replace(PLAN, kl_weight=0.0, learning_rate=3e-3)
    model, weights = adaptation.dapt(llm)
    assert adaptation.size_of(weights) == sum(one.numel() for one in llm.parameters())
    loss = ce(model, LEARNT)
    took = adaptation.train(model, weights, store, plan, tmp_path / "run", {}, accelerator())
    assert ce(model, LEARNT) < loss - 0.1
    assert took["blocks"] == 120 and took["tokens"] == json.loads(
        (tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["tokens"]  # fmt: skip
    assert all(torch.equal(weight, before[name]) for name, weight in llm.state_dict().items())
    moved = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(moved) == len(before)
    again, empty = adaptation.dapt(llm)  # as after a kill: the weights come from the checkpoint
    assert adaptation.train(again, empty, store, plan, tmp_path / "run", {}, accelerator()) == took
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_lora_is_as_large_as_it_should_be_and_starts_as_the_model(family):
    llm = tiny.foreign() if family == "gpt2" else tiny.model(family)
    before = weights_of(llm)
    for wanted in (20_000, 60_000):
        model, weights = adaptation.lora(llm, wanted, 1.0, 0)
        each = adaptation.size_of(weights) / adaptation.rank_for(llm, wanted)
        assert abs(adaptation.size_of(weights) - wanted) <= each / 2
        assert {id(one) for one in model.parameters() if one.requires_grad} == {id(one) for one in weights.values()}
    assert ce(model, TEST) == ce(llm, TEST)
    assert all(torch.equal(weight, before[name]) for name, weight in llm.state_dict().items())
    assert not any("lora" in name for name in llm.state_dict())


def test_lora_adds_the_scaled_product_and_nothing_else_is_trained(llm, store, tmp_path):
    model, weights = adaptation.lora(llm, 20_000, 2.0, 0)
    plan = replace(PLAN, kl_weight=0.0, learning_rate=1e-2)
    adaptation.train(model, weights, store, plan, tmp_path / "run", {}, accelerator())
    plain, added = llm.model.layers[1].mlp.up_proj, model.model.layers[1].mlp.up_proj
    a, b = added.lora_A["default"].weight, added.lora_B["default"].weight
    x = torch.randn(3, 64)
    assert torch.allclose(added(x), x @ (plain.weight + 2 * b @ a).T, atol=1e-4)
    assert torch.equal(added.base_layer.weight, plain.weight)
    assert ce(model, LEARNT) < ce(llm, LEARNT) - 0.1


def test_a_trial_is_deleted(llm, store, tmp_path):
    make = partial(adaptation.lora, llm, 20_000, 1.0, 0)
    found = adaptation.tried(make, store, replace(PLAN, kl_weight=0.0), 0.1, tmp_path / "trial", {}, accelerator(),
                             lambda model: ce(model, HELD))  # fmt: skip
    assert found != ce(llm, HELD) and not (tmp_path / "trial").exists()


def test_a_model_without_known_projections_has_no_lora(llm):
    class Odd(torch.nn.Module):
        config = llm.config

    with pytest.raises(ModelError, match="no projections"):
        adaptation.projections(Odd())


# --- in-context RAG --------------------------------------------------------------------------------------------------


def before(made, prompts, tokens, some):
    """The passage of each prompt; behind it stands the block up to the stretch's end, of which the stretch counts."""
    found, at = [], iter(prompts)
    for block in some:
        for first in range(block.first, block.end, RIVALS.refresh):
            prompt = next(at)
            end = min(first + RIVALS.refresh, block.end)
            ids, own = made.ids[prompt.start : prompt.end].tolist(), tokens.ids[block.start : end].tolist()
            assert ids[len(ids) - len(own) :] == own and prompt.end - prompt.first == end - first
            found.append(tuple(ids[: len(ids) - len(own)]))
    assert next(at, None) is None
    return found


def test_prompts_predict_the_same_tokens_after_a_passage():
    passages = in_context.Passages(LEARNT, TOKENIZER, 40)
    some = datastore.blocks(TEST.bounds, 64, 32)
    made, blocks = in_context.prompts(passages, TEST, some, RIVALS, 2048)
    assert perplexity.labels(made, blocks).tolist() == perplexity.labels(TEST, some).tolist()
    known, found = {tuple(ids.tolist()) for ids in passages.ids}, before(made, blocks, TEST, some)
    assert all(one in known for one in found if one) and any(found)


def test_a_prompt_fits_the_positions():
    passages = in_context.Passages(LEARNT, TOKENIZER, 40)
    some = datastore.blocks(TEST.bounds, 64, 32)
    made, blocks = in_context.prompts(passages, TEST, some, RIVALS, 80)
    assert max(block.end - block.start for block in blocks) <= 80
    assert perplexity.labels(made, blocks).tolist() == perplexity.labels(TEST, some).tolist()


def test_the_passage_is_the_one_with_the_words_of_the_query():
    learnt = corpus("A flood took the bridge. ", "Nobody reads of oak blades. ", "Winter froze the river. ")
    passages = in_context.Passages(learnt, TOKENIZER, 40)
    query = np.array(ids_of("the river in winter"))
    assert passages.best(query) == 2
    assert passages.best(query, np.array([1, 1, 0], np.float32)) == 0
    assert passages.best(np.array(ids_of("xyzzy"))) is None


def test_no_passage_is_of_the_tested_document_itself():
    same, cut, other = tiny.TEXT[:200], tiny.TEXT[:120], tiny.TEXT[200:380]
    learnt = corpus(other, same, "tiny", cut)
    passages = in_context.Passages(learnt, TOKENIZER, 40)
    tested = corpus(same, "tiny")
    numbers = datastore.context_numbers(tested)
    for document, own in ((0, {1, 3}), (1, {2})):
        begin, end = tested.bounds[document : document + 2]
        allowed = passages.allowed(tested.ids[begin:end], numbers[begin:end])
        assert set(passages.documents[allowed == 0]) == own
    some = datastore.blocks(tested.bounds, 64, 32)
    made, blocks = in_context.prompts(passages, tested, some, RIVALS, 2048)
    others = {tuple(ids.tolist()) for ids, of in zip(passages.ids, passages.documents, strict=True) if of in (0, 2)}
    found = before(made, blocks, tested, some)
    assert any(found) and all(one in others for one in found if one)


# --- the router ------------------------------------------------------------------------------------------------------


def test_only_the_router_has_a_gradient_and_its_mix_is_the_equation(llm):
    student = decoder.first_layers(llm, 1).requires_grad_(False)
    mixed = routing.made(llm, student, 0)
    seen = routing.look(mixed, TEST, datastore.blocks(TEST.bounds, 64, 32)[1])
    logp, alpha = routed = routing.routed(mixed, seen)
    assert all(((one > 0) & (one < 1)).all() for one in (logp.exp(), alpha))
    logp.mean().backward()
    assert all(one.grad is not None for one in mixed.alpha.parameters())
    assert not any(one.requires_grad for part in (llm, student) for one in part.parameters())
    block = datastore.blocks(TEST.bounds, 64, 32)[1]
    plain, memory = (perplexity.read(model, TEST, [block]).logp for model in (llm, student))
    assert np.allclose(perplexity.mixed(plain, memory, alpha.detach().numpy()), routed[0].detach().numpy(), atol=1e-4)
    whole = mixed(input_ids=TEST.piece(block.start, block.end - block.start)[None]).logits[0]
    places = torch.arange(block.first, block.end) - block.start - 1
    assert torch.allclose(whole[places, seen.labels], logp, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(routing.routed(mixed, seen)[0], logp)


def test_a_router_learns_which_model_knows(llm, tmp_path):
    student = decoder.first_layers(llm, 1).requires_grad_(False)
    mixed, some = routing.made(llm, student, 0), datastore.blocks(HELD.bounds, 64, 32)
    before = -routing.read(mixed, HELD, some)[0].mean()
    rivals = replace(RIVALS, router_steps=60, router_rate=3e-3)
    routing.train(mixed, HELD, some, rivals, 0, tmp_path, {}, accelerator())
    assert -routing.read(mixed, HELD, some)[0].mean() < before


def test_halves_are_every_second_block():
    some = datastore.blocks(HELD.bounds, 64, 32)
    half, of = routing.halves(some)
    assert of(perplexity.labels(HELD, some)).tolist() == perplexity.labels(HELD, half).tolist()


# --- speed -----------------------------------------------------------------------------------------------------------


def test_what_is_timed_says_what_it_should(llm, store):
    index, values = knn.index(store), store.values
    searching = speed_decoder.Searching(llm, index, 4, 30.0, 0.4)
    ids = TEST.piece(0, 30)[None]
    with torch.no_grad(), datastore.keeping_keys(llm) as kept:
        p = 0.6 * llm(input_ids=ids).logits[0, -1].softmax(-1)
    for token in range(len(p)):
        voted = knn.distribution(index.search(kept[0][0, -1:].numpy(), 4), values, 30.0).of(np.array([token]))
        p[token] += 0.4 * float(voted[0])
    with torch.no_grad():
        assert searching(ids, None)[0].item() == int(p.argmax())
        passages = in_context.Passages(LEARNT, TOKENIZER, 40)
        plain = speed_decoder.Plain(llm)
        cache = speed_decoder.WithPassage(plain, passages, 40, 16)(ids, None)[1]
    assert cache.get_seq_length() == 70


def test_speed_rows_are_ratios_in_turns(llm, store):
    student, plain = decoder.first_layers(llm, 1).eval(), speed_decoder.Plain(llm)
    passages = in_context.Passages(LEARNT, TOKENIZER, 40)
    systems = {"base": plain, "mixed": speed_decoder.Plain(decoder.Mixed(llm, student, 0.5)),
               "knn_lm": speed_decoder.Searching(llm, knn.index(store), 4, 30.0, 0.4),
               "rag": speed_decoder.WithPassage(plain, passages, 40, 16)}  # fmt: skip
    rows = speed_decoder.measure(systems, TEST.ids, llm.device, 8, 2, prompt=32, count=3, batches=(1, 2))
    assert [(row["system"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in (*systems, "rag_refreshed")
    ]
    assert rows[0]["read"]["ratio"] == rows[0]["token"]["ratio"] == 1
    assert "read" not in rows[4] and rows[4]["token"]["seconds"] > rows[3]["token"]["seconds"]


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Speed is measured on little."""
    for name, value in {"PROMPT": 32, "TOKENS": 2, "BATCHES": (1,)}.items():
        monkeypatch.setattr(speed_decoder, name, value)


@pytest.fixture
def measured(llm, tmp_path, quick):
    """A function: a whole measurement in small; and the bench."""

    def run(**changes):
        bench = Bench(**{
            "domain": "mill", "llm": llm, "tokenizer": TOKENIZER, "learnt": LEARNT,
            "texts": {"held": text(HELD), "test": text(TEST), "other": text(OTHER)}, "plan": PLAN, "rivals": RIVALS,
            "work": tmp_path / "work", "accelerator": accelerator(),
            "rows": Rows(tmp_path / "rows.jsonl", {"all": 1}), "tell": lambda line: None,
        } | changes)  # fmt: skip
        return measuring.evaluate(bench, 1), bench

    return run


def test_everything_is_measured_with_one_budget_and_once(measured, llm, monkeypatch, tmp_path):
    before = weights_of(llm)
    found, bench = measured()
    assert all(torch.equal(weight, before[name]) for name, weight in llm.state_dict().items())
    assert {(one["blocks"], one["tokens"]) for one in found["trained"].values()} == {
        (120, found["trained"]["dapt"]["tokens"])
    }
    sizes = {name: one["parameters"] for name, one in found["trained"].items()}
    assert sizes["decoder"] == sizes["ce"] == sizes["kl"] and sizes["dapt"] == found["what"]["parameters"]
    assert abs(sizes["lora"] - sizes["decoder"]) <= sizes["lora"] / found["trained"]["lora"]["rank"] / 2
    assert found["alpha_zero"]["largest_difference"] < 1e-4
    by = {row["way"]: row["perplexity"]["mean"] for row in found["test"]}
    assert list(by) == list(dict.fromkeys(row["way"] for row in found["other"])) and len(by) == 11
    assert by["decoder_mixed"] < by["base"] and by["dapt"] < by["base"] and by["knn_lm"] < by["base"]
    sweep = {row["alpha"]: row["perplexity"]["mean"] for row in found["sweep"]}
    assert sweep[0.0] == by["base"] and sweep[1.0] == by["decoder"]
    assert sweep[found["alphas"]["decoder_mixed"]] == by["decoder_mixed"]
    mixed = next(row for row in found["test"] if row["way"] == "decoder_mixed")
    assert mixed["over_base"]["mean"] == pytest.approx(by["decoder_mixed"] / by["base"], abs=1e-3)
    assert mixed["perplexity"]["n"] == 4 and mixed["perplexity"]["low"] <= by["decoder_mixed"]
    assert mixed["perplexity"]["high"] >= by["decoder_mixed"]
    assert found["what"]["also_learnt"] == {"test": 4, "other": 0}
    assert [one["entries"] for one in found["store"]["sizes"]] == [783, 1566]
    loaded = decoder.load(bench.work / "decoder", llm, TOKENIZER)
    alone = perplexity.perplexity(perplexity.read(loaded, TEST, bench.texts["test"].blocks).logp)
    assert alone == pytest.approx(by["decoder"], abs=1e-3)
    monkeypatch.setattr(perplexity, "read", None)
    monkeypatch.setattr(adaptation, "train", None)
    assert measured()[0] == found  # nothing is measured again
    with pytest.raises(SettingsError, match="another run"):
        Rows(tmp_path / "rows.jsonl", {"all": 2})


def test_a_run_that_was_killed_comes_to_the_same(measured, tmp_path, monkeypatch):
    def timeless(found):
        for name in ("speed", "store"):
            found.pop(name)
        for one in [*found["trained"].values(), found["router"]]:
            one.pop("seconds")
        return found

    whole = timeless(measured()[0])
    (tmp_path / "rows.jsonl").unlink()
    parts, trained = tmp_path / "again", distill.losses
    calls = iter(range(1000))

    def dies(*given, **more):
        if next(calls) == 115:  # decoders of three objectives have had 30 steps each, DAPT's trials 6: DAPT has 13
            raise KeyboardInterrupt
        return trained(*given, **more)

    monkeypatch.setattr(distill, "losses", dies)
    with pytest.raises(KeyboardInterrupt):
        measured(work=parts)
    assert [path.name for path in sorted((parts / "dapt" / "run").glob("checkpoint-*"))] == ["checkpoint-000010"]
    monkeypatch.setattr(distill, "losses", trained)
    assert timeless(measured(work=parts)[0]) == whole


def test_what_cannot_be_measured_is_refused(measured):
    with pytest.raises(SettingsError, match="kl_weight is 0"):
        measured(plan=replace(PLAN, kl_weight=0.0))
    few = Text(HELD, datastore.blocks(HELD.bounds)[:1])
    with pytest.raises(SettingsError, match="too short"):
        measured(texts={"held": few, "test": text(TEST)})


def test_a_store_of_the_first_tokens():
    cut = first_tokens(TEST, 150)
    assert cut.bounds == (0, 110, 150) and cut.ids.tolist() == TEST.ids[:150].tolist()
    assert first_tokens(TEST, 10_000).bounds == TEST.bounds


def test_the_command_and_the_report(tmp_path, monkeypatch, quick, tiny_folder, capsys):
    for name, value in {"MEMORY_MODEL": str(tiny_folder), "DEVICE": "cpu", "DTYPE": "float32"}.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    for name, count in (("learn", 6), ("held", 3), ("test", 3), ("other", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.txt").write_text(tiny.TEXT[number * 20 + len(name) : 300] + name * 5)
    out = tmp_path / "decoder" / "mill.json"
    command = ["evaluate", "decoder", "--domain", "mill", "--learn", tmp_path / "learn", "--held-out",
               tmp_path / "held", "--test", tmp_path / "test", "--set", "steps=4", "--set", "batch=2", "--set",
               "micro=2", "--set", "layers=1", "--repeats", 1, "--work", tmp_path / "work", "--out", out]  # fmt: skip
    command = [str(word) for word in command]
    assert main(command) == 0
    results = json.loads(out.read_text())["results"]
    assert "other" not in results and results["what"]["domain"] == "mill"
    assert str(tmp_path) not in json.dumps(results)
    assert '"way": "decoder_mixed"' in capsys.readouterr().out
    report(tmp_path, tmp_path / "RESULTS.md")
    lines = (tmp_path / "RESULTS.md").read_text()
    assert "a Memory Decoder in 1 domain." in lines and "### mill (mill)" in lines and "DAPT-small" in lines
    assert "| decoder/mill.json |" in lines and "other texts" not in lines
    again = [*command, "--other", str(tmp_path / "other")]
    assert main(again) == 2 and "another run" in capsys.readouterr().err
    again[-3] = str(tmp_path / "decoder" / "two.json")
    assert main(again) == 0
    report(tmp_path, tmp_path / "RESULTS.md")
    lines = (tmp_path / "RESULTS.md").read_text()
    assert "### mill (two)" in lines and "other texts / the model alone" in lines
