"""SFT: what is to be said, memories as in a library, the loss against a plain reading, and the command line."""

import copy
import dataclasses
import itertools
import json
from functools import partial

import pytest
import tiny
import torch
from accelerate import Accelerator

from memo import answers, clues
from memo.attention import MemoryWeights, Row, Slots, run
from memo.cli import main
from memo.errors import SettingsError
from memo.generate import LocalGenerator, Stream
from memo.memory import Composed, Memory, read_all
from memo.settings import Settings
from memo.train import lessons, loop, sft
from memo.train.lessons import NOTHING, Asked, Lesson
from memo.train.recipe import Tuning
from memo.train.setup import trainable

WINDOW = 24
QUESTION = "Who bought the mill?"
KINDS = {
    "span": ("Anna Okafor bought it in 1887 for 412 crowns; nobody knew why.", "Her son Piet rebuilt them."),
    "question": ("What was sold in 1887?", "What is the name of the buyer?", "Who is her son?"),
    "draft": ("Anna Okafor, in 1887.",),
    "key": ("The mill", "Anna Okafor"),
}
FIRST = Asked(QUESTION, ("Anna Okafor", "Okafor"), ((0, 45, 60),), KINDS)
SECOND = Asked("When was the flood?", ("1903",), (), {"draft": ("1903",)})
TEXTS = (tiny.TEXT[:100], tiny.KOREAN[:30], tiny.TEXT[200:247])  # the last ends with a window, at a token a byte
LESSON = Lesson(TEXTS, (FIRST, SECOND))
PLAN = Tuning(
    steps=2, batch=2, learning_rate=3e-3, window=WINDOW, ratios=(4,), most=32, nothing=0.0, save_every=2
)  # fmt: skip


def memory_model(family="llama"):
    reader = tiny.memory_model(family)
    reader.weights = trainable(tiny.perturbed(reader.model))
    return reader


def remembered(reader, texts=TEXTS, ratio=4):
    """The documents side by side, as in a library."""
    memory = Memory(reader)
    for number, text in enumerate(texts):
        memory.add(read_all(reader.memorize(text, f"document {number}", ratio, WINDOW)))
    return memory.compose()


def ids_of(reader, texts=TEXTS):
    return tuple(tuple(reader.encode(text)[0]) for text in texts)


def target_of(reader, kind, prompt, said):
    return sft.Target(kind, *(tuple(reader.encode(text, start=False)[0]) for text in (prompt, said)))


def group_of(reader, texts=TEXTS):
    said = (("span", "Who?", "Anna Okafor"), ("span", "Where?", "At the river"), ("draft", "Why? ", "방앗간"))
    targets = tuple(itertools.starmap(partial(target_of, reader), (*said, ("answer", "So ", "x"))))
    return sft.Group(ids_of(reader, texts), targets, 4)


def decoded(reader, ids):
    return reader.tokenizer.decode(ids)


# --- what is to be said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "texts", "written"),
    [
        ("span", ("A b.", "C d."), '"A b."\n"C d."'),
        ("span", ("A b.",), '"A b."'),
        ("question", ("A?", "B?", "C?"), "1. A?\n2. B?\n3. C?"),
        ("draft", ("In 1887.",), "In 1887."),
        ("key", ("A", "B"), "- A\n- B"),
        # no more than are read
        ("span", ("A.", "B.", "C.", "D."), '"A."\n"B."\n"C."'),
        ("question", ("A?", "B?", "C?", "D?"), "1. A?\n2. B?\n3. C?"),
        ("key", ("A", "B", "C", "D", "E"), "- A\n- B\n- C"),
    ],
)
def test_clues_are_written_behind_their_beginning(kind, texts, written):
    assert clues.KINDS[kind][2] + sft.said(kind, texts) == written
    assert clues.LINES == 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind):
    prefix, texts = clues.KINDS[kind][2], list(KINDS[kind])
    text = prefix + sft.said(kind, texts)
    assert [text[start:end] for start, end in clues.lines(text)] == texts
    stream = Stream(clues.prompt(kind, QUESTION, 999), text, done=True, tokens=len(text))
    nowhere = Composed(Slots([], []), ("a",), torch.zeros(8), torch.zeros(8, 2))
    question = "Something else?"
    assert [clue.text for clue in clues.parse(kind, stream, question, nowhere, None)] == texts


