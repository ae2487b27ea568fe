"""Attention over a memory: who sees what, batches against single rows, frozen weights, gradients."""

import copy

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from memo.attention import MemoryWeights, Row, Slots, beside, causal, memory_projections, rotate, run
from memo.errors import ModelError

FAMILIES = list(tiny.FAMILIES)


def ids_of(text):
    return torch.tensor(tiny.tokenizer()(text).input_ids)


def plain_logits(model, ids):
    """What transformers' own attention makes of a text: logits (T, V)."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        return plain(ids[None]).logits[0]


def logits_of(model, hidden):
    return model.get_output_embeddings()(hidden)


@torch.no_grad()
def read(model, ids, rows):
    """ids (B, T) -> logits (B, T, V)."""
    return logits_of(model, run(model, model.get_input_embeddings()(ids), rows))


def random_slots(model, count, seed=3, by=1.0):
    config, generator = model.config, torch.Generator().manual_seed(seed)
    size = model.get_decoder().layers[0].self_attn.head_dim
    shape = (1, config.num_key_value_heads, count, size)
    device, dtype = model.device, model.dtype

    def some():
        layers = range(config.num_hidden_layers)
        return [(by * torch.randn(shape, generator=generator)).to(device, dtype) for _ in layers]

    return Slots(some(), some())


@torch.no_grad()
def memory_of(memory_model, ids, ratio, slots=None, last=None):
    """One window memorized: keys, values (L, J, k, D), places (k,), logits (V,)."""
    last = None if last is None else last[None]
    read = memory_model.read_window(ids[None], slots, ratio, last)
    return read.keys[:, 0], read.values[:, 0], read.places[0], read.next_logits[0]


# --- a memory at ratio 1 is the full cache ---------------------------------------------------------------------------


def memorized_tail(model, text, window, tail):
    """Logits of the last `tail` tokens of a text, the rest of which was memorized at ratio 1 in windows."""
    memory_model = tiny.MemoryModel(model, tiny.tokenizer())
    *_, memory = memory_model.memorize(text[:-tail], "d", ratio=1, window=window)
    assert memory.slots == len(text) - tail
    slots = memory_model.slots(memory.keys[:, None], memory.values[:, None])
    return read(model, ids_of(text[-tail:])[None].to(model.device), [Row(slots)])[0]


@pytest.mark.parametrize("window", [512, 64, 29])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_at_ratio_1_equals_full_attention(family, window):
    model = tiny.model(family)
    text = tiny.TEXT[:230]
    expected = plain_logits(model, ids_of(text))[-40:]
    assert torch.allclose(memorized_tail(model, text, window, tail=40), expected, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_at_ratio_1_equals_full_attention_in_bfloat16(family):
    model = tiny.model(family, dtype=torch.bfloat16)
    text = tiny.TEXT[:150]
    expected = plain_logits(model, ids_of(text))[-40:].float().log_softmax(-1)
    found = memorized_tail(model, text, 64, tail=40).float().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    assert divergence.mean() < 0.02  # bfloat16 rounds differently along another way; random models differ by > 1
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_at_ratio_1_equals_full_attention_on_the_gpu(family):
    model = tiny.model(family).to("cuda")
    text = tiny.TEXT[:230]
    expected = plain_logits(model, ids_of(text).to("cuda"))[-40:]
    assert torch.allclose(memorized_tail(model, text, 64, tail=40), expected, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_slots_pieces_and_single_tokens_equal_the_plain_model(family):
    model, ids = tiny.model(family), ids_of(tiny.TEXT[:130])
    expected = plain_logits(model, ids)
    row, found = Row(), []
    for piece in (ids[:60], ids[60:61], ids[61:100], *ids[100:].split(1)):
        found.append(read(model, piece[None], [row])[0])
    assert row.position == row.length == 130
    assert torch.allclose(torch.cat(found), expected, atol=3e-4, rtol=1e-3)


def test_without_rows_the_model_is_transformers_own():
    model, ids = tiny.model(), ids_of(tiny.TEXT[:80])
    with torch.no_grad():
        assert torch.equal(model(ids[None]).logits[0], plain_logits(model, ids))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_causal_and_beside_masks_by_hand():
    row = Row(Slots([torch.zeros(1, 1, 2, 4)], [torch.zeros(1, 1, 2, 4)]))
    row.length = 1
    assert causal(row, 2, torch.device("cpu")).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert causal(Row(), 3, torch.device("cpu")) is None
    row.length = 3
    mask = beside(row, torch.tensor([[0, 2]]))[0, 0].int().tolist()
    #          slots  raw      memory tokens
    assert mask == [[1, 1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_tokens_see_nothing_after_their_place(family, monkeypatch):
    memory_model = tiny.memory_model(family)
    memory_model.weights = tiny.perturbed(memory_model.model)
    monkeypatch.setattr("memo.memory.place", lambda surprise, count: torch.arange(0, 48, 4)[None, :count])
    slots, last = random_slots(memory_model.model, 10), torch.zeros(258)
    first = ids_of(tiny.TEXT[:48])
    second = first.clone()
    second[30] = (second[30] + 1) % 256
    keys, values, places, _ = memory_of(memory_model, first, 4, slots, last)
    other_keys, other_values, _, _ = memory_of(memory_model, second, 4, slots, last)
    before = places < 30
    assert torch.allclose(keys[:, :, before], other_keys[:, :, before], atol=1e-6)
    assert torch.allclose(values[:, :, before], other_values[:, :, before], atol=1e-6)
    assert not torch.allclose(values[1:, :, ~before], other_values[1:, :, ~before], atol=1e-3)


def test_memory_tokens_do_not_see_each_other(monkeypatch):
    memory_model = tiny.memory_model()
    memory_model.weights = tiny.perturbed(memory_model.model)
    ids = ids_of(tiny.TEXT[:48])

    def at(*places):
        monkeypatch.setattr("memo.memory.place", lambda surprise, count: torch.tensor([places]))
        return memory_of(memory_model, ids, 4)

    keys, values, _, _ = at(0, 5, 6, 7, 20, 33)
    for index, place in enumerate((0, 5, 6, 7, 20, 33)):
        alone_keys, alone_values, _, _ = at(place)
        assert torch.allclose(keys[:, :, index], alone_keys[:, :, 0], atol=1e-5)
        assert torch.allclose(values[:, :, index], alone_values[:, :, 0], atol=1e-5)


def test_a_sliding_window_hides_slots_that_lie_further_back():
    model, ids = tiny.model("mistral, sliding window"), ids_of(tiny.TEXT[:10])  # 40 positions
    near, far = random_slots(model, 120, seed=3), random_slots(model, 120, seed=4)
    mixed = Slots(
        [torch.cat([b[:, :, :10], a[:, :, 10:]], 2) for a, b in zip(near.keys, far.keys, strict=True)],
        [torch.cat([b[:, :, :10], a[:, :, 10:]], 2) for a, b in zip(near.values, far.values, strict=True)],
    )
    assert torch.allclose(read(model, ids[None], [Row(near)]), read(model, ids[None], [Row(mixed)]), atol=1e-6)
    assert torch.allclose(read(model, ids[None, :1], [Row(near)]), read(model, ids[None, :1], [Row(mixed)]), atol=1e-6)
    assert not torch.allclose(read(model, ids[None], [Row(near)]), read(model, ids[None], [Row(far)]), atol=1e-2)


# --- batches ---------------------------------------------------------------------------------------------------------


def prompts(model, *lengths, slots=None):
    """Rows that have read different texts, and their prompts."""
    rows, texts = [], []
    for index, length in enumerate(lengths):
        row, ids = Row(slots), ids_of(tiny.TEXT[7 * index : 7 * index + length])
        read(model, ids[None], [row])
        rows.append(row)
        texts.append(ids)
    return rows, texts


@pytest.mark.parametrize("slotted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_a_row_equals_reading_it_with_the_rest(family, slotted):
    """The decode path (T = 1) against the reading path (T > 1)."""
    model = tiny.model(family)
    slots = random_slots(model, 30) if slotted else None
    ids = ids_of(tiny.TEXT[:90])
    whole = read(model, ids[None], [Row(slots)])[0]
    row = Row(slots)
    found = [read(model, piece[None], [row])[0] for piece in (ids[:50], *ids[50:].split(1))]
    assert torch.allclose(torch.cat(found), whole, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_one_batch_equal_single_rows(family):
    """Rows without slots, two that share slots, one with others, all of different lengths."""
    model = tiny.model(family)
    shared, other = random_slots(model, 20), random_slots(model, 33, seed=5)
    rows, single, steps = [], [], 6
    for slots, lengths in ((None, (5, 17)), (shared, (9, 30)), (other, (1,))):
        rows += prompts(model, *lengths, slots=slots)[0]
        single += prompts(model, *lengths, slots=slots)[0]
    new = ids_of(tiny.KOREAN)[: len(rows) * steps].view(len(rows), steps)
    for step in range(steps):
        batched = read(model, new[:, step : step + 1], rows)
        for index, row in enumerate(single):
            alone = read(model, new[index : index + 1, step : step + 1], [row])
            assert torch.allclose(batched[index], alone[0], atol=3e-4, rtol=1e-3)
    assert [row.position for row in rows] == [row.position for row in single]


def test_rows_that_share_slots_leave_them_as_they_were():
    model = tiny.model()
    slots = random_slots(model, 20)
    before = [t.clone() for t in (*slots.keys, *slots.values)]
    rows, _ = prompts(model, 4, 9, slots=slots)
    for _ in range(150):  # more than a row's room
        read(model, torch.tensor([[1], [2]]), rows)
    assert all(torch.equal(a, b) for a, b in zip(before, (*slots.keys, *slots.values), strict=True))


def test_the_mass_on_slots_is_the_attention_softmax():
    model, ids = tiny.model(num_hidden_layers=1), ids_of(tiny.TEXT[:12])
    slots = random_slots(model, 6)
    row = Row(slots, watch=True)
    read(model, ids[None, :11], [row])
    assert not row.mass.any()  # only generated tokens are watched
    read(model, ids[None, 11:], [row])
    layer = model.get_decoder().layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.get_input_embeddings()(ids))
        heads = [p(hidden).view(12, -1, 16).transpose(0, 1) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)]
        query, key = (rotate(model, head, torch.arange(6, 18)) for head in heads)
        keys = torch.cat([slots.keys[0][0], key], dim=1).repeat_interleave(2, dim=0)
        weights = (query[:, -1:] @ keys.transpose(1, 2) / 4).softmax(-1)[:, 0, :6].mean(0)
    assert torch.allclose(row.mass[0], weights, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mass_of_tokens_read_together_is_that_of_tokens_read_singly(family):
    model, ids = tiny.model(family), ids_of(tiny.TEXT[:30])
    slots = random_slots(model, 6)
    together, singly = Row(slots, watch=True), Row(slots, watch=True)
    for row in (together, singly):
        read(model, ids[None, :20], [row])
        assert not row.mass.any()
    together.looking = True
    read(model, ids[None, 20:], [together])
    for i in range(20, 30):
        read(model, ids[None, i : i + 1], [singly])
    assert together.mass.sum() > 1e-3 and torch.allclose(together.mass, singly.mass, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_read_in_step_are_read_as_each_alone(family):
    """Two windows of three texts, each with its own places and last prediction."""
    reader = tiny.memory_model(family)
    reader.weights = tiny.perturbed(reader.model)
    texts = torch.stack([ids_of(tiny.TEXT[start : start + 70]) for start in (0, 60, 140)])

    def two_windows(ids):
        with torch.no_grad():
            first = reader.read_window(ids[:, :40], None, 4, None)
            return reader.read_window(ids[:, 40:], reader.slots(first.keys, first.values), 2, first.next_logits)

    together = two_windows(texts)
    assert len({tuple(places) for places in together[2].tolist()}) == 3
    for index in range(3):
        alone = two_windows(texts[index : index + 1])
        for both, one in zip(together[:2], alone[:2], strict=True):
            assert torch.allclose(both[:, index], one[:, 0], atol=1e-4)
        for both, one in zip(together[2:], alone[2:], strict=True):
            assert torch.allclose(both[index].float(), one[0].float(), atol=1e-3)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rotating_back_undoes_rotating(family):
    model = tiny.model(family)
    keys, places = torch.randn(1, 2, 50, model.get_decoder().layers[0].self_attn.head_dim), torch.arange(50) * 31
    turned = rotate(model, keys, places)
    assert not torch.allclose(turned, keys, atol=0.1)
    assert torch.allclose(rotate(model, turned, places, back=True), keys, atol=1e-5)


# --- the memory weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_memory_weights_change_the_memory_but_not_the_model(family):
    memory_model, ids = tiny.memory_model(family), ids_of(tiny.TEXT[:64])
    before = plain_logits(memory_model.model, ids)
    keys, values, places, logits = memory_of(memory_model, ids, 4)
    memory_model.weights = tiny.perturbed(memory_model.model)
    new_keys, new_values, new_places, new_logits = memory_of(memory_model, ids, 4)
    assert torch.equal(places, new_places) and torch.equal(logits, new_logits)  # pass 1 is the plain model
    assert not torch.allclose(keys, new_keys, atol=0.05) and not torch.allclose(values, new_values, atol=0.05)
    assert torch.equal(plain_logits(memory_model.model, ids), before)


def test_frozen_projections_come_back_when_something_fails_inside():
    model = tiny.model()
    weights = tiny.perturbed(model)
    frozen = [module for layer in model.get_decoder().layers for module in layer.self_attn.children()]
    with pytest.raises(ZeroDivisionError), memory_projections(model, weights):
        assert model.get_decoder().layers[0].self_attn.q_proj is weights.layers[0]["q_proj"]
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(
        frozen, [m for layer in model.get_decoder().layers for m in layer.self_attn.children()], strict=True
    ))  # fmt: skip


def test_memory_weights_of_too_few_layers_are_refused_and_the_frozen_ones_come_back():
    model, smaller = tiny.model(), tiny.model(num_hidden_layers=2)
    frozen = [layer.self_attn.q_proj for layer in model.get_decoder().layers]
    with pytest.raises(ValueError), memory_projections(model, MemoryWeights(smaller)):
        pass
    assert all(a is layer.self_attn.q_proj for a, layer in zip(frozen, model.get_decoder().layers, strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_memory_weights_are_the_same_after_saving(tmp_path, family):
    model = tiny.model(family)
    weights = tiny.perturbed(model)
    weights.save(tmp_path / "w.safetensors")
    loaded = MemoryWeights.load(tmp_path / "w.safetensors", model)
    assert all(torch.equal(a, loaded.state_dict()[n]) for n, a in weights.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("missing", ["", "1", "2"])
def test_memory_weights_may_lie_in_several_parts_all_of_which_are_needed(tmp_path, missing):
    model = tiny.model()
    weights = tiny.perturbed(model)
    names = sorted(weights.state_dict())
    for part, some in (("1", names[::2]), ("2", names[1::2])):
        if part != missing:
            save_file({name: weights.state_dict()[name] for name in some}, tmp_path / f"w-{part}.safetensors")
    if missing:
        with pytest.raises(ModelError, match=tmp_path.name):
            MemoryWeights.load(tmp_path, model)
    else:
        loaded = MemoryWeights.load(tmp_path, model).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "cut", "another model"])
def test_memory_weights_that_do_not_fit_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    if damage != "missing":
        tiny.perturbed(tiny.model(num_hidden_layers=2 if damage == "another model" else 3)).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        MemoryWeights.load(path, tiny.model())


# --- gradients -------------------------------------------------------------------------------------------------------


def next_window_loss(memory_model, weights, ids, ratio=4, split=40):
    """The loss of a second window, given the memory of the first: what training minimizes."""
    memory_model.weights = weights
    read = memory_model.read_window(ids[None, :split], None, ratio, None)
    row = Row(memory_model.slots(read.keys, read.values))
    model = memory_model.model
    hidden = run(model, model.get_input_embeddings()(ids[None, split:]), [row])[0]
    return cross_entropy(torch.cat([read.next_logits, logits_of(model, hidden[:-1])]), ids[split:])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_memory_weights_and_no_others(family):
    memory_model, ids = tiny.memory_model(family), ids_of(tiny.TEXT[:80])
    weights = MemoryWeights(memory_model.model).requires_grad_(True)
    next_window_loss(memory_model, weights, ids).backward()
    unused = f"layers.{len(weights.layers) - 1}.q_proj"  # nothing depends on the queries of the last layer
    for name, weight in weights.named_parameters():
        if name.startswith(unused):
            assert weight.grad is None
        else:
            assert weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 1e-8, name
    assert all(weight.grad is None for weight in memory_model.model.parameters())


@pytest.mark.parametrize(
    ("name", "index"), [("q_proj", (3, 5)), ("k_proj", (1, 7)), ("v_proj", (2, 9)), ("vector", 11)]
)
def test_gradients_equal_finite_differences(name, index):
    memory_model, ids = tiny.memory_model(), ids_of(tiny.TEXT[:80])
    memory_model.model.double()
    weights = tiny.perturbed(memory_model.model, by=0.02).requires_grad_(True)
    weight = weights.vector if name == "vector" else weights.layers[0][name].weight
    next_window_loss(memory_model, weights, ids).backward()
    losses = []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            weight[index] += step
            losses.append(float(next_window_loss(memory_model, weights, ids)))
    # keys are turned in float32: differences that are too small drown in rounding
    expected = (losses[0] - losses[1]) / 2e-3
    assert float(weight.grad[index]) == pytest.approx(expected, rel=0.01, abs=1e-4)
