"""Evicting entries: each published formula against a slow version in loops; everything kept is full attention."""

import math

import pytest
import tiny
import torch

from memo.attention import Row, run
from memo.evaluate import eviction
from memo.evaluate.eviction import METHODS, evict, prefill

IDS = torch.tensor(list((tiny.TEXT * 2)[:150].encode()))
FAMILIES = ("llama", "qwen2", "qwen3", "llama, yarn")


def read(family="llama", ids=IDS):
    model = tiny.model(family)
    return model, prefill(model, ids)


@torch.no_grad()
def plain(model, ids, implementation="eager", **more):
    """The model as transformers runs it."""
    model.set_attn_implementation(implementation)
    try:
        return model(ids[None], **more)
    finally:
        model.set_attn_implementation("memo")


def turned(model, vector, position):
    """One vector at one position, pair by pair of dimensions."""
    half, out = len(vector) // 2, vector.clone().double()
    cos, sin = model.get_decoder().rotary_emb(torch.zeros(1), torch.tensor([[position]]))
    for i in range(half):
        a, b, c, s = vector[i].item(), vector[i + half].item(), cos[0, 0, i].item(), sin[0, 0, i].item()
        out[i], out[i + half] = a * c - b * s, b * c + a * s
    return out


def best(scores, count):
    """Indices of the highest scores, in text order."""
    return sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count])


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_is_the_plain_cache_and_the_plain_models_output(family):
    model, found = read(family)
    assert not any(module._forward_hooks for module in model.modules())
    expected = plain(model, IDS, use_cache=True, output_hidden_states=True)
    for layer, kept in zip(found.layers, expected.past_key_values.layers, strict=True):
        assert torch.allclose(layer.keys, kept.keys[0], atol=1e-4)
        assert torch.allclose(layer.values, kept.values[0], atol=1e-4)
    assert torch.allclose(found.hidden, expected.hidden_states[-1][0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noted_queries_give_the_models_attention(family):
    model, found = read(family, IDS[:20])
    attention = plain(model, IDS[:20], output_attentions=True).attentions
    for index, layer in enumerate(found.layers):
        for head in range(4):
            query = turned(model, layer.queries[head, 19], 19)
            scores = layer.keys[head // 2].double() @ query / math.sqrt(len(query))
            assert torch.allclose(scores.softmax(0).float(), attention[index][0, head, 19], atol=1e-4)


# --- each method against loops ---------------------------------------------------------------------------------------


def test_streaming_keeps_four_sinks_and_the_last():
    _, found = read()
    for layer in found.layers:
        assert eviction.streaming(layer, 10).tolist() == [[0, 1, 2, 3, 144, 145, 146, 147, 148, 149]] * 2


@pytest.mark.parametrize(("count", "expected"), [(5, [0, 30, 60, 90, 120]), (4, [0, 37, 75, 112]), (1, [0])])
def test_every_nth_keeps_equal_distances_from_the_first(count, expected):
    _, found = read()
    assert eviction.every_nth(found.layers[1], count).tolist() == [expected] * 2


def test_key_norm_keeps_the_shortest_keys():
    _, found = read()
    for layer in found.layers:
        for head, kept in enumerate(eviction.key_norm(layer, 12).tolist()):
            norms = [math.sqrt(sum(x * x for x in key)) for key in layer.keys[head].tolist()]
            # not their places: in the first layer keys of the same token have the same norm
            assert sorted(norms[j] for j in kept) == pytest.approx(sorted(norms)[:12], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [100, 70, 64, 30])
def test_snapkv_keeps_the_last_and_what_they_attend_to(family, count):
    model, found = read(family)
    attention = plain(model, IDS, output_attentions=True).attentions
    total, observed = len(IDS), min(64, count)
    for index, layer in enumerate(found.layers):
        kept = eviction.snapkv(layer, count).tolist()
        for head in range(2):
            scores = [0.0] * (total - observed)
            for query_head in (2 * head, 2 * head + 1):
                mean = attention[index][0, query_head, total - observed :, : total - observed].mean(dim=0).tolist()
                for j in range(len(scores)):
                    scores[j] += sum(mean[max(0, j - 2) : j + 3]) / 5 / 2
            expected = best(scores, count - observed) + list(range(total - observed, total))
            assert kept[head] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_expected_attention_keeps_what_queries_to_come_should_look_at(family, monkeypatch):
    monkeypatch.setattr(eviction, "FUTURE", 20)
    ids, count = IDS[:50], 15
    model, found = read(family, ids)
    hidden = plain(model, ids, output_hidden_states=True).hidden_states
    for index, layer in enumerate(found.layers):
        block, size = model.get_decoder().layers[index], layer.keys.shape[2]
        projected = block.self_attn.q_proj(block.input_layernorm(hidden[index][0])).view(50, 4, size)
        if hasattr(block.self_attn, "q_norm"):
            projected = block.self_attn.q_norm(projected)
        rotation = torch.zeros(size, size).double()  # the mean over the positions to come
        for position in range(50, 70):
            for i in range(size):
                rotation[:, i] += turned(model, torch.eye(size)[i], position) / 20
        kept = eviction.expected_attention(layer, count).tolist()
        for head in range(2):
            shared = torch.zeros(46).double()
            for query_head in (2 * head, 2 * head + 1):
                queries = projected[4:, query_head].double()
                mean = rotation @ queries.mean(dim=0)
                covariance = rotation @ torch.cov(queries.T, correction=0) @ rotation.T
                scores = []
                for key in layer.keys[head, 4:].double():
                    scores.append(mean @ key / math.sqrt(size) + key @ covariance @ key / (2 * size))
                shared += torch.stack(scores).softmax(0) / 2
            weighed = (shared * layer.values[head, 4:].double().norm(dim=1)).tolist()
            assert kept[head] == [0, 1, 2, 3] + [j + 4 for j in best(weighed, count - 4)]


# --- all methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 3, 10, 64, 65, 149])
def test_every_head_keeps_so_many_in_text_order(method, count):
    _, found = read()
    for layer in found.layers:
        kept = METHODS[method](layer, count)
        assert kept.shape == (2, count)
        assert (kept.diff(dim=1) > 0).all() and kept.min() >= 0 and kept.max() < 150


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [10, 64, 150])
def test_keeping_everything_is_the_full_cache_bit_for_bit(method, length):
    _, found = read(ids=IDS[:length])
    kept, full = evict(found, method, length), found.slots
    for one, other in ((kept.keys, full.keys), (kept.values, full.values)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["streaming", "every_nth"])
def test_what_is_read_next_stands_at_its_own_position_and_sees_only_what_was_kept(family, method):
    """Against transformers with the evicted entries masked for the new tokens."""
    model, found = read(family)
    new = torch.tensor(list(b"What froze?"))
    kept = METHODS[method](found.layers[0], 20)[0]
    total, count = len(IDS), len(new)
    positions = torch.arange(total, total + count)[None]
    with torch.no_grad():
        row = Row(evict(found, method, 20))
        hidden = run(model, model.get_input_embeddings()(new[None]), [row], positions)
        logits = model.get_output_embeddings()(hidden)[0]
    seen = torch.ones(total + count, total + count, dtype=torch.bool).tril()
    seen[total:, [j for j in range(total) if j not in kept.tolist()]] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
    expected = plain(model, torch.cat([IDS, new]), attention_mask=mask).logits[0, total:]
    assert torch.allclose(logits, expected, atol=1e-3)
