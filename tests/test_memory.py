"""The memory: placement by surprise, spans, appending, cancelling, composing; and that asking leaves it as it was."""

import dataclasses
import gc
import hashlib
import threading
import weakref
from itertools import pairwise

import pytest
import tiny
import torch

from memo import memory_file
from memo.attention import Row, run
from memo.errors import MemoryTooLong, UnknownDocument, WrongModel
from memo.generate import LocalGenerator, Prompt
from memo.memory import RATIOS, DocumentMemory, Memory, Reading, read_all
from memo.placement import as_numbers, place, slot_spans, surprisal, windows
from memo.turn import Turn


@pytest.fixture(scope="module")
def reader():
    """A memory model with weights as training might leave them."""
    model = tiny.memory_model()
    return tiny.MemoryModel(model.model, model.tokenizer, tiny.perturbed(model.model))


def memorize(reader, text=tiny.TEXT, document="mill", ratio=4, window=64, **more):
    return read_all(reader.memorize(text, document, ratio, window, **more))


def same(a: DocumentMemory, b: DocumentMemory) -> bool:
    """Bit for bit."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def checksum(*tensors):
    return hashlib.sha256(b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)).hexdigest()


@torch.no_grad()
def logits_after(reader, composed, text="What froze?"):
    ids = torch.tensor([reader.encode(text, start=False)[0]])
    model = reader.model
    return reader.logits(run(model, model.get_input_embeddings()(ids), [Row(composed.slots)]))


def memory_with(reader, *memories):
    memory = Memory(reader)
    for one in memories:
        memory.add(one)
    return memory


# --- surprise and placement ------------------------------------------------------------------------------------------


def test_surprisal_is_minus_log_softmax_of_the_plain_model(reader, monkeypatch):
    """As it arrives at the placement, for several windows; at ratio 1 with copied weights the past is exact."""
    plain, seen = tiny.memory_model(), []

    def noting(surprise, digits):
        seen.append(surprise.clone())
        return as_numbers(surprise, digits)

    monkeypatch.setattr("memo.memory.as_numbers", noting)
    memorize(plain, tiny.TEXT[:200], ratio=1, window=64)
    ids = torch.tensor(plain.encode(tiny.TEXT[:200])[0])
    plain.model.set_attn_implementation("sdpa")
    expected = -plain.model(ids[None]).logits[0, :-1].log_softmax(-1)[torch.arange(199), ids[1:]]
    found = torch.cat(seen, dim=1)[0]
    assert found[0] == torch.inf and len(found) == 200
    assert torch.allclose(found[1:], expected, atol=2e-3)


def test_a_number_counts_as_one_word():
    surprise = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    digits = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]]).bool()
    expected = [[1.0, 5.0, 5.0, 4.0, 5.0, 6.0], [3.0, 3.0, 3.0, 4.0, 11.0, 11.0]]
    assert as_numbers(surprise, digits).tolist() == expected
    assert torch.equal(as_numbers(surprise, torch.zeros(2, 6).bool()), surprise)


def test_a_text_that_begins_with_a_number_keeps_the_slot_of_its_first_token(reader):
    worth = as_numbers(torch.tensor([[torch.inf, 2.0, 3.0, 4.0]]), torch.tensor([[1, 1, 1, 0]]).bool())
    assert worth.tolist() == [[torch.inf, 5.0, 5.0, 4.0]]
    ids = torch.tensor([reader.encode("80412793650 is it")[0]])
    assert reader.read_window(ids, None, 16, None).places[0, 0] == 0


def test_all_digits_of_a_number_get_a_slot(reader):
    text = "The mill stood at the river bend. Its number was 8041279 for years, and nobody knew why that was so."
    digits = [reader.tokenizer.decode([i]).isdecimal() for i in range(256)]
    assert reader.digits[:256].tolist() == digits
    memory = memorize(reader, text, ratio=4, window=128)
    first = text.index("8041279")
    assert {first + i for i in range(7)} <= set(memory.spans[:, 0].tolist())


def test_surprisal_by_hand():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    expected = [torch.log(torch.tensor(2.0)), torch.log(1 + torch.exp(torch.tensor(2.0)))]
    assert torch.allclose(surprisal(logits, torch.tensor([1, 1])), torch.stack(expected))


def test_slots_sit_at_the_most_surprising_tokens_in_text_order():
    surprise = torch.tensor([[0.1, 5.0, 0.2, 3.0, 9.0, 0.3], [7.0, 0.0, 6.0, 0.0, 0.0, 5.0]])
    assert place(surprise, 3).tolist() == [[1, 3, 4], [0, 2, 5]]


@pytest.mark.parametrize("length", [1, 2, 5, 64, 65, 200])
def test_the_first_token_always_has_a_slot(reader, length):
    memory = memorize(reader, tiny.TEXT[:length], ratio=64)
    ids, (first, last) = reader.encode(tiny.TEXT[:length])[0], memory.spans[0].tolist()
    assert first == 0 and last > 0
    # value of layer 0 comes from the token's embedding alone: it must be that of the first token
    with torch.no_grad():
        layer, own = reader.model.get_decoder().layers[0], reader.weights.layers[0]["v_proj"]
        embedding = reader.model.get_input_embeddings()(torch.tensor(ids[:1])) + reader.weights.vector
        expected = own(layer.input_layernorm(embedding)).view(2, -1)
    assert torch.allclose(memory.values[0, :, 0], expected, atol=1e-5)


def test_a_single_slot_sees_only_its_own_token(reader):
    """The one memory token of a short text sits at the first token: what follows must not leak into it."""
    one, other = memorize(reader, "The mill", ratio=64), memorize(reader, "That was", ratio=64)
    assert one.slots == other.slots == 1
    assert torch.allclose(one.values, other.values, atol=1e-5) and torch.allclose(one.keys, other.keys, atol=1e-5)


# --- size and spans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "ends"), [
    (0, []), (7, [7]), (10, [10]), (11, [6, 11]), (20, [10, 20]), (23, [10, 17, 23]), (29, [10, 20, 29]),
])  # fmt: skip
def test_a_rest_shares_with_the_last_whole_window(tokens, ends):
    found = windows(tokens, 10)
    assert [stop for _, stop in found] == ends
    assert [start for start, _ in found] == [0, *ends][:-1]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("window", [64, 50])
def test_slots_are_the_sum_over_windows_of_length_by_ratio_rounded_up(reader, ratio, window):
    memory = memorize(reader, tiny.TEXT, ratio=ratio, window=window)
    length = len(tiny.TEXT)
    lengths = [stop - start for start, stop in windows(length, window)]
    assert memory.slots == len(memory.spans) == sum(-(-n // ratio) for n in lengths)
    assert memory.tokens == length
    assert memory.bytes == 2 * 3 * 2 * 16 * 4 * memory.slots  # K and V, layers, heads, size, bytes of a float
    assert memory.full_bytes == 2 * 3 * 2 * 16 * 4 * length


@pytest.mark.parametrize("text", [tiny.TEXT, tiny.KOREAN * 3, "a", "  \n가나다\U0001f600\U0001f600 끝\n\n"])
@pytest.mark.parametrize("ratio", [1, 4, 16])
def test_slot_spans_tile_the_text(reader, text, ratio):
    memory = memorize(reader, text, ratio=ratio, window=30)
    spans = memory.spans.tolist()
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert "".join(text[a:b] for a, b in spans) == text


def test_slot_spans_begin_at_the_slots_token():
    offsets = [(0, 3), (3, 8), (9, 12), (12, 13)]
    assert slot_spans(offsets, [1, 2], 0, 13) == [(0, 9), (9, 13)]


def test_progress_tells_tokens_and_slots_before_every_window_and_at_the_end(reader):
    steps = list(reader.memorize(tiny.TEXT[:150], "d", 4, 64))
    assert [(s.done, s.total, s.slots, s.ratio) for s in steps[:-1]] == [
        (0, 150, 0, 4), (64, 150, 16, 4), (107, 150, 27, 4), (150, 150, 38, 4),
    ]  # fmt: skip
    assert isinstance(steps[-1], DocumentMemory) and all(isinstance(s, Reading) for s in steps[:-1])


def test_control_tokens_in_a_text_are_read_as_text(reader):
    ids, offsets = reader.encode(f"a{tiny.END}b")
    assert 257 not in ids and offsets[-1] == (11, 12)


# --- too long --------------------------------------------------------------------------------------------------------


def test_the_ratio_rises_until_the_text_fits():
    reader = tiny.memory_model(max_position_embeddings=256)
    assert reader.capacity(64) == 192
    assert reader.fitting_ratio(192, 1, 64) == 1
    assert reader.fitting_ratio(193, 1, 64) == 2
    assert reader.fitting_ratio(64 * 12, 4, 64) == 4
    assert reader.fitting_ratio(64 * 13, 4, 64) == 8
    assert reader.fitting_ratio(192 * 64, 4, 64) == 64
    memory = memorize(reader, "x" * 500, ratio=1)
    assert memory.ratio == 4 and memory.slots == 126


def test_more_text_than_positions_at_any_ratio_is_refused_and_says_how_much_fits():
    reader = tiny.memory_model(max_position_embeddings=256)
    with pytest.raises(MemoryTooLong, match="12,289 tokens; this model can memorize 12,288"):
        next(reader.memorize("x" * (192 * 64 + 1), "d", 1, 64))


# --- appending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("end", [64, 128, 192])
def test_appending_at_a_window_end_equals_reading_in_one(reader, tmp_path, saved, end):
    """The appended text begins in the middle: its first token has a slot only if it surprises."""
    whole = memorize(reader, tiny.TEXT[:300])
    part = memorize(reader, tiny.TEXT[:end])
    if saved:
        memory_file.save(part, tmp_path / "part")
        part = memory_file.load(tmp_path / "part", reader)
    both = memorize(reader, tiny.TEXT[end:300], after=part)
    assert torch.allclose(both.keys, whole.keys, atol=1e-4) and torch.allclose(both.values, whole.values, atol=1e-4)
    assert torch.equal(both.spans, whole.spans)
    assert torch.allclose(both.last_logits, whole.last_logits, atol=1e-3)
    assert (both.tokens, both.slots) == (whole.tokens, whole.slots)


def test_appending_keeps_the_ratio_and_refuses_what_does_not_fit():
    reader = tiny.memory_model(max_position_embeddings=256)
    held = memorize(reader, "x" * 150, ratio=1)
    assert memorize(reader, "y" * 40, ratio=1, after=held).slots == 190
    with pytest.raises(MemoryTooLong):
        next(reader.memorize("y" * 60, "d", 1, 64, after=held))


def test_a_memory_of_another_model_is_not_continued(reader):
    other = memorize(tiny.memory_model(seed=9))
    with pytest.raises(WrongModel):
        next(reader.memorize("and more", "d", 4, 64, after=other))


# --- cancelling and threads ------------------------------------------------------------------------------------------


def test_closing_the_generator_cancels_between_windows(reader):
    expected = memorize(reader)
    steps = reader.memorize(tiny.TEXT, "d", 4, 64)
    next(steps), next(steps)
    steps.close()
    assert not reader.turn._busy and not reader.turn._waiting
    assert same(memorize(reader), expected)


def test_a_failure_while_reading_leaves_the_model_usable(reader, monkeypatch):
    expected = memorize(reader)
    with monkeypatch.context() as patch:
        patch.setattr("memo.memory.run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memorize(reader)
    assert not reader.turn._busy
    assert same(memorize(reader), expected)


def test_threads_that_memorize_at_once_get_what_they_would_alone(reader):
    texts = [tiny.TEXT[i * 20 :] for i in range(3)]
    expected = [memorize(reader, text, str(i)) for i, text in enumerate(texts)]
    found = {}

    def work(index):
        found[index] = memorize(reader, texts[index], str(index))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    answer = LocalGenerator(reader, "tiny").open()
    stream = answer.add(Prompt((("user", "hello"),), 8))  # a question meanwhile
    while answer.step():
        pass
    for thread in threads:
        thread.join()
    assert all(same(found[i], expected[i]) for i in range(3))
    assert stream.text == ask(reader, "hello", None)


def test_turns_are_taken_in_the_order_of_asking():
    turn, order, held = Turn(), [], threading.Event()

    def work(number):
        with turn:
            order.append(number)

    with turn:
        threads = []
        for number in range(4):
            thread = threading.Thread(target=work, args=(number,))
            thread.start()
            while len(turn._waiting) <= number:
                held.wait(0.001)
            threads.append(thread)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3] and not turn._busy


@pytest.mark.parametrize("handed_over", [False, True])
def test_who_is_interrupted_while_waiting_does_not_keep_the_turn(monkeypatch, handed_over):
    turn, wait = Turn(), threading.Event.wait
    follower = threading.Thread(target=lambda: (turn.__enter__(), turn.__exit__()), daemon=True)

    def interrupted(event, timeout=None):
        monkeypatch.setattr(threading.Event, "wait", wait)
        follower.start()
        while len(turn._waiting) < 2:
            wait(threading.Event(), 0.001)
        if handed_over:
            turn.__exit__()
        raise KeyboardInterrupt

    turn.__enter__()
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        turn.__enter__()
    if not handed_over:
        assert follower.is_alive() and turn._busy
        turn.__exit__()
    follower.join(30)
    assert not follower.is_alive() and not turn._busy and not turn._waiting


# --- a set of documents ----------------------------------------------------------------------------------------------


def ask(reader, question, slots, **more):
    answer = LocalGenerator(reader, "tiny").open()
    stream = answer.add(Prompt((("user", question),), 8, slots=slots, **more))
    while answer.step():
        pass
    return stream.text


@pytest.fixture(scope="module")
def three(reader):
    return [memorize(reader, text, name) for name, text in zip("abc", (tiny.TEXT, tiny.KOREAN, "x y z"), strict=True)]


def test_removing_is_as_if_it_had_never_been_there(reader, three):
    a, b, c = three
    memory = memory_with(reader, a, b, c)
    memory.compose()
    memory.remove("a")
    only = memory_with(reader, b, c).compose()
    found = memory.compose()
    assert found.documents == only.documents == ("b", "c") and "a" not in memory and len(memory) == 2
    for mine, theirs in ((found.slots.keys, only.slots.keys), (found.slots.values, only.slots.values)):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert torch.equal(found.spans, only.spans) and torch.equal(found.owners, only.owners)
    assert torch.equal(logits_after(reader, found), logits_after(reader, only))


def test_a_composition_keeps_the_order_of_adding_and_knows_whose_each_slot_is(reader, three):
    a, b, c = three
    composed = memory_with(reader, c, a, b).compose()
    assert composed.documents == ("c", "a", "b") and composed.left_out == ()
    assert composed.owners.tolist() == [0] * c.slots + [1] * a.slots + [2] * b.slots
    assert torch.equal(composed.spans, torch.cat([c.spans, a.spans, b.spans]))
    other = memory_with(reader, a, b, c).compose()
    assert not torch.allclose(logits_after(reader, composed), logits_after(reader, other), atol=1e-3)


def test_one_document_composed_is_the_memory_it_was_read_into():
    """Composing rotates the stored keys: at ratio 1 the model goes on as after the text itself."""
    reader = tiny.memory_model()
    composed = memory_with(reader, memorize(reader, tiny.TEXT[:200], ratio=1)).compose()
    ids = torch.tensor([reader.encode(tiny.TEXT[:200] + "What froze?")[0]])
    reader.model.set_attn_implementation("sdpa")
    expected = reader.model(ids).logits[:, 200:]
    reader.model.set_attn_implementation("memo")
    assert torch.allclose(logits_after(reader, composed), expected, atol=1e-3)


def test_adding_a_document_again_replaces_it(reader, three):
    memory = memory_with(reader, *three)
    memory.compose()
    memory.add(memorize(reader, tiny.TEXT, "a", ratio=16))
    assert len(memory) == 3 and memory["a"].ratio == 16
    assert memory.compose().documents == ("a", "b", "c") and len(memory.compose().slots) == sum(
        memory[d].slots for d in "abc"
    )


def test_a_memory_of_the_same_size_that_replaces_another_is_noticed(reader):
    first, second = (memorize(reader, tiny.TEXT[start : start + 100], "a") for start in (0, 100))
    assert first.slots == second.slots
    memory = memory_with(reader, first)
    before = memory.compose()
    memory.add(second)
    found, expected = memory.compose(), memory_with(reader, second).compose()
    assert found is not before and torch.equal(found.spans, expected.spans)
    assert all(torch.equal(x, y) for x, y in zip(found.slots.keys, expected.slots.keys, strict=True))


def test_of_a_document_that_was_removed_nothing_is_held(reader, three):
    kept = memory_with(reader, three[0])
    kept.add(memorize(reader, tiny.KOREAN, "gone"))
    kept.compose()
    gone = weakref.ref(kept["gone"])
    kept.remove("gone")
    gc.collect()
    assert gone() is None and not kept._parts


def test_without_documents_there_is_nothing_to_compose(reader, three):
    memory = Memory(reader)
    with pytest.raises(UnknownDocument):
        memory.compose()
    memory.add(three[0])
    memory.compose()
    memory.remove("a")
    with pytest.raises(UnknownDocument):
        memory.compose(["a"])


def test_the_most_relevant_documents_that_fit_are_composed_and_the_others_named():
    reader = tiny.memory_model(max_position_embeddings=256)  # 192 slots fit
    sizes = {"a": 90, "b": 60, "c": 100, "d": 40}
    memory = memory_with(reader, *(memorize(reader, name * size, name, ratio=1) for name, size in sizes.items()))
    assert (memory.compose().documents, memory.compose().left_out) == (("a", "b", "d"), ("c",))
    composed = memory.compose(["c", "zzz", "d", "c"])
    assert (composed.documents, composed.left_out) == (("c", "d"), ("a", "b"))
    assert len(composed.slots) == 140
    composed = memory.compose(["c", "b"])  # then what is left goes to those that fit
    assert (composed.documents, composed.left_out) == (("b", "c"), ("a", "d"))


def test_what_was_left_out_and_removed_is_named_no_more():
    reader = tiny.memory_model(max_position_embeddings=256)
    memory = memory_with(reader, *(memorize(reader, name * 150, name, ratio=1) for name in "ab"))
    assert memory.compose().left_out == ("b",)
    memory.remove("b")
    assert memory.compose().left_out == () and memory.compose().documents == ("a",)


def test_the_same_composition_is_made_once(reader, three):
    memory = memory_with(reader, *three)
    assert memory.compose() is memory.compose(["b"])
    memory.remove("c")
    assert memory.compose().documents == ("a", "b")


def test_generating_leaves_the_memory_bit_for_bit(reader, three):
    memory = memory_with(reader, *three)
    composed = memory.compose()
    tensors = (*composed.slots.keys, *composed.slots.values, *(t for m in three for t in (m.keys, m.values)))
    before = checksum(*tensors)
    first = ask(reader, "Who froze?", composed.slots, watch=True)
    assert first and first == ask(reader, "Who froze?", composed.slots)
    assert checksum(*tensors) == before


def test_memories_of_other_weights_are_refused(reader, three):
    other_model = memorize(tiny.memory_model(seed=5))
    other_weights = memorize(tiny.memory_model())
    memory = memory_with(reader, three[0])
    with pytest.raises(WrongModel, match="another language model"):
        memory.add(other_model)
    with pytest.raises(WrongModel, match="other memory weights"):
        memory.add(other_weights)
    assert len(memory) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_a_memory_is_made_saved_continued_and_asked(tmp_path):
    cpu = tiny.memory_model()
    gpu = tiny.MemoryModel(tiny.model().to("cuda"), tiny.tokenizer())
    assert gpu.fingerprint == cpu.fingerprint
    part = memorize(gpu, tiny.TEXT[:128])
    memory_file.save(part, tmp_path / "part")
    both = memorize(gpu, tiny.TEXT[128:300], after=memory_file.load(tmp_path / "part", gpu))
    whole = memorize(gpu, tiny.TEXT[:300])
    assert torch.allclose(both.keys, whole.keys, atol=1e-2) and torch.equal(both.spans, whole.spans)
    assert both.keys.device.type == "cpu"
    assert ask(gpu, "What froze?", memory_with(gpu, both).compose().slots, watch=True)
