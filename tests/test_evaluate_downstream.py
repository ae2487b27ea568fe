"""Facts of learnt texts and labels of questions, with a decoder mixed in: each score by a slow loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch

from memo import decoder
from memo.cli import main
from memo.documents import Document
from memo.evaluate import downstream
from memo.evaluate.data import Question, Shelf
from memo.evaluate.report import report
from memo.train.texts import joined

TOKENIZER = tiny.tokenizer()
BOOK = (
    "The harbour of Port Ellen was built by Mary Stewart in the spring of 1884 for the boats. Nobody had asked "
    "for it, but the council of Lower Largo gave 250 pounds, and the rest came from the whisky of Angus Reid. "
) * 2


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def mixed(llm):
    small = decoder.first_layers(llm, 1).requires_grad_(False)
    torch.manual_seed(1)
    for weight in decoder.own(small, llm).parameters():
        weight += 0.1 * torch.randn_like(weight)
    return decoder.Mixed(llm, small, 0.3)


def corpus(*texts):
    return joined([np.array(TOKENIZER.encode(text, add_special_tokens=False), dtype=np.uint32) for text in texts])


def test_facts_are_names_and_numbers_with_a_text_before_them(monkeypatch):
    monkeypatch.setattr(downstream, "ANSWER", 14)  # a token is a letter here
    found = downstream.clozes(corpus(BOOK, BOOK[150:]), TOKENIZER, 50)
    assert {"Lower Largo", "250", "Angus Reid"} <= {one.fact for one in found} <= {
        "Lower Largo", "250", "Angus Reid", "Mary Stewart", "1884", "Port Ellen"}  # fmt: skip
    for one in found:
        before = TOKENIZER.decode(one.before)
        assert len(one.before) == downstream.BEFORE and one.fact not in before
        assert f"{before} {one.fact}" in BOOK
    assert found == downstream.clozes(corpus(BOOK, BOOK[150:]), TOKENIZER, 50)


def test_a_fact_is_told_if_the_mix_goes_on_with_it(mixed, monkeypatch):
    ids = TOKENIZER.encode(BOOK[: downstream.BEFORE], add_special_tokens=False)
    row, said = torch.tensor([ids]), ""
    for _ in range(downstream.ANSWER):
        row = torch.cat([row, mixed(row).logits[:, -1:].argmax(-1)], dim=1)
    said = TOKENIZER.decode(row[0, len(ids) :]).lstrip()
    some = [downstream.Cloze(0, ids, fact) for fact in (said, said + "x", "no")]
    assert downstream.told(mixed, TOKENIZER, some) == [True, False, False]


def test_labels_by_a_slow_loop(mixed, llm):
    question = Question("1", "Is it old?", ("yes",), True, (), Shelf("a", (Document("a", "a", BOOK),)))
    labels = ("yes", "no", "maybe")

    def slow(prompt):
        found = []
        for label in labels:
            ids, total = TOKENIZER.encode(prompt, add_special_tokens=False), 0.0
            for token in TOKENIZER.encode(f" {label}", add_special_tokens=False):
                row = torch.tensor([ids])
                p = 0.3 * mixed.memory(row).logits[0, -1].softmax(-1) + 0.7 * llm(row).logits[0, -1].softmax(-1)
                total, ids = total + float(p[token].log()), [*ids, token]
            found.append(total)
        return np.array(found)

    mixed.alpha = 0.3
    prompt, premise = slow(downstream.prompt_of(question)), slow("Answer:")
    found = downstream.label_logps(mixed, TOKENIZER, downstream.prompt_of(question), labels)
    assert np.allclose(found, prompt, atol=1e-3)
    plain, dcpmi = downstream.judged(mixed, TOKENIZER, [question], labels)
    assert plain == [prompt.argmax() == 0] and dcpmi == [(prompt - premise).argmax() == 0]


def test_from_the_command_line_to_the_report(llm, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, "ANSWER", 14)
    llm.save_pretrained(tmp_path / "llm")
    TOKENIZER.save_pretrained(tmp_path / "llm")
    decoder.save(mixed.memory, llm, TOKENIZER, tmp_path / "made", {"alpha": 0.2})
    decoder.save_router(decoder.Router(64, 64), tmp_path / "made")
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "docs.jsonl").write_text(json.dumps({"doc_id": "a", "title": "", "text": BOOK}))
    asked = {"id": "1", "doc_id": "a", "question": "Is it old?", "answers": ["yes"], "evidence": []}
    (tmp_path / "set" / "test.jsonl").write_text(json.dumps(asked))
    for name, value in (("MODEL", tmp_path / "llm"), ("DEVICE", "cpu"), ("DTYPE", "float32")):
        monkeypatch.setenv(f"MEMO_MEMORY_{name}" if name == "MODEL" else f"MEMO_{name}", str(value))
    out = tmp_path / "results" / "downstream.json"
    arguments = ["evaluate", "downstream", "--memory-decoder", str(tmp_path / "made"), "--out", str(out)]
    assert main(arguments) == 2 and not out.exists()
    more = ["--learnt", str(tmp_path / "book.txt"), "--data", str(tmp_path / "set"), "--facts", "4"]
    assert main([*arguments, *more]) == 0
    rows = json.loads(out.read_text())["results"]["rows"]
    assert [row["alpha"] for row in rows] == ["0", "0.3", "1", "0.2", "router"]
    assert all({"cloze", "plain", "dcpmi"} <= row.keys() for row in rows)
    report(out.parent, tmp_path / "RESULTS.md")
    assert "Beyond perplexity" in (tmp_path / "RESULTS.md").read_text()