def test_prompts_are_those_of_recalling_and_of_answering_from_memory():
    reader = memory_model()
    targets = {target.kind: target for target in sft.Encoder(reader, 999).targets(Lesson(TEXTS, (FIRST,)))}
    assert list(targets) == [*KINDS, "answer"]
    memory, generator = remembered(reader), LocalGenerator(reader, "tiny")
    prompts = clues.prompts(QUESTION, memory, 40)
    ask = answers.Ask(QUESTION, "memory_only", Settings(), None, generator, lambda: reader, memory=memory)
    prompts["answer"] = next(answers.memory_only(ask))
    assert prompts["answer"].slots is memory.slots
    for kind, target in targets.items():
        assert list(target.prompt) == generator.encode(prompts[kind]), kind


def test_targets_are_what_is_said_and_the_end():
    reader = memory_model()
    targets = sft.Encoder(reader, 999).targets(LESSON)
    said = [sft.said(kind, texts) for kind, texts in KINDS.items()] + ["Anna Okafor", "1903", "1903"]
    assert [target.kind for target in targets] == [*KINDS, "answer", "draft", "answer"]
    for target, text in zip(targets, said, strict=True):
        assert target.ids[-1] == reader.tokenizer.eos_token_id and decoded(reader, target.ids[:-1]) == text
    assert all("flood" in decoded(reader, target.prompt) for target in targets[-2:])


@pytest.mark.parametrize(("ends", "end"), [([257, 0], 257), ([0, 257], 257), ([9, 5], 5), (7, 7), (None, 257)])
def test_the_end_is_that_of_a_turn_where_several_tokens_end_a_text(ends, end):
    reader = memory_model()
    reader.model.generation_config.eos_token_id = ends
    assert reader.tokenizer.eos_token_id == 257  # as in the chat template
    assert sft.Encoder(reader, 999).targets(LESSON)[0].ids[-1] == end


def test_what_is_too_long_is_cut_and_has_no_end():
    reader = memory_model()
    long = sft.Encoder(reader, 999).targets(LESSON)
    for whole, cut in zip(long, sft.Encoder(reader, 12).targets(LESSON), strict=True):
        assert cut == dataclasses.replace(whole, ids=whole.ids[:12])
        assert (reader.tokenizer.eos_token_id in cut.ids) == (len(whole.ids) <= 12)


def test_control_tokens_in_a_text_are_text():
    reader = memory_model()
    asked = Asked("What is <|im_end|>?", ("an <|im_end|>",), (), {})
    [target] = sft.Encoder(reader, 999).targets(Lesson(("a",), (asked,)))
    assert target.ids.count(reader.tokenizer.eos_token_id) == 1
    assert target.prompt.count(reader.tokenizer.eos_token_id) == 2  # system and user


def test_a_question_that_nothing_answers_is_answered_with_nothing():
    reader = memory_model()
    unknown = lessons.elsewhere(Lesson(("a",), ()), LESSON)
    targets = sft.Encoder(reader, 999).targets(unknown)
    assert [(target.kind, decoded(reader, target.ids[:-1])) for target in targets] == [
        ("draft", NOTHING), ("answer", NOTHING),
    ]  # fmt: skip


def test_a_question_without_clues_or_answers_teaches_nothing():
    assert sft.Encoder(memory_model(), 99).targets(Lesson(("a",), (Asked("q", (), (), {"span": ()}),))) == ()


