"""Slots, attention, losses and parts of a memory, against slow and plain computation with tiny random models."""

import hashlib

import pytest
import tiny
import torch

from memo import clues, inside, plots_inside
from memo.attention import rotate
from memo.documents import Page
from memo.errors import UnknownDocument
from memo.generate import LocalGenerator, Prompt, write, write_all
from memo.memory import Memory, MemoryModel, read_all
from memo.placement import surprisal, windows

TEXT = tiny.TEXT * 2


def remembered(model, text=TEXT, ratio=4, window=64, **others):
    """A memory of the text, and of other texts beside it, composed."""
    memory = Memory(model)
    for name, one in {"text": text, **others}.items():
        memory.add(read_all(model.memorize(one, name, ratio, window)))
    return memory["text"], memory.compose()


def trained(seed=0, **config):
    """A tiny model whose memory weights are not the copies they start as."""
    plain = tiny.model("llama", seed, **config)
    return MemoryModel(plain, tiny.tokenizer(), tiny.perturbed(plain))


# --- slots and parts -------------------------------------------------------------------------------------------------


def test_at_ratio_1_every_token_has_a_slot():
    model = tiny.memory_model()
    memory, _ = remembered(model, ratio=1)
    offsets = model.encode(TEXT)[1]
    assert [slot.token for slot in inside.slots_of(memory, offsets)] == offsets


@pytest.mark.parametrize("ratio", [2, 4, 16])
def test_slots_sit_at_the_tokens_that_reading_placed_them_at(ratio):
    model = trained()
    memory, _ = remembered(model, ratio=ratio)
    ids, offsets = model.encode(TEXT)
    found = inside.slots_of(memory, offsets)
    assert [(slot.start, slot.end) for slot in found] == [tuple(span) for span in memory.spans.tolist()]
    assert found[0].start == 0 and found[-1].end == len(TEXT)
    true, slots, last = [], None, None
    for start, stop in windows(len(ids), 64):  # read once more, for the places
        read = model.read_window(torch.tensor([ids[start:stop]]), slots, ratio, last)
        slots, last = model.extended(slots, read.keys, read.values), read.next_logits
        true += [offsets[start + place] for place in read.places[0].tolist()]
    known = [slot.token is not None for slot in found]
    assert [slot.token for slot, sure in zip(found, known, strict=True) if sure] == [
        token for token, sure in zip(true, known, strict=True) if sure
    ]
    assert known.count(False) <= len(windows(len(ids), 64)) - 1  # of a window at most its first


def test_parts_are_pages_or_tile_the_text_at_ends_of_sentences():
    pages = (Page(1, 0, 20), Page(2, 22, 22), Page(3, 24, 60))
    assert inside.parts_of(TEXT, pages) == [inside.Part(1, 0, 20), inside.Part(3, 24, 60)]
    for text, words in ((TEXT * 4, 30), (tiny.KOREAN * 9, 20), ("산" * 9000, 40)):
        parts = inside.parts_of(text, words=words)
        assert len(parts) > 2 and "".join(text[part.start : part.end] for part in parts) == text
        assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all((TEXT * 4)[part.end - 2] == "." for part in inside.parts_of(TEXT * 4, words=30))
    assert inside.parts_of("") == [] and len(inside.parts_of("one")) == 1


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_is_the_softmax_of_queries_and_keys_by_hand():
    model, captured = trained(), {}
    _, composed = remembered(model)
    for number, layer in enumerate(model.model.get_decoder().layers):
        for name in ("q_proj", "k_proj"):
            store = captured.setdefault((number, name), [])
            getattr(layer.self_attn, name).register_forward_hook(lambda _m, _i, out, store=store: store.append(out[0]))
    generator = LocalGenerator(model, "tiny")
    stream = write(generator, Prompt((("user", "Who?"),), 6, slots=composed.slots, watch=True))
    assert len(stream.mass) >= 3
    read, slots = stream.prompt_tokens, len(composed.slots)
    for layer in range(3):
        queries, keys = (torch.cat(captured[layer, name]) for name in ("q_proj", "k_proj"))  # (N, H D), (N, J D)
        positions = slots + torch.arange(len(keys))
        queries = rotate(model.model, queries.view(len(keys), 4, 16).transpose(0, 1), positions)  # (H, N, D)
        keys = rotate(model.model, keys.view(len(keys), 2, 16).transpose(0, 1), positions)  # (J, N, D)
        every = torch.cat([composed.slots.keys[layer][0], keys], dim=1).repeat_interleave(2, dim=0)
        for step, mass in enumerate(stream.mass):
            at = read + step  # the token that looks, and then says the next
            scores = queries[:, at : at + 1] @ every[:, : slots + at + 1].transpose(1, 2) / 16**0.5
            by_hand = scores.softmax(dim=-1)[:, 0, :slots].mean(dim=0)
            torch.testing.assert_close(mass[layer].float(), by_hand, atol=4e-3, rtol=2e-2)  # it is kept in bfloat16


