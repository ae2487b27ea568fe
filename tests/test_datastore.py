"""The datastore, its neighbours and targets: against brute force and slow loops."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tiny
import torch

from memo import datastore, knn, targets
from memo.datastore import Datastore, blocks
from memo.errors import DatastoreError, WrongModel
from memo.knn import Neighbours, distribution
from memo.train.texts import TokenFile


def corpus(*texts: str) -> TokenFile:
    ids = [list(text.encode()) for text in texts]
    bounds = tuple(itertools.accumulate(map(len, ids), initial=0))
    return TokenFile(np.array([i for one in ids for i in one], dtype=np.uint32), bounds, (bounds[-1],))


TEXTS = (tiny.TEXT[:180], tiny.TEXT[40:150], "x", tiny.TEXT[:90] + "Nobody knows.")


@pytest.fixture(scope="module")
def llm():
    return tiny.model("llama")


@pytest.fixture(scope="module")
def store(llm, tmp_path_factory) -> Datastore:
    return datastore.build(llm, corpus(*TEXTS), tmp_path_factory.mktemp("store"), window=64, stride=32)


def all_keys(store: Datastore) -> np.ndarray:
    return np.concatenate([store.keys(shard) for shard in range(store.shards)])


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (1024, 512)])
def test_every_token_but_a_first_one_counts_once(window, stride):
    bounds = (0, 180, 290, 291, 400)
    counted = [t for block in blocks(bounds, window, stride) for t in range(block.first, block.end)]
    assert sorted(counted) == [t for t in range(400) if t not in bounds]
    for block in blocks(bounds, window, stride):
        assert block.end - block.start <= window
        document = max(b for b in bounds if b <= block.start)
        assert block.first - block.start >= min(window - stride, block.first - document)


def test_keys_are_the_last_mlp_input_before_each_token(llm, store):
    seen = []
    hook = llm.model.layers[-1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = store.tokens
    for block in store.blocks[:3]:
        seen.clear()
        with torch.no_grad():
            llm(tokens.piece(block.start, block.end - block.start)[None])
        first, end = store.entries(block)
        expected = seen[0][0, block.first - block.start - 1 : block.end - block.start - 1]
        assert np.allclose(all_keys(store)[first:end], expected.numpy(), atol=2e-2, rtol=1e-2)
        assert store.values[first:end].tolist() == tokens.ids[block.first : block.end].tolist()
    hook.remove()


def test_a_killed_build_goes_on(llm, store, tmp_path, monkeypatch):
    monkeypatch.setattr(datastore, "SHARD", 2)

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    tokens = corpus(*TEXTS)
    with pytest.raises(KeyboardInterrupt):
        datastore.build(llm, tokens, tmp_path, 64, 32, told=stop)
    written = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("keys-*")}
    assert len(written) == 2
    whole = datastore.build(llm, tokens, tmp_path, 64, 32)
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in written.items())
    assert np.allclose(all_keys(whole), store.keys(0), atol=5e-3)


def test_two_processes_write_what_one_does(llm, store, tmp_path, monkeypatch):
    monkeypatch.setattr(datastore, "SHARD", 2)
    for process in (1, 0):
        both = datastore.build(llm, corpus(*TEXTS), tmp_path, 64, 32, process=(process, 2))
    assert np.allclose(all_keys(both), store.keys(0), atol=5e-3)


def test_another_store_in_the_folder_is_refused(llm, store):
    with pytest.raises(DatastoreError, match="another datastore"):
        datastore.build(llm, corpus("Some other text."), store.folder, 64, 32)
    with pytest.raises(WrongModel):
        store.check(tiny.model("llama", seed=4))


def test_nothing_to_predict_is_refused(llm, tmp_path):
    with pytest.raises(DatastoreError, match="no two tokens"):
        datastore.build(llm, corpus("a", "b"), tmp_path)


def test_damaged_shard_is_refused(llm, tmp_path):
    store = datastore.build(llm, corpus(*TEXTS), tmp_path, 64, 32)
    path = datastore.shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatastoreError, match="cannot be read"):
        store.keys(0)


# --- neighbours ------------------------------------------------------------------------------------------------------


def brute(store: Datastore, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    every = all_keys(store).astype(np.float32)
    distances = ((keys.astype(np.float32)[:, None] - every[None]) ** 2).sum(-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


def test_exact_search_equals_brute_force(store):
    keys = all_keys(store)[::7]
    distances, _ = brute(store, keys, 5)
    found = knn.index(store).search(keys, 5)
    assert np.allclose(found.distances, distances, atol=1e-3, rtol=1e-4)
    assert np.allclose(knn.exact(store, keys, 5).distances, distances, atol=1e-3, rtol=1e-4)
    assert knn.index(store).kind == "Flat"


def test_nobody_finds_itself_nor_its_passage_told_twice(store):
    own = np.arange(store.size)
    found = knn.index(store).search(all_keys(store), 20, own)
    assert not (found.entries == own[:, None]).any()
    ids, places = store.tokens.ids, store.places
    begins = np.array(store.tokens.bounds)
    for entry in range(store.size):
        here = places[entry]
        if here - begins[begins <= here].max() < datastore.ALIKE:
            continue
        for other in found.entries[entry][found.entries[entry] >= 0]:
            there = places[other]
            same = np.array_equal(ids[max(0, there - 32) : there], ids[here - 32 : here])
            assert not same
    # the texts overlap: without the rule the same passage would be the nearest of many
    loose = knn.index(store).search(all_keys(store), 3)
    assert (store.contexts[loose.entries[:, 1]] == store.contexts[own]).sum() > 50


def test_fewer_entries_than_neighbours(store):
    found = knn.index(store).search(all_keys(store)[:2], store.size + 5)
    assert found.entries.shape == (2, store.size + 5)
    assert (found.entries[:, -5:] == -1).all()
    assert np.isinf(found.distances[:, -5:]).all()


@pytest.mark.parametrize("kind", ["IVF16,SQfp16", "OPQ16,IVF16,PQ16x4"])
def test_a_large_index_reaches_its_recall_or_looks_everywhere(store, monkeypatch, kind, tmp_path):
    monkeypatch.setattr(knn, "kind", lambda size: kind)
    copy = Datastore(tmp_path, store.tokens, store.size, store.dimension, store.model, store.window, store.stride)
    for file in store.folder.glob("keys-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    made = knn.index(copy, k=8)
    assert made.recall >= knn.RECALL or made.probes == 16
    again = knn.index(copy, k=8)  # from disk
    keys = all_keys(store)[:9]
    assert np.array_equal(again.search(keys, 4).entries, made.search(keys, 4).entries)
    assert (again.kind, again.recall, again.probes) == (kind, made.recall, made.probes)
    (tmp_path / "index.faiss").write_bytes(b"nothing")
    with pytest.raises(DatastoreError, match="damaged"):
        knn.index(copy)


def test_the_kind_follows_from_the_size():
    assert knn.kind(1000) == "Flat"
    assert knn.kind(1_000_000) == "IVF2048,SQfp16"
    assert knn.kind(50_000_000).startswith("OPQ64,IVF16384,PQ64")


# --- distributions ---------------------------------------------------------------------------------------------------


def test_distribution_by_hand():
    values = np.array([7, 8, 7, 9])
    distances = np.array([[0.0, 1.0, 2.0], [5.0, np.inf, np.inf]], np.float32)
    found = Neighbours(distances, np.array([[0, 1, 2], [3, -1, -1]]))
    sparse = distribution(found, values, temperature=2.0)
    weights = np.exp([0.0, -0.5, -1.0])
    weights /= weights.sum()
    assert sparse.tokens.tolist() == [7, 8, 9]
    assert np.allclose(sparse.probabilities, [weights[0] + weights[2], weights[1], 1.0])
    assert np.allclose(sparse.of(np.array([8, 8])), [weights[1], 0.0])


def test_a_query_without_neighbours_says_nothing():
    found = Neighbours(np.full((2, 3), np.inf, np.float32), np.full((2, 3), -1))
    sparse = distribution(found, np.array([1]), 1.0)
    assert sparse.ends.tolist() == [0, 0, 0]
    assert sparse.of(np.array([1, 1])).tolist() == [0.0, 0.0]


def test_the_choice_is_the_best_of_the_grid(store):
    keys, labels = all_keys(store), store.values
    found = knn.index(store).search(keys, 16, np.arange(store.size))
    logp = np.full(store.size, -4.0)
    choice = knn.choose(found, store.values, labels, logp, ks=(4, 16))
    nearest = Neighbours(found.distances[:, : choice.k], found.entries[:, : choice.k])
    voted = distribution(nearest, store.values, choice.temperature).of(labels)
    mixed = choice.weight * voted + (1 - choice.weight) * np.exp(logp)
    assert np.isclose(-np.log(mixed).mean(), choice.loss, atol=1e-6)
    assert choice.loss < 4.0


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_come_back_as_they_were_made(store, tmp_path):
    index = knn.index(store)
    kept = targets.write_targets(index, 6, 30.0, tmp_path)
    direct = distribution(index.search(all_keys(store), 6, np.arange(store.size)), store.values, 30.0)
    for block in store.blocks:
        first, end = store.entries(block)
        found = kept.of(first, end)
        part = slice(direct.ends[first], direct.ends[end])
        assert found.tokens.tolist() == direct.tokens[part].tolist()
        assert np.allclose(found.probabilities, direct.probabilities[part], atol=1e-3)
        assert np.allclose(np.add.reduceat(found.probabilities, found.ends[:-1]), 1, atol=1e-5)


def test_targets_are_kept_and_others_refused(store, tmp_path):
    index = knn.index(store)
    targets.write_targets(index, 6, 30.0, tmp_path)
    time = targets.target_path(tmp_path, 0).stat().st_mtime_ns
    targets.write_targets(index, 6, 30.0, tmp_path)
    assert targets.target_path(tmp_path, 0).stat().st_mtime_ns == time
    with pytest.raises(DatastoreError, match="other targets"):
        targets.write_targets(index, 7, 30.0, tmp_path)
    targets.target_path(tmp_path, 0).write_bytes(b"no")
    with pytest.raises(DatastoreError, match="not whole"):
        targets.Targets(store, tmp_path).of(0, 1)
    assert json.loads((tmp_path / "targets.json").read_text())["k"] == 6
