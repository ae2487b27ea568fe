"""Texts to train on: where they come from, the file of their tokens, and how it is cut into pieces and batches."""

import gzip
import json

import datasets
import numpy as np
import pytest

from memo.errors import SettingsError
from memo.train.texts import Piece, Source, TokenFile, batches, pieces, tokenize

DOCS = [
    {"doc_id": "1", "text": "The mill.", "split": "train"},
    {"doc_id": "2", "text": "강이 얼었다.", "split": "test"},
    {"doc_id": "3", "text": "A flood.", "split": "train"},
]


def encode(text):
    return list(text.encode())


def folder_of(path, docs=DOCS, packed=False):
    path.mkdir(parents=True)
    held = "".join(json.dumps(doc) + "\n" for doc in docs).encode()
    (path / f"docs.jsonl{'.gz' * packed}").write_bytes(gzip.compress(held) if packed else held)
    return str(path)


def text_file(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def documents(*lengths):
    """A token file of documents of these lengths; each token is its own index."""
    bounds = tuple(np.cumsum((0, *lengths)).tolist())
    return TokenFile(np.arange(bounds[-1], dtype="<u4"), bounds, (bounds[-1],))


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("docs", Source("docs")),
        ("a/docs:train", Source("a/docs", "train")),
        ("docs@500", Source("docs", "", 500)),
        ("docs:test@500", Source("docs", "test", 500)),
        ("hub:anna/mills", Source("hub:anna/mills")),
        ("hub:anna/mills:dev", Source("hub:anna/mills", "dev")),
        ("hub:anna/mills:dev@7", Source("hub:anna/mills", "dev", 7)),
    ],
)
def test_a_source_is_named_with_split_and_tokens(text, source):
    assert Source.parse(text) == source


def test_a_name_may_have_the_sign_of_a_number_in_it():
    assert Source.parse("texts@home") == Source("texts@home")
    assert Source.parse("texts@home:train@50") == Source("texts@home", "train", 50)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("split", "expected"), [("", [0, 1, 2]), ("train", [0, 2]), ("test", [1])], ids=["all", "train", "test"]
)
def test_a_folder_gives_the_documents_of_a_split_in_order(tmp_path, packed, split, expected):
    name = folder_of(tmp_path / "set", packed=packed)
    assert list(Source(name, split).texts()) == [DOCS[i]["text"] for i in expected]


def test_a_text_file_is_one_document(tmp_path):
    name = text_file(tmp_path / "mill.txt", "The mill.\n\n방앗간.\n")
    assert list(Source(name).texts()) == ["The mill.\n\n방앗간.\n"]


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(SettingsError, match="no document of the split 'dev'"):
        list(Source(folder_of(tmp_path / "set"), "dev").texts())
    with pytest.raises(SettingsError, match=r"nowhere\.txt cannot be read"):
        list(Source(str(tmp_path / "nowhere.txt")).texts())
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(SettingsError, match=r"image\.png cannot be read as text"):
        list(Source(str(tmp_path / "image.png")).texts())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"no docs\.jsonl"):
        list(Source(str(tmp_path / "empty")).texts())


