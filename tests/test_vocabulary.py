"""A decoder moved to another vocabulary: layers kept, rows of common tokens kept, the rest anew; then it learns."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memo import decoder
from memo.errors import ModelError, WrongModel
from memo.train import decode
from memo.train.recipe import Distilling
from memo.train.texts import joined
from memo.vocabulary import moved


def other_tokenizer() -> PreTrainedTokenizerFast:
    """The bytes in another order, and tokens of two letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    pairs = [("t", "h"), ("h", "e"), ("a", "n"), ("i", "n")]
    engine = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, *map("".join, pairs)])}, pairs))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(tiny.START, special=True), AddedToken(tiny.END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token=tiny.START, eos_token=tiny.END)


OLD, NEW = tiny.tokenizer(), other_tokenizer()


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama", seed=4, vocab_size=264, hidden_size=48, num_attention_heads=4)


@pytest.fixture(params=["an ordinary model", "a decoder that shares", "a decoder with a head of its own"])
def start(request, tmp_path):
    small, first = tiny.model("llama", num_hidden_layers=2), tiny.model("llama")
    if request.param == "an ordinary model":
        small.save_pretrained(tmp_path)
        OLD.save_pretrained(tmp_path)
    elif request.param == "a decoder that shares":
        small = decoder.first_layers(first, 2)
        decoder.save(small, first, OLD, tmp_path, {})
    else:
        decoder.save(small, first, OLD, tmp_path, {})
    return tmp_path, small, "shares" not in request.param


def test_layers_and_common_rows_stay(start, llm):
    folder, small, has_rows = start
    with pytest.raises(WrongModel):
        decoder.load(folder, llm, NEW)
    made = moved(folder, llm, NEW)
    assert made.get_output_embeddings().weight.shape[0] == 264 and made.config.eos_token_id == llm.config.eos_token_id
    for one, same in zip(made.model.layers.parameters(), small.model.layers.parameters(), strict=True):
        assert torch.allclose(one, same, atol=2e-2)  # a saved decoder is in bfloat16
    ours, theirs = made.get_input_embeddings().weight, small.get_input_embeddings().weight
    for token in ("a", "z", tiny.END):
        here, there = NEW.convert_tokens_to_ids(token), OLD.convert_tokens_to_ids(token)
        assert here != there or token == tiny.END
        assert torch.allclose(ours[here], theirs[there], atol=2e-2) == has_rows
    assert ours[NEW.convert_tokens_to_ids("th")].std() > 0
    again = moved(folder, llm, NEW)
    assert all(torch.equal(one, same) for one, same in zip(made.parameters(), again.parameters(), strict=True))


def test_it_learns_and_is_mixed(start, llm, tmp_path):
    folder, _, _ = start
    ids = np.array(NEW.encode(tiny.TEXT * 3, add_special_tokens=False), dtype=np.uint32)
    learnt, held = joined([ids[:300], ids[150:450]]), joined([ids[40:140], ids[200:300]])
    plan = Distilling(steps=12, batch=2, micro=2, learning_rate=3e-3, save_every=12)
    accelerator, lines = Accelerator(mixed_precision="no", cpu=True), []
    decode.make(llm, NEW, learnt, held, tmp_path / "made", plan, accelerator, {},
                lambda progress: lines.append(progress.line), str(folder), new_vocabulary=True)  # fmt: skip
    losses = [line["loss"] for line in lines if line]
    assert losses[-1] < losses[0] - 0.3
    made = decoder.load(tmp_path / "made", llm, NEW)
    assert not decoder.shares(made, llm)
    logits = decoder.Mixed(llm, made, 0.4)(torch.tensor([ids[:20].tolist()])).logits
    assert torch.allclose(logits.exp().sum(-1), torch.ones(1, 20), atol=1e-4)


def test_damaged_and_missing_ones_are_refused(llm, tmp_path):
    with pytest.raises(ModelError, match="cannot be moved"):
        moved(tmp_path / "nothing", llm, NEW)
    first = tiny.model("llama")
    decoder.save(decoder.first_layers(first, 2), first, OLD, tmp_path, {})
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(ModelError, match="not a whole decoder"):
        moved(tmp_path, llm, NEW)
