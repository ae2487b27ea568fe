"""The recall adapter: nothing at first, a plain LoRA behind a memory, and never anywhere else."""

import copy

import pytest
import tiny
import torch
from rlgf_case import LAKE, MILL, ids_of

from memo.adapter import SCALE, Adapter
from memo.attention import MemoryWeights, Row, run
from memo.errors import ModelError
from memo.evaluate import probes
from memo.generate import LocalGenerator, Prompt, write
from memo.memory import inference, read_all
from memo.train import sft, study
from memo.train.pretrain import behind
from memo.train.recipe import Tuning
from memo.train.setup import trainable
from memo.train.ship import ship

PLAN = Tuning(steps=1, batch=1, window=24, ratios=(4,), most=12)


def adapted(family="llama", drawn=True):
    """A model whose weights have an adapter; drawn: one that changes something."""
    reader = tiny.memory_model(family)
    reader.weights = tiny.perturbed(reader.model)
    reader.weights.adapter = Adapter(reader.model, 4)
    if drawn:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in reader.weights.adapter.named_parameters():
                if name.endswith("up"):
                    weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    return reader


def merged(reader):
    """The same model, with s B A added to its maps."""
    other = copy.deepcopy(reader.model)
    with torch.no_grad():
        for layer, own in zip(other.get_decoder().layers, reader.weights.adapter.layers, strict=True):
            for name, low in own.items():
                layer.get_submodule(name.replace("/", ".")).weight += SCALE * low.up @ low.down
    return other


def slots_of(reader):
    with inference(reader):
        return sft.memorize(reader, ids_of(reader, MILL, LAKE), 24, 4)


