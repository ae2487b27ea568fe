"""Pre-training: both losses against a plain reading, the memories that are read against those that are memorized."""

import dataclasses
import itertools
import json
import random
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator

from memo.attention import MemoryWeights, Row, Slots, run
from memo.cli import main
from memo.errors import SettingsError
from memo.memory import Memory, MemoryModel, inference, read_all
from memo.models import load_language_model
from memo.settings import Settings
from memo.train import loop, pretrain
from memo.train.cli import changed
from memo.train.pretrain import Batch
from memo.train.recipe import Pretraining
from memo.train.setup import trainable
from memo.train.texts import Piece, TokenFile

FAMILIES = list(tiny.FAMILIES)
WINDOW = 24
PLAN = Pretraining(
    steps=6, batch=4, micro=2, learning_rate=3e-3, window=WINDOW, windows=4, least=2, ratios=(2, 4), parted=0.5,
    spans=1, span=(8, 12), given=(2, 3), save_every=2, through=1,
)  # fmt: skip


def memory_model(family="llama"):
    reader = tiny.memory_model(family)
    reader.weights = trainable(tiny.perturbed(reader.model))
    return reader


def ids_of(reader, *texts):
    return torch.tensor([reader.encode(text)[0] for text in texts])


def windows_of(ids):
    return ids.split(WINDOW, dim=1)


def token_file(text, *more):
    bounds = np.cumsum([0, *(len(one.encode()) for one in (text, *more))]).tolist()
    ids = np.frombuffer("".join((text, *more)).encode(), dtype=np.uint8).astype("<u4")
    return TokenFile(ids, tuple(bounds), (bounds[-1],))


def texts_of(windows, *starts):
    return [(tiny.TEXT + tiny.KOREAN)[start : start + windows * WINDOW] for start in starts]


def assert_slots_equal(one, other, atol=1e-4):
    assert len(one) == len(other) > 0
    for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert torch.allclose(mine, theirs, atol=atol, rtol=1e-4)


def slots_of(slots, text):
    """One text's, of those read in step."""
    one = slice(text, text + 1)
    return Slots([keys[one] for keys in slots.keys], [values[one] for values in slots.values])


def batch_of(reader, *texts, ratios=(4, 4, 2), begins=(True, False, False), spans=((3, 30, 41),), span=10, given=3):
    places = torch.tensor(spans).expand(len(texts), -1)
    return Batch(ids_of(reader, *texts), WINDOW, ratios, begins, places, span, given)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_would_be_memorized(family):
    reader = memory_model(family)
    texts = texts_of(3, 0, 40)
    with torch.no_grad():
        slots, _ = pretrain.read(reader, windows_of(ids_of(reader, *texts)), (4, 4, 4), (True, False, False))
    for index, text in enumerate(texts):
        memory = Memory(reader)
        memory.add(read_all(reader.memorize(text, "d", ratio=4, window=WINDOW)))
        assert_slots_equal(slots_of(slots, index), memory.compose().slots)


def test_each_window_has_its_own_ratio():
    reader, (text,) = memory_model(), texts_of(3, 0)
    with torch.no_grad():
        slots, _ = pretrain.read(reader, windows_of(ids_of(reader, text)), (4, 2, 8), (True, False, False))
    last = None
    for start, ratio in ((0, 4), (1, 2), (2, 8)):  # each continues the one before
        part = text[start * WINDOW : (start + 1) * WINDOW]
        last = read_all(reader.memorize(part, "d", ratio, WINDOW, after=last))
    assert last.slots == 6 + 12 + 3
    assert_slots_equal(slots, reader.slots(last.keys[:, None], last.values[:, None]))