def test_a_set_of_the_hub_is_streamed(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return iter([{"text": "The mill."}, {"text": "A flood."}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(Source.parse("hub:anna/mills:dev").texts()) == ["The mill.", "A flood."]
    assert list(Source.parse("hub:anna/mills").texts()) == ["The mill.", "A flood."]
    assert asked == [("anna/mills", "dev", True), ("anna/mills", "train", True)]


@pytest.mark.parametrize("row", ["no row", "no text"])
def test_a_set_of_the_hub_that_cannot_be_read_is_refused_whenever_that_shows(monkeypatch, row):
    def load_dataset(name, split, streaming):
        yield {"text": "The mill."}
        if row == "no row":
            raise ConnectionError("No route to host.\nand a long trace")
        yield {"content": "A flood."}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = Source("hub:anna/mills").texts()
    assert next(found) == "The mill."
    with pytest.raises(SettingsError, match="anna/mills cannot be read") as error:
        next(found)
    assert "\n" not in str(error.value)


# --- the token file --------------------------------------------------------------------------------------------------


def test_the_token_file_holds_all_documents_one_after_the_other(tmp_path):
    docs = [{"text": "abc"}, {"text": ""}, {"text": "de"}]
    sources = [Source(folder_of(tmp_path / "set", docs)), Source(text_file(tmp_path / "f.txt", "fghi"))]
    tokens = tokenize(sources, encode, "bytes", tmp_path / "new" / "out")
    assert bytes(tokens.ids.tolist()) == b"abcdefghi"
    assert tokens.bounds == (0, 3, 3, 5, 9)
    assert tokens.sources == (5, 4)
    assert bytes(tokens.piece(2, 4).tolist()) == b"cdef"


@pytest.mark.parametrize(
    ("limit", "held", "bounds"), [(2, b"ab", (0, 2)), (3, b"abc", (0, 3)), (4, b"abcd", (0, 3, 4)), (9, b"abcde", None)]
)
def test_a_source_gives_no_more_tokens_than_it_may(tmp_path, limit, held, bounds):
    first = folder_of(tmp_path / "set", [{"text": "abc"}, {"text": "de"}])
    second = text_file(tmp_path / "f.txt", "fg")
    tokens = tokenize([Source(first, "", limit), Source(second)], encode, "bytes", tmp_path)
    assert bytes(tokens.ids.tolist()) == held + b"fg"
    assert tokens.bounds == (*(bounds or (0, 3, 5)), len(held) + 2)
    assert tokens.sources == (len(held), 2)


def test_documents_behind_the_limit_are_not_even_read(tmp_path, monkeypatch):
    def load_dataset(name, split, streaming):
        yield {"text": "abc"}
        yield {"text": "def"}
        raise AssertionError("read too far")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert tokenize([Source("hub:anna/mills", "", 6)], encode, "bytes", tmp_path).bounds == (0, 3, 6)


def test_sources_are_read_once(tmp_path):
    name = folder_of(tmp_path / "set")
    read = []

    def counted(text):
        read.append(text)
        return encode(text)

    first = tokenize([Source(name)], counted, "bytes", tmp_path / "out")
    second = tokenize([Source(name)], counted, "bytes", tmp_path / "out")
    assert read == [doc["text"] for doc in DOCS]
    assert (second.bounds, second.sources) == (first.bounds, first.sources)
    assert np.array_equal(second.ids, first.ids)
    with (tmp_path / "set" / "docs.jsonl").open("a") as file:
        file.write(json.dumps({"doc_id": "new", "text": "More."}) + "\n")
    third = tokenize([Source(name)], counted, "bytes", tmp_path / "out")  # it has changed since
    assert third.bounds[-1] == first.bounds[-1] + len(encode("More."))


def test_other_sources_or_tokenizers_make_other_files(tmp_path):
    name = folder_of(tmp_path / "set")
    out = tmp_path / "out"
    asked = [
        ([Source(name)], "bytes"), ([Source(name, "train")], "bytes"), ([Source(name, "", 5)], "bytes"),
        ([Source(name), Source(name)], "bytes"), ([Source(name)], "other bytes"),
    ]  # fmt: skip
    sizes = [len(tokenize(sources, encode, key, out).ids) for sources, key in asked]
    one, train = sum(len(encode(doc["text"])) for doc in DOCS), len(b"The mill.A flood.")
    assert sizes == [one, train, 5, 2 * one, one]
    assert len(list(out.glob("*.bin"))) == len(asked)


def test_sources_without_text_are_refused_and_leave_nothing(tmp_path):
    name = folder_of(tmp_path / "set", [{"text": ""}, {"title": "no text"}])
    with pytest.raises(SettingsError, match="no text"):
        tokenize([Source(name), Source(text_file(tmp_path / "f.txt", ""))], encode, "bytes", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_source_that_fails_leaves_no_token_file_and_can_be_put_right(tmp_path):
    sources = [Source(folder_of(tmp_path / "set")), Source(str(tmp_path / "late.txt"))]
    with pytest.raises(SettingsError, match=r"late\.txt"):
        tokenize(sources, encode, "bytes", tmp_path / "out")
    # what is left is tokens-*.tmp, which the next call overwrites
    assert not list((tmp_path / "out").glob("*.bin")) and not list((tmp_path / "out").glob("*.json"))
    text_file(tmp_path / "late.txt", "late")
    assert tokenize(sources, encode, "bytes", tmp_path / "out").sources[1] == 4


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", range(5))
def test_pieces_are_whole_windows_of_one_document_and_do_not_overlap(epoch):
    tokens = documents(35, 9, 0, 200, 61, 20, 19)
    found = pieces(tokens, 10, 4, 2, 0, epoch)
    taken = [set(range(piece.start, piece.start + 10 * piece.windows)) for piece in found]
    assert len(set().union(*taken)) == sum(map(len, taken))
    cuts = list(zip(tokens.bounds, tokens.bounds[1:], strict=False))
    count = dict.fromkeys(cuts, 0)
    for piece, its in zip(found, taken, strict=True):
        assert 2 <= piece.windows <= 4
        inside = [(begin, end) for begin, end in cuts if begin <= min(its) and max(its) < end]
        assert len(inside) == 1
        count[inside[0]] += len(its)
    for (begin, end), held in count.items():
        size = end - begin
        if size < 20:
            assert held == 0  # too short
        else:  # at the edges less than a window each, and at the end what is shorter than a piece
            assert size - held < 10 + 2 * 10


def test_documents_just_long_enough_are_cut_from_their_first_token():
    assert sorted(pieces(documents(20, 25, 30), 10, 4, 2, 0, 0), key=lambda piece: piece.start) == [
        Piece(0, 2), Piece(20, 2), Piece(45, 3),
    ]  # fmt: skip


def test_every_epoch_cuts_elsewhere_and_can_be_had_again():
    tokens = documents(*[300] * 8)
    drawn = {(seed, epoch): pieces(tokens, 10, 4, 2, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for (seed, epoch), found in drawn.items():
        assert pieces(tokens, 10, 4, 2, seed, epoch) == found
    assert len({tuple(found) for found in drawn.values()}) == 6
    starts = [sorted(piece.start % 10 for piece in found) for found in drawn.values()]
    assert len(set(map(tuple, starts))) == 6
    first = drawn[0, 0]
    assert [piece.start for piece in first] != sorted(piece.start for piece in first)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_have_pieces_of_one_length_and_each_piece_once():
    found = [Piece(100 * i, 2 + i % 3) for i in range(20)]  # 7 of 2 windows, 7 of 3, 6 of 4
    made = batches(found, 3, 5)
    assert len(made) == 2 + 2 + 2
    assert all(len(batch) == 3 and len({piece.windows for piece in batch}) == 1 for batch in made)
    used = [piece for batch in made for piece in batch]
    assert len(set(used)) == len(used) and set(used) <= set(found)


def test_the_order_of_batches_follows_from_the_seed():
    found = [Piece(100 * i, 2 + i % 3) for i in range(60)]
    assert batches(found, 3, 5) == batches(found, 3, 5) != batches(found, 3, 6)
    assert sorted(map(str, batches(found, 3, 5))) == sorted(map(str, batches(found, 3, 6)))
    assert [batch[0].windows for batch in batches(found, 3, 5)] != sorted(b[0].windows for b in batches(found, 3, 5))


def test_too_few_pieces_make_no_batch():
    assert batches([], 2, 0) == batches([Piece(0, 2), Piece(100, 3)], 2, 0) == []
