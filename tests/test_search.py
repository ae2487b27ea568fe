"""Search: fused rankings by hand, budgets, labels; Chroma collections apart, in this process and on a server."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny

from memo.errors import BackendError
from memo.library import Library
from memo.passages import Passage
from memo.pipeline import MemoRAG, finish
from memo.search import DEPTH, PassageIndex, Query, connect, fuse, mixed, point, within


def passage(document, start, text):
    return Passage(document, start, start + len(text), None, text)


def hit(document, start, size=10, page=0, similarity=None):
    """By default the later in the document, the less similar."""
    similarity = 0.9 - start / 1000 if similarity is None else similarity
    return {"document": document, "start": start, "end": start + size, "page": page, "similarity": similarity}


def fused(rankings, budget=1000, order=(), size=10):
    return within(fuse(rankings), lambda d, a, b: f"{d}{a}".ljust(b - a), lambda text: size, budget, order)


def texts_of(index, library, query, **more):
    [hits] = index.rank([Query("question", (query,))], **more)
    return [library[(h["document"], h["start"])] for h in hits]


# --- fusion ----------------------------------------------------------------------------------------------------------


def test_scores_are_weighted_means_of_similarities():
    first = [hit("d", 0, similarity=0.8), hit("d", 10, similarity=0.6)]
    second = [hit("d", 20, similarity=0.9), hit("d", 10, similarity=0.7), hit("d", 0, similarity=0.1)]
    ranked = fuse([("question", 1.0, first), ("clue", 0.5, second), ("none", 2.0, [])])
    # 20 is not among the question's: at most as similar as its last
    expected = [(20, (0.6 + 0.5 * 0.9) / 1.5), (10, (0.6 + 0.5 * 0.7) / 1.5), (0, (0.8 + 0.5 * 0.1) / 1.5)]
    assert [(r.hit["start"], r.score) for r in ranked] == [(k, pytest.approx(v, abs=1e-4)) for k, v in expected]


def test_a_small_weight_decides_between_near_equals_only():
    question = [hit("d", 0, similarity=0.9), hit("d", 10, similarity=0.5), hit("d", 20, similarity=0.49)]
    clue = [hit("d", 20, similarity=1.0), hit("d", 10, similarity=0.0), hit("d", 0, similarity=0.0)]
    assert [r.hit["start"] for r in fuse([("question", 1.0, question), ("clue", 0.1, clue)])] == [0, 20, 10]


def test_passages_come_in_document_order():
    hits = [hit("b", 50), hit("a", 30), hit("b", 0), hit("c", 5), hit("a", 10)]
    found = fused([("question", 1.0, hits)], order=["b", "a"])
    assert [(f.document, f.start) for f in found] == [("b", 0), ("b", 50), ("a", 10), ("a", 30), ("c", 5)]


@pytest.mark.parametrize(("budget", "count"), [(1000, 6), (60, 6), (59, 5), (35, 3), (20, 2), (1, 1)])
def test_the_best_that_fit_the_budget_are_taken_and_at_least_one(budget, count):
    hits = [hit("d", 10 * i) for i in range(6)]
    found = fused([("question", 1.0, hits)], budget)
    assert [f.start for f in found] == [10 * i for i in range(count)]


def test_a_passage_too_long_is_passed_over_for_shorter_ones():
    sizes = {"d0": 5, "d10": 90, "d20": 5}
    hits = [hit("d", 0), hit("d", 10), hit("d", 20)]
    found = within(fuse([("q", 1.0, hits)]), lambda d, a, b: f"{d}{a}", lambda text: sizes[text], 20)
    assert [f.start for f in found] == [0, 20]


def test_found_by_names_the_queries_that_brought_a_passage():
    front = [hit("d", 10 * i) for i in range(8)]
    nowhere = [hit("d", 70, similarity=0.0)]
    clue = [*front[1::-1], *(hit("d", 100 + i, similarity=0.1) for i in range(8)), *nowhere]
    found = fused([("question", 1.0, front), ("a clue", 0.5, clue), ("memory", 0.5, [front[6]])])
    assert found[0].found_by == ("question", "a clue") == found[1].found_by
    assert found[2].found_by == ("question",) and found[6].found_by == ("memory",)
    assert found[7].found_by == ("question",)  # far behind, but no other found it


def test_pages_and_texts_come_along():
    found = fused([("question", 1.0, [hit("d", 0, page=3), hit("d", 10)])])
    assert [f.page for f in found] == [3, None] and found[0].text == "d0".ljust(10) and found[0].end == 10


def test_nothing_found_is_nothing():
    assert fused([]) == () == fused([("question", 1.0, [])])


def test_pointers_rank_passages_by_strength():
    passages = [passage("a", 0, "x" * 100), passage("a", 100, "x" * 100), passage("b", 0, "x" * 100)]
    ranked = point([0.3, 1.0, 0.0], passages)
    assert [(h["document"], h["start"], h["similarity"]) for h in ranked] == [("a", 100, 1), ("a", 0, 0.3), ("b", 0, 0)]
    assert ranked[0] == {"document": "a", "start": 100, "end": 200, "page": 0, "similarity": 1.0}
    assert point([0.0, 0.0, 0.0], passages) == [] == point([], [])


# --- Chroma ----------------------------------------------------------------------------------------------------------

SENTENCES = [s.strip() + "." for s in tiny.TEXT.split(". ") if s.strip()]
PASSAGES = [passage("mill", 100 * i, text) for i, text in enumerate(SENTENCES)]
LIBRARY = {("mill", 100 * i): text for i, text in enumerate(SENTENCES)} | {("other", 0): "Wool fell in price."}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Chroma server of this test: its address."""
    folder = tmp_path_factory.mktemp("chroma-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"ANONYMIZED_TELEMETRY": "False"}, cwd=folder,
    )  # fmt: skip
    try:
        waiting = threading.Event()
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the Chroma server ended"
            waiting.wait(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=["in process", "server"])