@pytest.mark.parametrize("begins", [(True, False, True, False), (True, True, False, True)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "llama, yarn"])
def test_documents_in_one_piece_are_read_as_each_alone_and_put_side_by_side(family, begins):
    reader, (text,) = memory_model(family), texts_of(4, 0)
    with torch.no_grad():
        slots, surprises = pretrain.read(reader, windows_of(ids_of(reader, text)), (4,) * 4, begins)
    memory = Memory(reader)
    cuts = [i * WINDOW for i, begin in enumerate(begins) if begin] + [len(text)]
    for start, end in itertools.pairwise(cuts):
        memory.add(read_all(reader.memorize(text[start:end], f"document {start}", 4, WINDOW)))
    assert len(memory) == sum(begins)
    assert_slots_equal(slots, memory.compose().slots)
    assert [bool(surprise[0, 0].isinf()) for surprise in surprises] == list(begins)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_surprise_is_that_of_a_reading_after_the_memory(family):
    reader, texts = memory_model(family), texts_of(2, 0, 50)
    ids = ids_of(reader, *texts)
    with torch.no_grad():
        slots, surprises = pretrain.read(reader, windows_of(ids), (4, 4), (True, False))
        alone = run(reader.model, reader.model.get_input_embeddings()(ids[:, :WINDOW]), [Row()])
        first = Row(Slots([k[:, :, :6] for k in slots.keys], [v[:, :, :6] for v in slots.values]))
        after = run(reader.model, reader.model.get_input_embeddings()(ids[:, WINDOW:]), [first])
        logits = reader.logits(torch.cat([alone, after], dim=1)).log_softmax(-1)
        expected = -logits[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
    assert torch.allclose(surprises[0][:, 1:], expected[:, : WINDOW - 1], atol=1e-4)
    assert torch.allclose(surprises[1], expected[:, WINDOW - 1 :], atol=1e-4)


def test_next_tokens_are_counted_only_where_a_memory_is():
    surprises = [torch.tensor([[torch.inf, 1.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[torch.inf, 8.0]]),
                 torch.tensor([[5.0, 1.0]])]  # fmt: skip
    assert pretrain.next_loss(surprises, (True, False, True, False)).tolist() == [3.0]
    assert pretrain.next_loss(surprises[:2], (True, False)).tolist() == [3.0]
    assert pretrain.next_loss(surprises[::2], (True, True)) is None


# --- stretches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_behind_a_memory_are_read_as_if_each_were_alone(family):
    reader, texts = memory_model(family), texts_of(2, 0, 60)
    ids = ids_of(reader, *texts)
    rows = [ids[:, 3:10], ids[:, 20:21], ids[:, 2:58]]  # the last is longer than a sliding window
    with torch.no_grad():
        slots, _ = pretrain.read(reader, windows_of(ids), (2, 4), (True, False))
        together = pretrain.behind(reader, slots, rows)
        for row, hidden in zip(rows, together, strict=True):
            for text in range(2):
                embeddings = reader.model.get_input_embeddings()(row[text : text + 1])
                alone = run(reader.model, embeddings, [Row(slots_of(slots, text))])[0]
                assert torch.allclose(hidden[text], alone, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", [1, 4])
def test_each_stretch_is_read_as_if_it_were_alone(family, given):
    reader, texts = memory_model(family), texts_of(2, 0, 60)
    ids = ids_of(reader, *texts)
    stretches = torch.stack([ids[:, start : start + 11] for start in (0, 17, 30)], dim=1)  # (2, 3, 11)
    cue = ids_of(reader, "Repeat:")[0]
    with torch.no_grad():
        slots, _ = pretrain.read(reader, windows_of(ids), (2, 4), (True, False))
        found = pretrain.repeat_loss(reader, slots, stretches, given)
        assert found.shape == (2, 3, 11 - given)
        for text in range(2):
            for number in range(3):
                row = torch.cat([cue, stretches[text, number]])[None]
                hidden = run(reader.model, reader.model.get_input_embeddings()(row), [Row(slots_of(slots, text))])
                logits = reader.logits(hidden).log_softmax(-1)[0, :-1]
                alone = -logits.gather(1, row[0, 1:, None])[:, 0][len(cue) + given - 1 :]
                assert torch.allclose(found[text, number], alone, atol=1e-4)


def test_the_losses_add_up_and_score_the_stretches_that_were_drawn():
    reader = memory_model()
    batch = batch_of(reader, *texts_of(3, 0, 33))
    plan = dataclasses.replace(PLAN, next_weight=0.3)
    with torch.no_grad():
        found = pretrain.losses(reader, batch, plan)
        slots, surprises = pretrain.read(reader, windows_of(batch.ids), batch.ratios, batch.begins)
        stretches = torch.stack([batch.ids[:, start : start + 10] for start in (3, 30, 41)], dim=1)
        repeat = pretrain.repeat_loss(reader, slots, stretches, 3)
    assert torch.allclose(found["next"], (surprises[1].sum(1) + surprises[2].sum(1)) / (2 * WINDOW))
    assert torch.allclose(found["repeat"], repeat.sum(dim=(1, 2)) / (3 * 7))
    assert torch.allclose(found["loss"], 0.3 * found["next"] + found["repeat"])
    assert found["loss"].shape == (2,) and not torch.allclose(*found["loss"])


def test_not_through_the_text_the_last_window_is_read_behind_the_memory_of_the_others():
    reader = memory_model()
    batch = batch_of(reader, *texts_of(3, 0, 33), spans=((3, 30, 38),))
    with torch.no_grad():
        found = pretrain.losses(reader, batch, dataclasses.replace(PLAN, next_weight=0.3, through=0))
        windows = windows_of(batch.ids)
        slots, _ = pretrain.read(reader, windows[:2], batch.ratios[:2], batch.begins[:2])
        stretches = torch.stack([batch.ids[:, start : start + 10] for start in (3, 30, 38)], dim=1)
        repeat = pretrain.repeat_loss(reader, slots, stretches, 3)
        for text in range(2):
            row = windows[2][text : text + 1]
            hidden = run(reader.model, reader.model.get_input_embeddings()(row), [Row(slots_of(slots, text))])
            told = reader.logits(hidden).log_softmax(-1)[0, :-1].gather(1, row[0, 1:, None])
            assert found["next"][text] == pytest.approx(-float(told.mean()), abs=1e-4)
    assert torch.allclose(found["repeat"], repeat.mean(dim=(1, 2)))
    assert torch.allclose(found["loss"], 0.3 * found["next"] + found["repeat"])


def test_a_loss_that_has_nothing_to_score_is_left_out():
    reader = memory_model()
    batch = batch_of(reader, *texts_of(3, 0), begins=(True, True, True))
    with torch.no_grad():
        found = pretrain.losses(reader, batch, PLAN)
        assert found.keys() == {"loss", "repeat"} and torch.equal(found["loss"], found["repeat"])
        batch = dataclasses.replace(batch, begins=(True, False, False))
        found = pretrain.losses(reader, batch, dataclasses.replace(PLAN, spans=0))
        assert found.keys() == {"loss", "next"} and torch.allclose(found["loss"], 0.5 * found["next"])
        found = pretrain.losses(reader, batch, dataclasses.replace(PLAN, next_weight=0))
        assert found.keys() == {"loss", "repeat"}


@pytest.mark.parametrize("through", [0, 1])
@pytest.mark.parametrize("next_weight", [0.5, 0])
@pytest.mark.parametrize("begins", [(True, False, False), (True, False, True)])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_reach_all_weights_that_are_trained_and_no_others(family, begins, next_weight, through):
    reader = memory_model(family)
    batch = batch_of(reader, *texts_of(3, 0, 33), begins=begins, spans=((3, 30, 38),))
    plan = dataclasses.replace(PLAN, next_weight=next_weight, through=through)
    pretrain.losses(reader, batch, plan)["loss"].sum().backward()
    unused = f"layers.{len(reader.weights.layers) - 1}.q_proj"
    for name, weight in reader.weights.named_parameters():
        if name.startswith(unused):
            assert weight.grad is None and not weight.requires_grad
        else:
            assert weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-8, name
    assert all(weight.grad is None for weight in reader.model.parameters())


def test_gradients_equal_finite_differences():
    reader = memory_model()
    reader.model.double()
    reader.weights.double()
    batch = batch_of(reader, *texts_of(3, 0, 33), begins=(True, False, True))

    def loss():
        return pretrain.losses(reader, batch, PLAN)["loss"].sum()

    loss().backward()
    for name, index in (("layers.0.v_proj.weight", (2, 9)), ("layers.1.k_proj.weight", (1, 7)), ("vector", 11)):
        weight, around = dict(reader.weights.named_parameters())[name], []
        with torch.no_grad():
            for by in (4e-3, -8e-3):  # the loss is float32
                weight[index] += by
                around.append(float(loss()))
            weight[index] += 4e-3
        assert float(weight.grad[index]) == pytest.approx((around[0] - around[1]) / 8e-3, rel=0.02, abs=1e-4), name


# --- batches ---------------------------------------------------------------------------------------------------------


def test_what_is_drawn_lies_in_the_plan_and_in_the_text():
    tokens, drawn = token_file(8 * tiny.TEXT), []
    for number in range(60):
        made = pretrain.make(tokens, [Piece(5, 3), Piece(300, 3)], PLAN, random.Random(number))
        assert torch.equal(made.ids, torch.stack([tokens.piece(5, 3 * WINDOW), tokens.piece(300, 3 * WINDOW)]))
        assert len(made.ratios) == len(made.begins) == 3 and set(made.ratios) <= {2, 4}
        assert 8 <= made.span <= 12 and 2 <= made.given <= 3
        assert made.spans.shape == (2, PLAN.spans * 3)
        assert made.spans.min() >= 0 and made.spans.max() + made.span <= 3 * WINDOW
        assert made.begins[0] and len(made) == 2 and made.tokens == 2 * 3 * WINDOW
        drawn.append(made)
    assert {made.ratios[1] for made in drawn} == {2, 4}
    assert 10 < sum(any(made.begins[1:]) for made in drawn) < 35  # three of four of the parted half
    for number in range(20):  # stretches of what is memorized: not of the last window
        behind = dataclasses.replace(PLAN, through=0)
        made = pretrain.make(tokens, [Piece(5, 3), Piece(300, 3)], behind, random.Random(number))
        assert made.spans.shape == (2, PLAN.spans * 2) and made.spans.max() + made.span <= 2 * WINDOW
    whole = dataclasses.replace(PLAN, parted=0.0)
    assert not any(
        any(pretrain.make(tokens, [Piece(5, 3)], whole, random.Random(n)).begins[1:]) for n in range(30)
    )  # fmt: skip


def equal_batches(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.ids, b.ids)
        and torch.equal(a.spans, b.spans)
        and (a.window, a.ratios, a.begins, a.span, a.given) == (b.window, b.ratios, b.begins, b.span, b.given)
        for a, b in zip(one, other, strict=True)
    )


def test_a_step_has_the_same_batch_whoever_asks_and_when():
    tokens = token_file(3 * tiny.TEXT, 2 * tiny.TEXT)
    micro_batches = pretrain.groups(tokens, PLAN)
    steps = [micro_batches(step) for step in range(9)]
    again = pretrain.groups(tokens, PLAN)
    for step in (8, 0, 5, 5):
        assert equal_batches(again(step), steps[step])
    assert len({(step[0].ratios, step[0].begins, step[0].span, step[0].given) for step in steps}) > 4
    assert not equal_batches(pretrain.groups(tokens, dataclasses.replace(PLAN, seed=1))(0), steps[0])


def test_an_epoch_uses_no_piece_twice_and_the_next_cuts_anew():
    text = "".join(chr(1000 + i) for i in range(500))  # no stretch of bytes is there twice
    tokens = token_file(text)
    micro_batches = pretrain.groups(tokens, dataclasses.replace(PLAN, windows=2))
    steps = [torch.cat([part.ids for part in micro_batches(step)]) for step in range(8)]
    whole = 1000 // (4 * 2 * WINDOW)  # batches an epoch
    assert whole == 5
    epochs = [torch.cat(steps[:whole]), torch.cat(steps[whole:])]
    rows = [set(map(tuple, epoch.tolist())) for epoch in epochs]
    assert len(rows[0]) == 4 * whole and not rows[0] & rows[1]


@pytest.mark.parametrize(("micro", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (4, [4])])
def test_parts_keep_what_was_drawn_for_each_text(micro, sizes):
    tokens = token_file(8 * tiny.TEXT)
    whole = pretrain.groups(tokens, dataclasses.replace(PLAN, micro=4))(3)[0]
    parts = pretrain.groups(tokens, dataclasses.replace(PLAN, micro=micro))(3)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert torch.equal(torch.cat([part.spans for part in parts]), whole.spans)
    for part in parts:
        assert (part.ratios, part.begins, part.span, part.given) == (
            whole.ratios, whole.begins, whole.span, whole.given,
        )  # fmt: skip


def test_losses_of_parts_are_those_of_the_whole():
    reader, tokens = memory_model(), token_file(8 * tiny.TEXT)
    (whole,) = pretrain.groups(tokens, dataclasses.replace(PLAN, micro=4))(3)
    with torch.no_grad():
        together = pretrain.losses(reader, whole, PLAN)
        apart = [pretrain.losses(reader, whole.part(i, i + 1), PLAN) for i in range(4)]
    for name, values in together.items():
        assert torch.allclose(values, torch.cat([one[name] for one in apart]), atol=1e-3), name


def test_texts_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(SettingsError, match="do not fill a batch: 4 pieces of 2 windows of 24 tokens"):
        pretrain.groups(token_file(tiny.TEXT[:150], "short"), PLAN)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_falls(tmp_path):
    reader, lines = tiny.memory_model(initializer_range=0.1), []
    reader.weights = trainable(MemoryWeights(reader.model))
    plan = dataclasses.replace(PLAN, steps=25, learning_rate=1e-2, parted=0.0, ratios=(4,))
    micro_batches = pretrain.groups(token_file(4 * tiny.TEXT), plan)
    loop.train(
        reader.weights, micro_batches, partial(pretrain.losses, reader, plan=plan), plan, tmp_path, {},
        Accelerator(cpu=True), lines.append,
    )  # fmt: skip
    losses = [line["loss"] for line in lines]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    assert all(line.keys() >= {"loss", "next", "repeat", "norm", "learning_rate"} for line in lines)


# --- the command line ------------------------------------------------------------------------------------------------


def test_single_numbers_of_a_plan_can_be_changed():
    plan = changed(PLAN, ["steps=10", "learning_rate=1e-4", "ratios=4,8,8", "given=1,2", "betas=0.8,0.9", "steps=11"])
    assert plan == dataclasses.replace(
        PLAN, steps=11, learning_rate=1e-4, ratios=(4, 8, 8), given=(1, 2), betas=(0.8, 0.9)
    )  # fmt: skip
    assert changed(PLAN, []) == PLAN


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("step=10", "no 'step'"), ("=3", "no ''"), ("steps=many", "steps=many"), ("steps=1.5", "steps=1.5"),
        ("steps", "steps"), ("ratios=4;8", "ratios=4;8"), ("ratios=", "ratios="), ("clip=low", "clip=low"),
    ],
)  # fmt: skip
def test_another_name_or_a_value_that_is_none_is_refused(change, told):
    with pytest.raises(SettingsError, match=told):
        changed(PLAN, ["steps=10", change])


