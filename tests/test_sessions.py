"""Visitors: they see nothing of each other, keep to their limits, and leave nothing behind."""

import dataclasses
import threading

import pytest
import tiny

from memo.errors import LibraryBusy, LimitReached, MemoError, UnknownDocument
from memo.events import AnswerDone, AnswerFailed, PassagesFound
from memo.library import Library
from memo.pipeline import finish
from memo.search import Query
from memo.sessions import Sessions


@pytest.fixture
def sessions_for(tiny_models):
    """A function: the visitors of an app with these settings."""
    made = []

    def make(settings):
        made.append(Sessions(settings, tiny_models))
        return made[-1]

    yield make
    for one in made:
        one.close_all()


@pytest.fixture
def sessions(sessions_for, tiny_settings):
    return sessions_for(tiny_settings)


def put(session, *documents):
    events = list(session.memorize(documents))
    assert not [event.error for event in events if event.error]


def folders(sessions):
    return {path.name for path in sessions.settings.data.iterdir()} - {"chroma", ".lock"}


def collections(sessions):
    return {collection.name for collection in sessions.client.list_collections()}


# --- apart -----------------------------------------------------------------------------------------------------------


def test_two_visitors_see_nothing_of_each_other(sessions):
    one, two = sessions.open(), sessions.open()
    put(one, tiny.document("secret.txt", "The vault code is kept under the blue stone. " * 5))
    put(two, tiny.document("mill.txt"))
    put(two, tiny.document("other.txt", tiny.KOREAN))
    assert [e.name for e in one.rag.library.documents.values()] == ["secret.txt"]
    for strategy in ("rag", "memorag", "full_context"):
        answer = finish(two.rag.ask("Where is the vault code kept?", strategy))[strategy]
        assert {found.document for found in answer.passages} <= set(two.rag.library.documents)
    [hits] = two.rag.library.index.rank([Query("question", ("the vault code under the blue stone",))], depth=100)
    assert {hit["document"] for hit in hits} == set(two.rag.library.documents)
    model = two.rag.models.memory_model()
    assert set(two.rag.library.memory(model).compose().documents) == set(two.rag.library.documents)
    assert one.token != two.token and one.rag.library.root != two.rag.library.root


def test_the_same_document_of_two_visitors_is_two(sessions):
    one, two = sessions.open(), sessions.open()
    put(one, tiny.document())
    put(two, tiny.document())
    one.forget("mill.txt")
    assert one.rag.library.index.count() == 0
    assert two.rag.library.index.count() == len(two.rag.library.passages(tiny.document().id)) > 0
    assert finish(two.rag.ask("What froze?", "rag"))["rag"].passages


def test_a_token_opens_its_own_session_and_no_other(sessions):
    one, two = sessions.open(), sessions.open()
    assert sessions.get(one.token) is one and sessions.get(two.token) is two
    assert len(one.token) == 32 and len(set(one.token)) > 5


@pytest.mark.parametrize(
    "token", ["", "0" * 32, "../" + "0" * 29, None, 7, ["a"], "chroma", "A" * 32, "a" * 31 + "\n", "0" * 33]
)
def test_forged_tokens_are_refused(sessions, token):
    sessions.open()
    with pytest.raises(LimitReached, match="ended"):
        sessions.get(token)


def test_the_token_of_a_session_that_ended_is_refused(sessions):
    session = sessions.open()
    sessions.close(session.token)
    with pytest.raises(LimitReached, match="ended"):
        sessions.get(session.token)
    assert [e.error.message for e in session.memorize([tiny.document()])] == ["This session has ended."]
    sessions.close(session.token)  # harmless


# --- limits ----------------------------------------------------------------------------------------------------------


def test_no_more_documents_than_allowed(sessions_for, tiny_settings):
    session = sessions_for(dataclasses.replace(tiny_settings, max_documents=2)).open()
    documents = [tiny.document(f"{name}.txt", f"{name} {tiny.TEXT}") for name in "abc"]
    failed = [e for e in session.memorize(documents) if e.error]
    assert [(e.name, type(e.error)) for e in failed] == [("c.txt", LimitReached)]
    assert not [e for e in session.memorize(documents[:1]) if e.error]  # one that is there may come again
    session.forget("a.txt")
    put(session, documents[2])
    assert [e.name for e in session.rag.library.documents.values()] == ["b.txt", "c.txt"]


def test_no_more_tokens_than_allowed_and_a_smaller_document_still_goes_in(sessions_for, tiny_settings):
    session = sessions_for(dataclasses.replace(tiny_settings, max_tokens=500)).open()
    documents = [tiny.document(f"{name}.txt", name * size) for name, size in (("a", 300), ("b", 201), ("c", 200))]
    failed = [e for e in session.memorize(documents) if e.error]
    assert [(e.name, type(e.error)) for e in failed] == [("b.txt", LimitReached)]
    assert "201 tokens; 200 are left" in failed[0].error.message
    assert sum(e.tokens for e in session.rag.library.documents.values()) == 500