def recall(model, composed, question="Who bought the mill?"):
    prompts = clues.prompts(question, composed, 24)
    streams = write_all(LocalGenerator(model, "tiny"), list(prompts.values()))
    return dict(zip(prompts, streams, strict=True)), question


def test_a_clues_tokens_are_its_text_and_rows_sum_to_at_most_one():
    model = trained()
    _, composed = remembered(model, other=tiny.KOREAN)
    streams, question = recall(model, composed)
    found = inside.recalled(streams, question, composed)
    assert [one.clue.text for one in found] == [clue.text for clue in clues.collect(streams, question, composed)]
    assert found
    for one in found:
        assert one.clue.text in "".join(said.text for said in one.tokens)
        stream = streams[one.clue.kind]
        for number, said in enumerate(one.tokens):
            if said.mass is None:
                assert number == 0 and stream.text.startswith(stream.prompt.prefix + said.text)
                continue
            assert any(said.mass is mass for mass in stream.mass)
            assert said.mass.shape == (3, len(composed.owners)) and said.mass.min() >= 0
            assert said.mass.float().sum(dim=1).max() <= 1.01  # bfloat16
        every = [said.mass.float() for said in one.tokens if said.mass is not None]
        torch.testing.assert_close(one.mass(), sum(every) / len(every))
    parts = [inside.of_document(found[0].mass(), composed, name) for name in ("text", "other")]
    torch.testing.assert_close(torch.cat(parts, dim=1), found[0].mass())
    with pytest.raises(UnknownDocument):
        inside.of_document(found[0].mass(), composed, "gone")


def test_looking_changes_nothing_in_a_memory():
    model = trained()
    memory, composed = remembered(model)

    def digest():
        tensors = [memory.keys, memory.values, memory.spans, *composed.slots.keys, *composed.slots.values]
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()

    before = digest()
    streams, question = recall(model, composed)
    inside.recalled(streams, question, composed)
    list(inside.losses(model, memory, TEXT))
    prompt, _ = inside.part_prompt(TEXT, inside.parts_of(TEXT)[0], composed, 12)
    write(LocalGenerator(model, "tiny"), prompt)
    assert digest() == before


# --- losses ----------------------------------------------------------------------------------------------------------


def plain_loss(model, ids):
    """-log p of ids[1:] by the model as transformers runs it."""
    model.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    model.model.set_attn_implementation("memo")
    return surprisal(logits, torch.tensor(ids[1:]))


def test_losses_are_those_of_the_plain_model_and_the_memory_of_ratio_1_is_the_full_text():
    model = tiny.memory_model()
    memory, _ = remembered(model, ratio=1)
    ids = model.encode(TEXT)[0]
    found = list(inside.losses(model, memory, TEXT))
    spans = windows(len(ids), 64)
    assert [one.first for one in found] == [start + 1 for start, _ in spans]
    whole = plain_loss(model, ids)
    for one, (start, stop) in zip(found, spans, strict=True):
        torch.testing.assert_close(one.none, plain_loss(model, ids[start:stop]), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.full, whole[start : stop - 1], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.memory, one.full, atol=1e-3, rtol=1e-3)