def last_logits(reader, ids, rows):
    with inference(reader):
        return reader.advance(torch.tensor(ids), rows)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_new_adapter_changes_nothing(family):
    reader = adapted(family, drawn=False)
    slots, ids = slots_of(reader), reader.encode("Who bought it?", start=False)[0]
    with_it = last_logits(reader, [ids], [Row(slots)])
    reader.weights.adapter = None
    assert torch.equal(with_it, last_logits(reader, [ids], [Row(slots)]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_behind_a_memory_it_is_the_model_with_the_products_added(family):
    reader = adapted(family)
    slots, ids = slots_of(reader), reader.encode("Who bought it?", start=False)[0]
    other = merged(reader)
    with torch.no_grad():
        embeddings = other.get_input_embeddings()(torch.tensor([ids]))
        expected = other.get_output_embeddings()(run(other, embeddings, [Row(slots)])[:, -1])
    found = last_logits(reader, [ids], [Row(slots)])
    assert torch.allclose(found, expected, atol=1e-4)
    reader.weights.adapter = None
    assert not torch.allclose(found, last_logits(reader, [ids], [Row(slots)]), atol=1e-2)


def test_rows_without_a_memory_are_read_by_the_frozen_model_in_the_same_batch():
    reader = adapted()
    slots, ids = slots_of(reader), reader.encode("Who bought it?", start=False)[0]
    rows = [Row(), Row(slots), Row(), Row(slots)]
    for row in rows:
        last_logits(reader, [ids], [row])
    together = last_logits(reader, [[1], [2], [3], [4]], rows)
    for number, slots_or_none in enumerate([None, slots, None, slots]):
        row = Row(slots_or_none)
        last_logits(reader, [ids], [row])
        if slots_or_none is None:
            reader.weights.adapter, kept = None, reader.weights.adapter
        alone = last_logits(reader, [[number + 1]], [row])
        if slots_or_none is None:
            reader.weights.adapter = kept
        assert torch.allclose(together[number], alone[0], atol=1e-4)


def test_behind_the_plain_cache_of_a_text_the_model_is_the_frozen_one():
    reader = adapted()
    slots, ids = study.plain_slots(reader, reader.encode(MILL)[0]), reader.encode("Who bought it?", start=False)[0]
    frozen = tiny.memory_model()
    assert torch.equal(last_logits(reader, [ids], [Row(slots)]), last_logits(frozen, [ids], [Row(slots)]))


def test_losses_study_and_probes_read_as_recalling_does():
    reader = adapted()
    slots, ids = slots_of(reader), reader.encode("Who bought it?", start=False)[0]
    expected = last_logits(reader, [ids[:-1]], [Row(slots)]).log_softmax(dim=-1)[0, ids[-1]]
    with torch.no_grad():
        [hidden] = behind(reader, slots, [torch.tensor([ids[:-1]])])
        assert torch.allclose(reader.logits(hidden[:, -1]).log_softmax(dim=-1)[0, ids[-1]], expected, atol=1e-4)
        [given] = sft.log_probs(reader, slots, [sft.Target("draft", tuple(ids[:-1]), (ids[-1],))])
        found = study.logits(reader, slots, [study.Exercise(0, tuple(ids), len(ids) - 1)])
    assert torch.allclose(given, expected, atol=1e-4)
    assert torch.allclose(found.log_softmax(dim=-1)[0, ids[-1]], expected, atol=1e-4)
    [loss], _ = probes.score(reader, probes.Context(slots, len(slots)), ids, len(ids) - 1)
    assert torch.allclose(-loss, expected, atol=1e-4)
    case = probes.Case(reader, "a", 3 * tiny.TEXT, 200, 0)  # the plain cache, whole or in part: the frozen model
    frozen = probes.Case(tiny.memory_model(), "a", 3 * tiny.TEXT, 200, 0)
    assert case.measure(case.full) == frozen.measure(frozen.full)
    assert case.measure(case.evicted("streaming", 20)) == frozen.measure(frozen.evicted("streaming", 20))


def test_a_batch_of_both_kinds_answers_as_each_alone():
    reader = adapted()
    slots, generator = slots_of(reader), LocalGenerator(reader, "")
    prompts = [Prompt((("user", "Who bought it?"),), 8, slots=behind_memory) for behind_memory in (None, slots)]
    run = generator.open()
    streams = [run.add(prompt) for prompt in prompts]
    while run.step():
        pass
    assert [stream.text for stream in streams] == [write(generator, prompt).text for prompt in prompts]


def test_reading_a_document_does_not_know_it():
    reader = adapted()
    memory = read_all(reader.memorize(tiny.TEXT, "a", 4, 24))
    reader.weights.adapter = None
    other = read_all(reader.memorize(tiny.TEXT, "a", 4, 24))
    assert torch.equal(memory.keys, other.keys) and torch.equal(memory.values, other.values)


def test_nothing_is_left_of_it_after_an_error():
    reader = adapted()
    with pytest.raises(RuntimeError, match="stopped"), reader.recalling([Row(slots_of(reader))]):
        raise RuntimeError("stopped")
    assert not any(module._forward_hooks for module in reader.model.modules())


def test_answers_from_passages_are_those_of_the_frozen_model():
    reader = adapted()
    prompt = Prompt((("user", "Who bought it?"),), 8)
    frozen = write(LocalGenerator(tiny.memory_model(), ""), prompt).text
    assert write(LocalGenerator(reader, ""), prompt).text == frozen
    slots = slots_of(reader)
    behind = Prompt((("user", "Who bought it?"),), 8, slots=slots)
    with_it = write(LocalGenerator(reader, ""), behind)
    reader.weights.adapter = None
    assert write(LocalGenerator(reader, ""), behind).logprob != with_it.logprob


def test_sft_trains_it_and_leaves_the_model():
    reader = adapted(drawn=False)
    trainable(reader.weights, adapter=True)
    frozen = {name: weight.clone() for name, weight in reader.model.named_parameters()}
    target = sft.Target("draft", tuple(reader.encode("Who? ", start=False)[0]), tuple(reader.encode("Anna")[0]))
    group = sft.Group(ids_of(reader, MILL, LAKE), (target,), 4)
    optimizer = torch.optim.AdamW([w for w in reader.weights.parameters() if w.requires_grad], lr=1e-2)
    before = None
    for _ in range(3):
        loss = sft.losses(reader, group, PLAN)["loss"].sum()
        before = before or float(loss.detach())
        loss.backward()
        assert all(w.grad is not None for w in reader.weights.adapter.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(weight.grad is None and torch.equal(weight, frozen[name])
               for name, weight in reader.model.named_parameters())  # fmt: skip
    assert float(sft.losses(reader, group, PLAN)["loss"].detach()) < before


def test_a_stage_that_does_not_recall_leaves_it_alone():
    weights = trainable(adapted().weights)
    assert not any(weight.requires_grad for weight in weights.adapter.parameters())


@pytest.mark.parametrize("shipped", [False, True])
def test_it_comes_back_with_the_weights(tmp_path, shipped):
    reader = adapted()
    path = tmp_path / "run" / "weights.safetensors"
    path.parent.mkdir()
    reader.weights.save(path)
    if shipped:
        (path.parent / "run.json").write_text('{"plan": {"steps": 1, "batch": 1, "learning_rate": 1}, "start": "", '
                                              '"data": []}')  # fmt: skip
        (path.parent / "log.jsonl").write_text('{"step": 1, "tokens": 1, "seconds": 1, "loss": 1}\n')
        ship(path.parent, tmp_path / "shipped", "tiny", "none")
        path = tmp_path / "shipped"
        assert "a LoRA of rank 4" in (path / "README.md").read_text()
    loaded = MemoryWeights.load(path, reader.model)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    for (name, one), (other_name, other) in zip(
        reader.weights.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.allclose(one, other, rtol=1e-2, atol=1e-3 if shipped else 0)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    reader = adapted()
    other = adapted("qwen3")
    other.weights.save(tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        MemoryWeights.load(tmp_path / "weights.safetensors", reader.model)