def test_clues_as_they_were_written():
    reader = memory_model()
    encoder = sft.Encoder(reader, 20)
    texts = {"key": "The mill\n- Anna", "draft": ""}
    key, draft = encoder.written(QUESTION, texts)
    asked = {target.kind: target.prompt for target in encoder.targets(LESSON)[:4]}
    assert (key.prompt, draft.prompt) == (asked["key"], asked["draft"])
    assert decoded(reader, key.ids[:-1]) == texts["key"] and draft.ids == key.ids[-1:] == (257,)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_memory_is_that_of_a_library(family):
    reader = memory_model(family)
    assert len(ids_of(reader)[0]) > 4 * WINDOW
    with torch.no_grad():
        slots = sft.memorize(reader, ids_of(reader), WINDOW, 4)
    expected = remembered(reader).slots
    assert len(slots) == len(expected) > 40
    for mine, theirs in zip((*slots.keys, *slots.values), (*expected.keys, *expected.values), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probabilities_are_those_of_a_plain_reading(family):
    reader = memory_model(family)
    slots, targets = remembered(reader).slots, group_of(reader).targets
    with torch.no_grad():
        found = sft.log_probs(reader, slots, targets)
        for target, one in zip(targets, found, strict=True):
            ids = torch.tensor([target.prompt + target.ids])
            hidden = run(reader.model, reader.model.get_input_embeddings()(ids), [Row(slots)])
            chances = reader.logits(hidden).log_softmax(-1)[0]
            first = len(target.prompt)
            expected = [chances[first + i - 1, token] for i, token in enumerate(target.ids)]
            assert torch.allclose(one, torch.stack(expected), atol=1e-4)


def test_losses_are_means_over_targets_of_means_over_tokens():
    reader = memory_model()
    group = group_of(reader)
    with torch.no_grad():
        found = sft.losses(reader, group, PLAN)
        each = sft.log_probs(reader, remembered(reader).slots, group.targets)
    span, other, draft, answer = (-sum(one.tolist()) / len(one) for one in each)
    assert found.keys() == {"loss", "span", "draft", "answer"}
    assert all(values.shape == (1,) for values in found.values())
    assert found["loss"].item() == pytest.approx((span + other + draft + answer) / 4, rel=1e-4)
    assert found["span"].item() == pytest.approx((span + other) / 2, rel=1e-4)
    assert found["draft"].item() == pytest.approx(draft, rel=1e-4)
    assert found["answer"].item() == pytest.approx(answer, rel=1e-4)


def test_the_loss_depends_on_the_documents_and_on_the_ratio():
    reader = memory_model()
    group = group_of(reader)
    others = (dataclasses.replace(group, ratio=8), group_of(reader, TEXTS[::-1]), group_of(reader, TEXTS[:2]))
    with torch.no_grad():
        loss, *rest = (float(sft.losses(reader, one, PLAN)["loss"]) for one in (group, *others))
    assert all(abs(loss - other) > 1e-4 for other in rest)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_reach_all_weights_that_are_trained_and_no_others(family):
    reader = memory_model(family)
    sft.losses(reader, group_of(reader), PLAN)["loss"].sum().backward()
    unused = f"layers.{len(reader.weights.layers) - 1}.q_proj"
    for name, weight in reader.weights.named_parameters():
        if name.startswith(unused):
            assert weight.grad is None and not weight.requires_grad
        else:
            assert weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-8, name
    assert all(weight.grad is None for weight in reader.model.parameters())


def test_gradients_equal_finite_differences_where_memory_tokens_do_not_read_each_other():
    """Of a document of one window: pass 1 has no memory to look at, so all of the gradient is in pass 2."""
    reader = memory_model()
    reader.model.double()
    reader.weights.double()
    group = dataclasses.replace(group_of(reader), documents=ids_of(reader, (TEXTS[0][:WINDOW], TEXTS[2][:WINDOW])))

    def loss():
        return sft.losses(reader, group, PLAN)["loss"].sum()

    loss().backward()
    for name, index in (("layers.0.v_proj.weight", (2, 9)), ("layers.1.k_proj.weight", (1, 7)), ("vector", 11)):
        weight, around = dict(reader.weights.named_parameters())[name], []
        with torch.no_grad():
            for by in (1e-3, -2e-3):
                weight[index] += by
                around.append(float(loss()))
            weight[index] += 1e-3
        assert float(weight.grad[index]) == pytest.approx((around[0] - around[1]) / 2e-3, rel=0.02, abs=1e-4), name


# --- training --------------------------------------------------------------------------------------------------------


def lesson(number):
    """Of two documents, about which two questions can be asked."""
    asked = tuple(Asked(f"{i}: {number}?", (f"{number}.",), (), {"span": (f"It is {number}.",)}) for i in range(2))
    return Lesson((f"Document {number} tells of {number}.", f"More {number}."), asked)


def test_each_lesson_comes_once_an_epoch_in_an_order_of_its_own():
    reader, known = memory_model(), [lesson(number) for number in range(6)]
    micro_batches = sft.groups(reader, known, PLAN)
    epochs = [[group for step in range(first, first + 3) for group in micro_batches(step)] for first in (0, 3, 6)]
    encoder = sft.Encoder(reader, PLAN.most)
    expected = {(ids_of(reader, one.documents), encoder.targets(one)) for one in known}
    for epoch in epochs:
        assert len(epoch) == 6 and {(group.documents, group.targets) for group in epoch} == expected
        assert all(len(group) == 1 and group.tokens == sum(map(len, group.documents)) for group in epoch)
    assert len({tuple(group.documents for group in epoch) for epoch in epochs}) > 1


def test_a_step_has_the_same_groups_whoever_asks_and_when():
    reader, known = memory_model(), [lesson(number) for number in range(7)]
    plan = dataclasses.replace(PLAN, ratios=(2, 4, 8), nothing=0.5)
    micro_batches = sft.groups(reader, known, plan)
    steps = [micro_batches(step) for step in range(9)]
    again = sft.groups(reader, known, plan)
    for step in (8, 0, 5, 5):
        assert again(step) == steps[step]
    assert {group.ratio for groups in steps for group in groups} == {2, 4, 8}
    other = sft.groups(reader, known, dataclasses.replace(plan, seed=1))
    assert [other(step) for step in range(9)] != steps


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 8, 32), (1.0, 30, 39)])
def test_some_lessons_have_a_question_of_elsewhere(share, least, most):
    reader, known = memory_model(), [lesson(number) for number in range(5)]
    micro_batches = sft.groups(reader, known, dataclasses.replace(PLAN, batch=5, most=99, nothing=share))
    foreign = 0
    for group in (group for step in range(8) for group in micro_batches(step)):
        number = decoded(reader, group.documents[0]).split()[1]
        unknown = [target for target in group.targets if decoded(reader, target.ids[:-1]) == NOTHING]
        assert len(unknown) in (0, 2) and len(group.targets) == 4 + len(unknown)
        assert all(f": {number}?" not in decoded(reader, target.prompt) for target in unknown)
        foreign += len(unknown) // 2
    assert least <= foreign <= most  # of 40; a lesson can draw itself, and then has none