def client(request, tmp_path):
    if request.param == "server":
        return connect(tmp_path, request.getfixturevalue("server"))
    return connect(tmp_path / "chroma")


@pytest.fixture
def index(client, request):
    made = PassageIndex(client, f"test-{abs(hash(request.node.name)):x}", tiny.Embedder())
    yield made
    made.drop()


def test_the_passage_that_shares_the_words_comes_first(index):
    index.add(PASSAGES)
    assert texts_of(index, LIBRARY, "flood took the bridge")[0].startswith("In 1903 a flood")
    assert texts_of(index, LIBRARY, "nine blades of oak")[0].startswith("Its wheel had nine blades")
    assert len(texts_of(index, LIBRARY, "flood", depth=2)) == 2


def test_several_texts_of_a_query_are_looked_up_in_their_mean(index):
    index.add(PASSAGES)
    both = Query("both", ("flood took the bridge", "nine blades of oak"))
    one = Query("one", ("flood took the bridge",))
    mixed, alone = index.rank([both, one])
    assert {h["start"] for h in mixed[:2]} == {h["start"] for h in [alone[0], *index.rank([
        Query("other", ("nine blades of oak",))])[0][:1]]}  # fmt: skip


def test_adding_again_replaces(index):
    index.add(PASSAGES)
    index.add(PASSAGES[:3])
    assert index.count() == len(PASSAGES) and index.documents() == {"mill"}


def test_a_document_is_removed_and_the_others_stay(index):
    index.add(PASSAGES)
    index.add([passage("other", 0, "Wool fell in price.")])
    index.remove("mill")
    assert index.documents() == {"other"} and index.count() == 1
    assert texts_of(index, LIBRARY, "flood took the bridge") == ["Wool fell in price."]
    index.remove("mill")  # harmless


def test_a_search_may_be_kept_to_some_documents(index):
    index.add(PASSAGES)
    index.add([passage("other", 0, "Wool fell in price.")])
    assert texts_of(index, LIBRARY, "flood took the bridge", among=["other"]) == ["Wool fell in price."]
    assert texts_of(index, LIBRARY, "flood took the bridge", among=[]) == []


def test_two_collections_know_nothing_of_each_other(client):
    one, two = (PassageIndex(client, f"apart-{i}", tiny.Embedder()) for i in range(2))
    one.add(PASSAGES)
    two.add([passage("mill", 0, "Wool fell in price.")])
    assert (one.count(), two.count()) == (len(PASSAGES), 1)
    [[only]] = two.rank([Query("question", ("flood took the bridge",))])
    assert (only["document"], only["start"], only["end"]) == ("mill", 0, 19)
    two.remove("mill")
    two.drop()
    assert one.count() == len(PASSAGES)
    one.drop()