@pytest.fixture
def command(tmp_path, monkeypatch, tiny_folder):
    """A function: runs the training of a text, with a tiny model in the environment. -> the exit status"""
    settings = {"MEMORY_MODEL": str(tiny_folder), "DEVICE": "cpu", "DTYPE": "float32", "CACHE": str(tmp_path / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(f"MEMO_{name}", value)

    def call(text, *more):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        numbers = (
            "steps=3", "window=24", "windows=3", "batch=2", "micro=1", "ratios=2,4", "span=6,9", "given=2,3",
            "save_every=2",
        )  # fmt: skip
        changes = [word for number in numbers for word in ("--set", number)]
        out = ("--out", str(tmp_path / "run" / "out"))
        return main(["train", "pretrain", "--data", str(tmp_path / "text.txt"), *out, *changes, *map(str, more)])

    return call


def said(capsys):
    """The lines on stderr, without the bar of a library that is quiet only where the command line is a process."""
    said = capsys.readouterr()
    assert said.out == ""
    return [line for line in said.err.splitlines() if line and not line.startswith("Loading weights")]


def test_the_command_trains_weights_that_memorize(tmp_path, command, tiny_folder, capsys):
    assert command(4 * tiny.TEXT) == 0
    out = tmp_path / "run" / "out"
    assert {path.name for path in out.iterdir()} == {
        "checkpoint-000002", "checkpoint-000003", "log.jsonl", "run.json", "weights.safetensors",
    }  # fmt: skip
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert "loss" in capsys.readouterr().err
    settings = Settings(memory_model=str(tiny_folder), device="cpu", dtype="float32", cache=tmp_path)
    model, tokenizer = load_language_model(str(tiny_folder), settings)
    trained, untrained = (
        MemoryModel(model, tokenizer, weights)
        for weights in (MemoryWeights.load(out / "weights.safetensors", model), MemoryWeights(model))
    )
    with inference(trained):
        assert trained.weights.vector.abs().max() > 0
    known, plain = (read_all(one.memorize(tiny.TEXT, "d", 4, 64)) for one in (trained, untrained))
    assert known.slots == plain.slots and not torch.allclose(known.values, plain.values, atol=1e-4)
    # from there on
    again = tmp_path / "run" / "more"
    assert command(4 * tiny.TEXT, "--start", out / "weights.safetensors", "--out", again, "--set", "steps=1") == 0
    first, more = (MemoryWeights.load(path / "weights.safetensors", model) for path in (out, again))
    moved = (first.vector - more.vector).abs().max()
    assert 0 < moved < 2e-3  # a step of the learning rate's size


def test_the_command_goes_on_and_refuses_another_run(tmp_path, command, capsys):
    assert command(4 * tiny.TEXT) == command(4 * tiny.TEXT) == 0
    held = (tmp_path / "run" / "out" / "log.jsonl").read_text()
    capsys.readouterr()
    assert command(4 * tiny.TEXT, "--set", "steps=4") == 2
    # not in a line of its own: the bar of the steps is shown before the folder is looked at
    assert any("memo: " in line and "another run (plan differ)" in line for line in said(capsys))
    assert (tmp_path / "run" / "out" / "log.jsonl").read_text() == held


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        ("Too short.", (), "do not fill a batch"),
        ("", (), "no text"),
        (tiny.TEXT, ("--set", "stepz=1"), "no 'stepz'"),
        (tiny.TEXT, ("--start", "nowhere.safetensors"), "nowhere.safetensors"),
        (tiny.TEXT, ("--data", "nowhere"), "nowhere cannot be read"),
    ],
)
def test_wrong_use_is_told_in_one_line(tmp_path, command, capsys, text, more, told):
    assert command(text, *more) == 2
    (line,) = said(capsys)
    assert line.startswith("memo: ") and told in line
    assert not (tmp_path / "run" / "out").exists()