def test_no_question_is_of_elsewhere_whose_answer_stands_here():
    reader, sold, fell = memory_model(), "It was sold in 1887. ", "The bridge fell in 1903. "
    known = [
        Lesson((sold + fell,), (Asked("When was it sold?", ("1887",), ((0, 15, 19),)),)),
        Lesson((fell + "Nobody knew why.",), (Asked("When did it fall?", ("1903",), ((0, 19, 23),)),)),
    ]
    micro_batches = sft.groups(reader, known, dataclasses.replace(PLAN, most=99, nothing=1.0))
    for group in (group for step in range(8) for group in micro_batches(step)):
        asked = [decoded(reader, target.prompt) for target in group.targets if len(target.ids) > len(NOTHING)]
        assert not (sold + fell in decoded(reader, group.documents[0]) and any("fall?" in one for one in asked))


def test_too_few_lessons_are_refused():
    reader = memory_model()
    with pytest.raises(SettingsError, match="1 lessons do not fill a step of 2"):
        sft.groups(reader, [LESSON], PLAN)
    assert len(sft.groups(reader, [LESSON, LESSON], PLAN)(0)) == 2


@pytest.mark.parametrize("nothing", [{}, {"span": ()}], ids=["no clues", "an empty list of clues"])
def test_lessons_that_have_nothing_to_teach_are_left_out(nothing):
    reader, known = memory_model(), [lesson(1), lesson(2)]
    idle = Lesson(("It says nothing.",), (Asked("What?", (), (), nothing),))
    half = Lesson(TEXTS, (Asked("What?", (), (), nothing), SECOND))
    with pytest.raises(SettingsError, match="1 lessons do not fill a step of 2"):
        sft.groups(reader, [lesson(1), idle, idle], PLAN)
    micro_batches = sft.groups(reader, [idle, *known, idle, half, lesson(3)], PLAN)
    epoch = [group for step in range(2) for group in micro_batches(step)]
    expected = [ids_of(reader, one.documents) for one in (*known, half, lesson(3))]
    assert sorted(group.documents for group in epoch) == sorted(expected)
    assert all(group.targets for group in epoch)


def test_training_moves_the_memory_weights_and_nothing_else(tmp_path):
    reader = memory_model()
    model, before = copy.deepcopy(reader.model.state_dict()), copy.deepcopy(reader.weights.state_dict())
    micro_batches = sft.groups(reader, [LESSON, lesson(3)], PLAN)
    loop.train(
        reader.weights, micro_batches, partial(sft.losses, reader, plan=PLAN), PLAN, tmp_path, {},
        Accelerator(cpu=True),
    )  # fmt: skip
    assert all(torch.equal(weight, model[name]) for name, weight in reader.model.state_dict().items())
    last = f"layers.{len(reader.weights.layers) - 1}.q_proj"
    for name, weight in reader.weights.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith(last), name