def test_a_collection_that_is_dropped_leaves_no_vectors(tmp_path):
    client = connect(tmp_path)
    one, two = (PassageIndex(client, name, tiny.Embedder()) for name in ("test-one", "test-two"))
    for index in (one, two):
        index.add(PASSAGES)
    one.drop()
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    [hits] = two.rank([Query("question", ("Who bought the mill?",))], 3)
    assert len(hits) == 3
    two.drop()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_collection_is_dropped_even_if_its_folders_are_not_known(tmp_path, monkeypatch):
    client = connect(tmp_path)
    index = PassageIndex(client, "test-one", tiny.Embedder())
    index.add(PASSAGES)

    def locked(_):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(sqlite3, "connect", locked)
    index.drop()
    assert client.list_collections() == []


def test_an_empty_collection_finds_nothing(index):
    assert index.rank([Query("question", ("anything",)), Query("clue", ("else",))]) == [[], []]
    assert index.rank([]) == [] and index.documents() == set()


def test_more_passages_than_a_ranking_holds(index):
    index.add([passage("many", 10 * i, f"passage number {i}") for i in range(DEPTH + 15)])
    [hits] = index.rank([Query("question", ("passage number 7",))])
    assert len(hits) == DEPTH and hits[0]["start"] == 70


def test_a_collection_that_is_gone_is_an_error_of_ours(client):
    index = PassageIndex(client, "soon-gone", tiny.Embedder())
    index.add(PASSAGES)
    client.delete_collection("soon-gone")
    rank, add = (lambda: index.rank([Query("q", ("flood",))])), (lambda: index.add(PASSAGES))
    for use in (rank, add, lambda: index.remove("mill"), index.documents, index.drop):
        with pytest.raises(BackendError, match="Chroma"):
            use()


def test_a_library_works_on_a_server(tmp_path, server, tiny_models, tiny_settings):
    """Memorize, ask, forget and destroy, with the passages on the server; two libraries share it and stay apart."""
    with (
        Library(tmp_path / "one", tiny_models.embedder, server=server) as one,
        Library(tmp_path / "two", tiny_models.embedder, server=server) as two,
    ):
        for library, text in ((one, tiny.TEXT), (two, "Wool fell in price. " * 6)):
            rag = MemoRAG(library, tiny_models, tiny_settings)
            assert not [s.error for s in rag.memorize([tiny.document(text=text)]) if s.error]
        assert not (tmp_path / "one" / "chroma").exists()
        answer = finish(MemoRAG(one, tiny_models, tiny_settings).ask("Did a flood take the bridge?", "rag"))["rag"]
        assert "flood" in " ".join(found.text for found in answer.passages)
        assert all("Wool" not in found.text for found in answer.passages)
        names = {one.collection, two.collection}
        one.destroy()
        assert names & {c.name for c in two.index.client.list_collections()} == {two.collection}
        assert two.index.count() == len(two.passages(next(iter(two.documents))))
        two.destroy()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_server_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BackendError, match="Chroma server") as failure:
        connect(tmp_path, free_address())
    assert "MEMO_CHROMA" in failure.value.hint


def test_a_library_without_its_server_fails_a_question_with_an_error_of_ours(tmp_path, tiny_models, tiny_settings):
    with Library(tmp_path / "library", tiny_models.embedder, server=free_address()) as library:
        [last] = [s for s in MemoRAG(library, tiny_models, tiny_settings).memorize([tiny.document()]) if s.error]
        assert isinstance(last.error, BackendError) and not library.documents
        assert not list(library.folder.iterdir())


def test_meaning_and_words_are_added():
    def hit(start, similarity):
        return {"document": "d", "start": start, "end": start + 5, "page": 0, "similarity": similarity}

    found = mixed([hit(0, 0.6), hit(10, 0.5), hit(20, 0.1)], [hit(10, 1.0), hit(30, 0.5)], 3)
    # 30 is found by its words alone: as near in meaning as the last at most
    assert [(one["start"], pytest.approx(one["similarity"])) for one in found] == [(10, 0.7), (0, 0.6), (30, 0.2)]
    assert [one["start"] for one in mixed([], [hit(10, 1.0)], 3)] == [10] and mixed([], [], 3) == []