def test_no_more_visitors_than_allowed(sessions_for, tiny_settings):
    sessions = sessions_for(dataclasses.replace(tiny_settings, max_sessions=2))
    first, _ = sessions.open(), sessions.open()
    with pytest.raises(LimitReached, match="Too many"):
        sessions.open()
    assert len(sessions) == 2
    sessions.close(first.token)
    sessions.open()


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_deletes_the_folder_and_the_collection(sessions):
    one, two = sessions.open(), sessions.open()
    for session in (one, two):
        put(session, tiny.document())
    assert folders(sessions) == {one.token, two.token} and len(collections(sessions)) == 2
    name = one.rag.library.collection
    sessions.close(one.token)
    assert folders(sessions) == {two.token} and len(sessions) == 1
    assert collections(sessions) == {two.rag.library.collection} != {name}
    assert finish(two.rag.ask("What froze?", "rag"))["rag"].passages


def test_closing_a_session_that_was_never_used_leaves_nothing(sessions):
    session = sessions.open()
    sessions.close(session.token)
    assert folders(sessions) == set() == collections(sessions)


def test_closing_in_the_middle_of_memorizing_ends_it_and_leaves_nothing(sessions):
    session, events, began = sessions.open(), [], threading.Event()

    def work():
        for event in session.memorize([tiny.document(text=tiny.TEXT * 20), tiny.document("next.txt")]):
            events.append(event)
            if event.state == "memorizing":
                began.set()

    reading = threading.Thread(target=work)
    reading.start()
    assert began.wait(60)
    sessions.close(session.token)
    reading.join(60)
    assert not reading.is_alive() and "ready" not in {event.state for event in events}
    assert {event.name for event in events} == {"mill.txt"}
    assert folders(sessions) == set() == collections(sessions)
    assert not sessions.models.memory_model().turn._busy
    put(sessions.open(), tiny.document())  # others go on


def test_closing_in_the_middle_of_an_answer_leaves_nothing(sessions):
    """The page is left while an answer streams: what needs the documents no more goes on, what needs them fails."""
    session = sessions.open()
    put(session, tiny.document())
    events = session.rag.compare("What froze?", ("rag", "memory_only", "full_context"))
    first = next(events)
    assert isinstance(first, PassagesFound)  # rag has its passages; the others come next
    sessions.close(session.token)
    assert folders(sessions) == set() == collections(sessions)
    rest = list(events)
    assert {event.strategy for event in rest if isinstance(event, AnswerDone)} <= {"full_context"}
    failed = {event.strategy: type(event.error) for event in rest if isinstance(event, AnswerFailed)}
    assert failed["rag"] is UnknownDocument and issubclass(failed["memory_only"], MemoError)


def test_sessions_without_use_are_swept(sessions, tiny_settings):
    old, used, new = sessions.open(), sessions.open(), sessions.open()
    put(old, tiny.document())
    for session in (old, used):
        session.used -= 60 * tiny_settings.session_minutes + 1
    sessions.get(used.token)
    sessions.sweep()
    assert len(sessions) == 2 and folders(sessions) == {used.token, new.token}
    with pytest.raises(LimitReached):
        sessions.get(old.token)


def test_opening_sweeps_so_that_old_sessions_make_room(sessions_for, tiny_settings):
    sessions = sessions_for(dataclasses.replace(tiny_settings, max_sessions=1))
    old = sessions.open()
    old.used -= 60 * tiny_settings.session_minutes + 1
    assert sessions.open().token != old.token and len(sessions) == 1


def test_the_watch_sweeps_by_itself(sessions, tiny_settings):
    session = sessions.open()
    session.used -= 60 * tiny_settings.session_minutes + 1
    ended, waiting = sessions.watch(every=0.01), threading.Event()
    for _ in range(1000):
        if not folders(sessions):
            break
        waiting.wait(0.01)
    ended.set()
    assert folders(sessions) == set() and len(sessions) == 0


def test_what_an_earlier_run_of_the_app_left_is_deleted(tiny_settings, sessions_for):
    left = tiny_settings.data / ("a" * 32) / "documents"
    left.mkdir(parents=True)
    (left / "text.txt").write_text("private")
    sessions = sessions_for(tiny_settings)
    assert folders(sessions) == set() == collections(sessions)


def test_only_its_own_leftovers_are_deleted(tiny_settings, sessions_for):
    for name in ("a" * 32, "chroma", "photos", "a" * 31, "A" * 32):
        (tiny_settings.data / name).mkdir(parents=True)
        (tiny_settings.data / name / "file.txt").write_text("private")
    (tiny_settings.data / "notes.txt").write_text("somebody's")
    sessions = sessions_for(tiny_settings)
    assert folders(sessions) == {"photos", "a" * 31, "A" * 32, "notes.txt"}
    assert not (tiny_settings.data / "chroma" / "file.txt").exists()
    assert (tiny_settings.data / "photos" / "file.txt").read_text() == "private"


def test_two_apps_do_not_share_a_folder(tiny_settings, sessions_for, tiny_models):
    sessions = sessions_for(tiny_settings)
    session = sessions.open()
    put(session, tiny.document())
    with pytest.raises(LibraryBusy):
        Sessions(tiny_settings, tiny_models)
    assert folders(sessions) == {session.token} and session.rag.library.index.count()  # nothing was deleted
    sessions.close_all()
    sessions_for(tiny_settings)  # when the first has ended, the folder is free


def test_a_visitors_library_cannot_be_opened_a_second_time(sessions, tiny_models):
    session = sessions.open()
    with pytest.raises(LibraryBusy):
        Library(session.rag.library.root, tiny_models.embedder)


def test_closing_all_ends_everybody(sessions):
    for _ in range(3):
        put(sessions.open(), tiny.document())
    sessions.close_all()
    assert len(sessions) == 0 and folders(sessions) == set() == collections(sessions)