def test_the_loss_falls(tmp_path):
    reader, lines = tiny.memory_model(initializer_range=0.1), []
    reader.weights = trainable(MemoryWeights(reader.model))
    known = [Lesson((tiny.TEXT[:100],), (SECOND,)), lesson(1), lesson(2)]
    plan = dataclasses.replace(PLAN, steps=20, batch=3, learning_rate=1e-2)
    loop.train(
        reader.weights, sft.groups(reader, known, plan), partial(sft.losses, reader, plan=plan), plan, tmp_path, {},
        Accelerator(cpu=True), lines.append,
    )  # fmt: skip
    losses = [line["loss"] for line in lines]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.3
    assert all(line.keys() >= {"loss", "span", "draft", "answer"} for line in lines)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_folder):
    """A question set of four documents, two of which belong together; the tiny model is in the environment."""
    settings = {"MEMORY_MODEL": str(tiny_folder), "DEVICE": "cpu", "DTYPE": "float32", "CACHE": str(tmp_path / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(f"MEMO_{name}", value)
    texts = {"mill/0": tiny.TEXT[:200], "mill/1": tiny.TEXT[200:], "lake/0": "It is deep.", "hill/0": "It is high."}
    docs = [{"doc_id": key, "title": key[:4], "text": text} for key, text in texts.items()]
    asked = [
        {"id": "q1", "doc_id": "mill/0", "doc_ids": list(texts), "gold_doc_ids": ["mill/0", "lake/0"], "question": "?",
         "answers": ["Anna Okafor"], "evidence": ["Anna Okafor bought it in 1887", "It is deep."],
         "triples": [["the mill", "buyer", "Anna"]]},
        {"id": "q2", "doc_id": "mill/1", "question": "When was the flood?", "answers": ["1903"], "evidence": []},
        {"id": "q3", "doc_id": "lake/0", "question": "How deep?", "answers": ["deep"], "evidence": []},
    ]  # fmt: skip
    made = tmp_path / "set"
    made.mkdir()
    for name, lines in (("docs", docs), ("dev", asked)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def make(folder, *more):
    return main(["train", "lessons", "--data", str(folder), "--split", "dev", *map(str, more)])


def test_the_commands_make_lessons_and_train_on_them(tmp_path, folder, tiny_folder, capsys):
    one, long = tmp_path / "one.jsonl", tmp_path / "new" / "long.jsonl"
    assert make(folder, "--out", one) == 0
    assert f"3 lessons with 3 questions: {one}" in capsys.readouterr().out
    assert make(folder, "--context", "group", "--limit", 2, "--most", 300, "--out", long) == 0
    by_question = {asked.question: (one, asked) for one in lessons.load(one) for asked in one.questions}
    several, asked = by_question["?"]
    assert len(several.documents) == 4 and asked.clues["question"] == ("What is the buyer of the mill?",)
    assert {len(one.questions) for one in lessons.load(long)} <= {1, 2}
    assert sum(len(one.questions) for one in lessons.load(long)) == 2

    out = tmp_path / "run"
    numbers = ("steps=3", "batch=2", "window=64", "ratios=4,8", "most=16", "save_every=2", "nothing=0.5")
    changes = [word for number in numbers for word in ("--set", number)]
    command = ["train", "sft", "--data", str(one), str(long), "--out", str(out), *changes]
    assert main(command) == 0
    assert (out / "weights.safetensors").exists()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all("answer" in line for line in lines)
    reader = tiny.memory_model()
    trained = MemoryWeights.load(out / "weights.safetensors", reader.model)
    assert trained.vector.abs().max() > 0
    assert not torch.equal(trained.layers[0]["v_proj"].weight, MemoryWeights(reader.model).layers[0]["v_proj"].weight)
    low = trained.adapter.layers[0]["mlp/up_proj"]
    assert low.down.shape[0] == 16 and low.up.abs().max() > 0
    # killed after the second step it goes on as if it never was
    whole = (out / "weights.safetensors").read_bytes()
    (out / "weights.safetensors").unlink()
    (out / "checkpoint-000003").rename(tmp_path / "gone")
    assert main(command) == 0 and (out / "weights.safetensors").read_bytes() == whole
    # and without an adapter the reader stays as it is
    frozen = [str(tmp_path / "frozen") if word == str(out) else word for word in command]
    assert main([*frozen, "--set", "rank=0"]) == 0
    assert MemoryWeights.load(tmp_path / "frozen" / "weights.safetensors", reader.model).adapter is None


def test_wrong_use_is_told_in_one_line(tmp_path, folder, capsys):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert make(folder, "--out", tmp_path / "lessons.jsonl") == 0
    out = ("--out", str(tmp_path / "run"))
    for data, more, told in (
        ("nowhere.jsonl", (), "nowhere.jsonl cannot be read"),
        ("bad.jsonl", (), "Line 1 of"),
        ("lessons.jsonl", (), "3 lessons do not fill a step of 4"),
        ("lessons.jsonl", ("--set", "window=0"), "window is 0"),
    ):
        capsys.readouterr()
        assert main(["train", "sft", "--data", str(tmp_path / data), *out, *more]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