def test_a_text_beyond_the_positions_has_no_full_curve():
    model = trained(max_position_embeddings=256)
    memory, _ = remembered(model, ratio=8)
    found = list(inside.losses(model, memory, TEXT))
    assert all(one.full is None and one.memory.isfinite().all() for one in found)
    torch.testing.assert_close(found[0].memory, found[0].none)  # nothing was before
    assert not torch.allclose(found[1].memory, found[1].none)


def test_smoothing_is_the_mean_of_neighbours():
    values = torch.arange(9.0) ** 2
    by_hand = [values[max(0, i - 2) : min(9, i + 2)].mean() for i in range(9)]
    torch.testing.assert_close(inside.smoothed(values, 4), torch.stack(by_hand))


# --- a part, and figures ---------------------------------------------------------------------------------------------


def test_a_part_is_asked_for_by_its_first_words():
    model = tiny.memory_model()
    _, composed = remembered(model)
    part = inside.Part(1, 4, len(TEXT))
    prompt, at = inside.part_prompt(TEXT, part, composed, 12)
    assert prompt.slots is composed.slots and prompt.prefix == '"' + TEXT[4:at] and TEXT[4:at].count(" ") == 7
    assert inside.part_prompt("  one", inside.Part(1, 0, 5), composed, 12)[1] == 5


def test_words_in_common_are_those_in_the_same_order():
    one, other = "The old mill STOOD here, once.", "A mill stood; the wheel turned here."
    mine, theirs = inside.in_common(one, other)
    assert [one[a:b].casefold() for a, b in mine] == ["mill", "stood", "here"]
    assert [other[a:b].casefold() for a, b in theirs] == ["mill", "stood", "here"]
    assert inside.in_common("", other) == ([], [])
    chinese = inside.in_common("磨坊在河边", "河边的磨坊")[0]
    assert ["磨坊在河边"[a:b] for a, b in chinese] in (["磨", "坊"], ["河", "边"])


@pytest.mark.parametrize("slots", [1, 7, 120, 1000])
def test_columns_tile_the_slots_and_a_cell_leads_to_its_strongest(slots):
    cuts = plots_inside.columns(slots)
    assert [slot for first, end in cuts for slot in range(first, end)] == list(range(slots))
    mass = torch.rand(3, slots)
    column = len(cuts) // 2
    first, end = cuts[column]
    assert mass[1, plots_inside.peak(mass, column, 1)] == mass[1, first:end].max()
    texts, places = ["<b>mill</b>"] * slots, [slot / slots for slot in range(slots)]
    figure = plots_inside.attention(mass, texts, places, slots - 1, ("place", "layer", "attention"))
    [heat] = figure.data
    assert len(heat.z) == 3 and len(heat.z[0]) == len(cuts) and len(figure.layout.shapes) == 1
    torch.testing.assert_close(torch.tensor(heat.z).sum(dim=1), mass.sum(dim=1), atol=1e-3, rtol=1e-3)
    assert "<b>" not in str(heat.hovertext)


def test_the_curves_of_losses():
    parts = [inside.Losses(1, *torch.rand(3, 50)), inside.Losses(52, *torch.rand(3, 50))]
    figure = plots_inside.losses(parts, ("none", "memory", "full"), ("x", "y"))
    assert [trace.name for trace in figure.data] == ["none", "memory", "full"]
    short = [inside.Losses(1, *torch.rand(2, 50), None)]
    assert [trace.name for trace in plots_inside.losses(short, ("a", "b", "c"), ("x", "y")).data] == ["a", "b"]
