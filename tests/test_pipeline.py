"""The pipeline: events in their order, comparisons against single asks, stops, failures, and notes to the reader."""

import dataclasses
import threading

import pytest
import tiny
import torch

from memo.answers import CLUE_WEIGHT, STRATEGIES, clue_queries
from memo.errors import BackendError, Cancelled, MemoError, NothingToAsk, SettingsError, UnknownDocument
from memo.events import (
    AnswerDone,
    AnswerFailed,
    AnswerText,
    Clue,
    CluesRecalled,
    PassagesFound,
    Rewritten,
)
from memo.library import Library
from memo.pipeline import MemoRAG, Models, Stop, finish
from memo.train.recipe import Studying

QUESTION = "In which year did a flood take the bridge?"


@pytest.fixture
def rag(tiny_rag):
    """A library of two documents."""
    documents = [tiny.document(), tiny.document("강.txt", tiny.KOREAN * 3)]
    assert not [s.error for s in tiny_rag.memorize(documents) if s.error]
    return tiny_rag


def saying(rag, say):
    """The same library, answered by a generator that says what it is told to."""
    models = Models(rag.settings)
    models.__dict__.update(rag.models.__dict__)
    models.__dict__["_generator"] = tiny.Says(say)
    return MemoRAG(rag.library, models, rag.settings)


def names(events):
    """The kinds of events, each once in a row."""
    kinds = []
    for event in events:
        kind = type(event).__name__ + ("*" if getattr(event, "final", False) else "")
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return kinds


def same(answer, other):
    kept = {f.name for f in dataclasses.fields(answer)} - {"timings", "clues"}
    assert {k: getattr(answer, k) for k in kept} == {k: getattr(other, k) for k in kept}
    assert [(c.text, c.kind) for c in answer.clues] == [(c.text, c.kind) for c in other.clues]
    for mine, theirs in zip(answer.clues, other.clues, strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=1e-3)


# --- memorizing ------------------------------------------------------------------------------------------------------


def test_a_document_is_indexed_then_memorized_then_ready(tiny_rag):
    document = tiny.document()
    events = list(tiny_rag.memorize([document]))
    states = [event.state for event in events]
    assert states == sorted(states, key=["indexing", "memorizing", "ready"].index) and len(set(states)) == 3
    assert {event.document for event in events} == {document.id}
    for state in ("indexing", "memorizing"):
        done = [(e.done, e.total) for e in events if e.state == state]
        assert done == sorted(done) and done[0][0] == 0 and done[-1][0] == done[-1][1] > 0
    last = events[-1]
    assert (last.done, last.slots, last.ratio) == (len(tiny.TEXT), tiny_rag.library.documents[document.id].slots, 4)


def test_files_are_read_first_and_one_that_cannot_be_read_does_not_harm_the_others(tiny_rag, tmp_path):
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    (tmp_path / "b.txt").write_text("  \n ")
    events = list(tiny_rag.memorize([tmp_path / "b.txt", str(tmp_path / "a.txt"), tmp_path / "none.txt"]))
    assert [(e.name, e.state) for e in events if e.state in ("reading", "ready", "failed")] == [
        ("b.txt", "reading"), ("b.txt", "failed"), ("a.txt", "reading"), ("a.txt", "ready"), ("none.txt", "reading"),
        ("none.txt", "failed"),
    ]  # fmt: skip
    assert all(isinstance(e.error, MemoError) for e in events if e.state == "failed")


def test_after_a_stop_nothing_is_read_or_embedded(tiny_rag, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    stop, done = Stop(), []
    stop.all()
    monkeypatch.setattr(tiny_rag, "read", done.append)
    monkeypatch.setattr(tiny_rag.models.embedder(), "encode", done.append)
    monkeypatch.setattr(tiny_rag.models.memory_model(), "encode", lambda text: done.append(text))
    events = list(tiny_rag.memorize([tmp_path / "a.txt", tiny.document("b.txt")], stop=stop))
    assert [(e.name, e.state, type(e.error)) for e in events] == [
        ("a.txt", "failed", Cancelled), ("b.txt", "failed", Cancelled),
    ]  # fmt: skip
    assert not done and not tiny_rag.library.documents and not list(tiny_rag.library.folder.iterdir())


PLAN = Studying(steps=3, part=64, span=24, given=4, stretches=2, questions=1, answers=1, asked=8, answered=8)


def test_studying_replaces_the_memory_of_one_document(rag):
    mill, other = rag.library.documents
    library = rag.library.memory(rag.models.memory_model())
    before = {document: library[document].keys.clone() for document in (mill, other)}
    slots = library.compose().slots.keys[0].clone()
    events = list(rag.study("mill.txt", PLAN))
    assert [(e.state, e.document, e.done, e.total) for e in events] == [
        *(("studying", mill, step, 3) for step in (1, 2, 3)), ("ready", mill, 3, 3),
    ]  # fmt: skip
    stored = rag.library.load(mill, rag.models.memory_model())
    assert not torch.equal(stored.keys, before[mill]) and torch.equal(stored.keys, library[mill].keys)
    assert torch.equal(rag.library.load(other, rag.models.memory_model()).keys, before[other])
    assert not torch.equal(library.compose().slots.keys[0], slots)  # questions see it at once
    assert isinstance(list(rag.ask(QUESTION))[-1], AnswerDone)


def test_studying_that_is_stopped_leaves_the_memory_as_it_was(rag):
    mill, stop = next(iter(rag.library.documents)), Stop()
    before = rag.library.load(mill, rag.models.memory_model()).keys
    steps = rag.study(mill, PLAN, stop)
    assert next(steps).state == "studying"
    stop.all()
    [last] = steps
    assert last.state == "ready" and isinstance(last.error, Cancelled)
    assert torch.equal(rag.library.load(mill, rag.models.memory_model()).keys, before)
    with pytest.raises(UnknownDocument):
        next(rag.study("nothing.txt", PLAN))


# --- asking ----------------------------------------------------------------------------------------------------------


def test_memorag_recalls_then_searches_then_answers(rag):
    events = list(rag.ask(QUESTION))
    assert names(events) == ["CluesRecalled", "CluesRecalled*", "PassagesFound", "AnswerText", "AnswerDone"]
    clues = next(e.clues for e in events if isinstance(e, CluesRecalled) and e.final)
    passages = next(e.passages for e in events if isinstance(e, PassagesFound))
    answer = events[-1].answer
    assert answer.clues == clues and answer.passages == passages and clues and passages
    texts = [e.text for e in events if isinstance(e, AnswerText)]
    assert texts[-1].strip() == answer.text
    moments = [answer.timings[m] for m in ("first_clue", "clues", "passages", "first_token", "total")]
    assert moments == sorted(moments) and moments[0] > 0
    assert (answer.question, answer.strategy, answer.stopped) == (QUESTION, "memorag", False)


EXPECTED = {
    "rag": ["PassagesFound", "AnswerText", "AnswerDone"],
    "hyde": ["PassagesFound", "AnswerText", "AnswerDone"],
    "rq_rag": ["PassagesFound", "AnswerText", "AnswerDone"],
    "full_context": ["AnswerText", "AnswerDone"],
    "memory_only": ["AnswerText", "AnswerDone"],
    "closed_book": ["AnswerText", "AnswerDone"],
}


@pytest.mark.parametrize("strategy", EXPECTED)
def test_every_strategy_tells_what_it_does_in_order(rag, strategy):
    events = list(rag.ask(QUESTION, strategy))
    assert names(events) == EXPECTED[strategy] and events[-1].answer.answer_tokens > 0
    assert not events[-1].answer.clues


def test_answers_compared_equal_those_asked_for_alone(rag):
    alone = {strategy: finish(rag.ask(QUESTION, strategy))[strategy] for strategy in STRATEGIES}
    together = finish(rag.compare(QUESTION, list(STRATEGIES)))
    assert set(together) == set(STRATEGIES)
    for strategy, answer in together.items():
        if strategy == "memorag":  # the first asking of a memory also learns what every question looks at
            assert 0 < answer.prompt_tokens <= alone[strategy].prompt_tokens
            answer = dataclasses.replace(answer, prompt_tokens=alone[strategy].prompt_tokens)
        same(answer, alone[strategy])


def test_comparing_streams_the_answers_side_by_side(rag):
    events = list(rag.compare(QUESTION, ("rag", "closed_book", "rag")))
    order = [event.strategy for event in events if isinstance(event, AnswerText)]
    first, last = order.index("rag"), len(order) - order[::-1].index("rag")
    assert "closed_book" in order[first:last]
    assert sorted(event.strategy for event in events if isinstance(event, AnswerDone)) == ["closed_book", "rag"]


def test_two_people_who_ask_at_once_get_what_each_would_alone(rag):
    questions = [QUESTION, "겨울에 무엇이 얼었나?"]
    expected = [finish(rag.ask(question, "memory_only"))["memory_only"].text for question in questions]
    found = {}

    def work(i):
        found[i] = finish(rag.ask(questions[i], "memory_only"))["memory_only"].text

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in (0, 1)] == expected


def test_the_answer_rests_on_the_passages_it_was_given(rag):
    rag = saying(rag, lambda prompt: "A flood took the bridge in 1903. Cats like milk.")
    [answer] = finish(rag.ask(QUESTION, "rag")).values()
    [prompt] = rag.models.generator().prompts
    for found in answer.passages:
        assert found.text == rag.library.text_of(found.document, found.start, found.end)
        assert found.text.strip() in prompt.messages[-1][1]
    [citation] = answer.citations
    assert answer.text[citation.start : citation.end] == "A flood took the bridge in 1903."
    source = citation.source
    assert "flood took the bridge" in rag.library.text(source.document)[source.start : source.end]
    assert answer.prompt_tokens == len(prompt.messages[-1][1].split())


def test_the_names_of_models_are_no_paths(rag, tiny_folder):
    [answer] = finish(rag.ask(QUESTION, "closed_book")).values()
    assert answer.models == {
        "memory": "tiny-llama", "memory_weights": "untrained", "generator": "tiny-llama",
        "embedder": "all-MiniLM-L6-v2",
    }  # fmt: skip


def test_hyde_searches_what_it_made_up(rag):
    rag = saying(rag, lambda p: "Piet rebuilt them stone by stone" if "short passage" in p.messages[1][1] else "Piet.")
    [answer] = finish(rag.ask("Who?", "hyde")).values()
    assert answer.passages[0].found_by == ("made-up answer",) and answer.text == "Piet."
    assert any("Piet rebuilt" in found.text for found in answer.passages)
    assert answer.prompt_tokens == sum(len(p.messages[-1][1].split()) for p in rag.models.generator().prompts)


def test_rq_rag_searches_the_question_and_the_simpler_ones(rag):
    simpler = "1. Who rebuilt them?\n2. 강은 언제 얼었나?\n2. 강은 언제 얼었나?"
    rag = saying(rag, lambda prompt: simpler if "Split" in prompt.messages[1][1] else "Piet.")
    [answer] = finish(rag.ask(QUESTION, "rq_rag")).values()
    labels = {label for found in answer.passages for label in found.found_by}
    assert labels == {"question", "Who rebuilt them?", "강은 언제 얼었나?"}


def scores(ask):
    """Place -> score of every passage that was found."""
    return {(passage.hit["document"], passage.hit["start"]): passage.score for passage in ask.ranked}


def test_memorag_finds_by_where_in_memory_the_question_looked_too(rag, monkeypatch):
    asks, new_ask = [], rag._new_ask
    monkeypatch.setattr(rag, "_new_ask", lambda *given: asks.append(new_ask(*given)) or asks[-1])
    rag.settings = dataclasses.replace(rag.settings, context_tokens=1000)
    for clues in ([], None):  # chosen by the person: none; and recalled
        [answer] = finish(rag.ask(QUESTION, clues=clues)).values()
        assert "memory" in {label for found in answer.passages for label in found.found_by}
    ask = asks[0]
    assert ask.looked is not None and ask.memory.usual_look is not None
    with_pointers = scores(ask)
    ask.search(clue_queries(QUESTION, []))
    assert with_pointers.keys() == scores(ask).keys() and with_pointers != scores(ask)


def test_the_passage_that_the_question_looked_at_gains_most(rag):
    [mill, other] = rag.library.documents
    ask = rag._new_ask(QUESTION, "memorag", ())
    memory = ask.compose()
    memory.usual_look = torch.full((3, len(memory.slots)), 0.01)
    for document in (mill, other):
        passage = rag.library.passages(document)[1]
        [index] = [i for i, name in enumerate(memory.documents) if name == document]
        inside = (memory.owners == index) & (memory.spans[:, 0] >= passage.start) & (memory.spans[:, 1] <= passage.end)
        assert inside.any()
        ask.looked = memory.usual_look + 0.2 * inside
        ask.search(clue_queries(QUESTION, []), pointers=True)
        found = {place: passage.found_by for place, passage in zip(scores(ask), ask.ranked, strict=True)}
        assert "memory" in found[document, passage.start]
        pointed = scores(ask)
        ask.search(clue_queries(QUESTION, []))
        gained = {place: pointed[place] - score for place, score in scores(ask).items()}
        assert gained[document, passage.start] == max(gained.values()) > 0
        assert sorted(gained.values())[-2] < max(gained.values())


def test_clues_share_one_weight_and_a_likelier_one_has_more_of_it():
    clues = [Clue("a dull one", "span", -3.0), Clue("a sure one", "draft", -0.2), Clue("one more", "key", -1.0)]
    question, *queries = clue_queries(QUESTION, clues)
    assert (question.texts, question.weight) == ((QUESTION,), 1.0)
    assert [query.texts for query in queries] == [(clue.text,) for clue in clues]
    dull, sure, more = (query.weight for query in queries)
    assert 0 < dull < more < sure
    assert dull + sure + more == pytest.approx(CLUE_WEIGHT)
    [_, alone] = clue_queries(QUESTION, clues[:1])
    assert alone.weight == pytest.approx(CLUE_WEIGHT)
    assert len(clue_queries(QUESTION, [])) == 1


# --- clues chosen by the person --------------------------------------------------------------------------------------


def test_edited_clues_are_used_as_they_are(rag):
    clues = [Clue("Her son Piet rebuilt them", "own"), Clue("강이 얼고 방앗간은 잠들었다", "span", -0.5)]
    rag.settings = dataclasses.replace(rag.settings, context_tokens=500)
    events = list(rag.ask(QUESTION, clues=clues))
    assert names(events) == ["CluesRecalled*", "PassagesFound", "AnswerText", "AnswerDone"]
    answer = events[-1].answer
    assert answer.clues == events[0].clues == tuple(clues)
    labels = {label for found in answer.passages for label in found.found_by}
    assert labels >= {"question", clues[0].text, clues[1].text}


def test_without_clues_memorag_finds_by_the_question_and_where_it_looked(rag):
    answers = finish(rag.ask(QUESTION, clues=[])) | finish(rag.ask(QUESTION, "rag"))
    assert {label for found in answers["memorag"].passages for label in found.found_by} <= {"question", "memory"}
    [event] = [e for e in rag.ask(QUESTION, clues=[]) if isinstance(e, PassagesFound)]
    assert event.passages == answers["memorag"].passages and not answers["memorag"].clues


# --- conversations ---------------------------------------------------------------------------------------------------


def test_a_follow_up_question_is_rewritten_before_anything_else(rag):
    def say(prompt):
        return "When did Anna buy the mill?\nOr so." if "Rewrite" in prompt.messages[1][1] else "In 1887."

    rag = saying(rag, say)
    events = list(rag.ask("And when?", "rag", history=[("Who bought the mill?", "Anna.")]))
    assert names(events) == ["Rewritten", "PassagesFound", "AnswerText", "AnswerDone"]
    assert events[0].question == events[-1].answer.question == "When did Anna buy the mill?"
    told = rag.models.generator().prompts[0].messages[-1][1]
    assert "Who bought the mill?" in told and "Anna." in told and told.endswith("And when?")


def test_a_follow_up_that_the_model_cannot_rewrite_is_asked_with_the_question_before(rag):
    rag = saying(rag, lambda prompt: "Hm" if "Rewrite" in prompt.messages[1][1] else "In 1887.")
    events = list(rag.ask("And when?", "rag", history=[("Why?", "So."), ("Who bought the mill?", "Anna.")]))
    assert events[0] == Rewritten("(After: Who bought the mill.) And when?")


def test_without_history_the_question_stays_as_it_is(rag):
    events = list(rag.ask("  In which  year?\n", "closed_book"))
    assert not [e for e in events if isinstance(e, Rewritten)] and events[-1].answer.question == "In which year?"


# --- stopping --------------------------------------------------------------------------------------------------------


def test_stopping_one_answer_leaves_the_others(rag):
    whole = finish(rag.compare(QUESTION, ("rag", "closed_book")))
    stop, answers = Stop(), {}
    for event in rag.compare(QUESTION, ("rag", "closed_book"), stop=stop):
        if isinstance(event, AnswerText) and event.strategy == "rag":
            stop.one("rag")
        if isinstance(event, AnswerDone):
            answers[event.strategy] = event.answer
    assert answers["rag"].stopped and not answers["closed_book"].stopped
    assert answers["rag"].answer_tokens < whole["rag"].answer_tokens
    assert whole["rag"].text.startswith(answers["rag"].text) and answers["rag"].text
    same(answers["closed_book"], whole["closed_book"])


@pytest.mark.parametrize("moment", [CluesRecalled, PassagesFound, AnswerText])
def test_stopping_all_ends_every_answer_soon(rag, moment):
    stop, answers, after = Stop(), {}, 0
    for event in rag.compare(QUESTION, ("memorag", "rag", "memory_only"), stop=stop):
        after += stop.wanted()
        if isinstance(event, moment):
            stop.all()
        if isinstance(event, AnswerDone):
            answers[event.strategy] = event.answer
    assert set(answers) == {"memorag", "rag", "memory_only"} and all(a.stopped for a in answers.values())
    assert after <= 8 and all(a.answer_tokens < 12 for a in answers.values())


def test_stopping_while_recalling_leaves_no_half_measured_usual(rag):
    model, stop = rag.models.memory_model(), Stop()
    for event in rag.ask(QUESTION, stop=stop):
        if isinstance(event, CluesRecalled) and not event.final:
            stop.all()
    assert stop.wanted() and rag.library.memory(model).compose().usual is None
    finish(rag.ask(QUESTION))
    assert rag.library.memory(model).compose().usual is not None


def test_leaving_in_the_middle_leaves_everything_usable(rag):
    expected = finish(rag.ask(QUESTION))["memorag"]
    events = rag.ask(QUESTION)
    while not isinstance(next(events), AnswerText):
        pass
    events.close()
    assert not rag.models.memory_model().turn._busy
    assert finish(rag.ask(QUESTION))["memorag"].text == expected.text


# --- failing ---------------------------------------------------------------------------------------------------------


def test_a_strategy_that_fails_does_not_harm_the_others(rag):
    failure = BackendError("The endpoint is tired.")
    rag = saying(rag, lambda prompt: failure if "short passage" in prompt.messages[1][1] else "In 1903.")
    events = list(rag.compare(QUESTION, ("hyde", "rag", "closed_book")))
    assert [(e.strategy, e.error) for e in events if isinstance(e, AnswerFailed)] == [("hyde", failure)]
    assert {e.strategy: e.answer.text for e in events if isinstance(e, AnswerDone)} == {
        "rag": "In 1903.", "closed_book": "In 1903.",
    }  # fmt: skip
    with pytest.raises(BackendError, match="tired"):
        finish(rag.compare(QUESTION, ("rag", "hyde")))


def test_an_answer_that_fails_is_told_once(rag):
    rag = saying(rag, lambda prompt: BackendError("No."))
    events = list(rag.compare(QUESTION, ("rag", "memorag")))
    assert sorted(e.strategy for e in events if isinstance(e, AnswerFailed)) == ["memorag", "rag"]
    assert not [e for e in events if isinstance(e, AnswerDone)]


def test_a_memory_that_cannot_be_used_fails_only_the_strategies_that_need_it(tmp_path, rag, tiny_models):
    rag.library.close()
    [path, _] = sorted((tmp_path / "library").rglob("memory.safetensors"))
    path.write_bytes(b"no memory")
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        events = list(MemoRAG(library, tiny_models, rag.settings).compare(QUESTION, ("memorag", "rag", "memory_only")))
    failed = {e.strategy for e in events if isinstance(e, AnswerFailed)}
    done = {e.strategy for e in events if isinstance(e, AnswerDone)}
    assert (failed, done) == ({"memorag", "memory_only"}, {"rag"})


@pytest.mark.parametrize("question", ["", "  \n", "?!…", "x" * 2001])
def test_what_is_no_question_is_refused(rag, question):
    with pytest.raises(NothingToAsk):
        list(rag.ask(question))


def test_without_documents_only_the_closed_book_answers(tiny_rag):
    with pytest.raises(NothingToAsk, match="no document"):
        list(tiny_rag.compare(QUESTION, ("closed_book", "rag")))
    assert finish(tiny_rag.ask(QUESTION, "closed_book"))["closed_book"].answer_tokens


def test_an_unknown_strategy_is_refused_with_the_known_ones(rag):
    with pytest.raises(SettingsError, match="'magic'") as failure:
        list(rag.compare(QUESTION, ("rag", "magic")))
    assert all(strategy in failure.value.hint for strategy in STRATEGIES)


# --- notes -----------------------------------------------------------------------------------------------------------


def test_a_text_that_was_cut_to_fit_is_noted(tiny_rag):
    text = tiny.TEXT * 10
    list(tiny_rag.memorize([tiny.document(text=text)]))
    [answer] = finish(tiny_rag.ask(QUESTION, "full_context")).values()
    [note] = answer.notes
    assert note.startswith("Only the first ") and f"of {len(text):,} tokens" in note
    shown = int(note.split()[3].replace(",", ""))
    positions = tiny_rag.models.generator().max_positions
    assert 0.8 * positions < shown < answer.prompt_tokens < positions - tiny_rag.settings.answer_tokens
    assert answer.answer_tokens == tiny_rag.settings.answer_tokens


def test_a_text_that_fits_is_shown_whole_and_nothing_is_noted(rag):
    answer = finish(rag.ask(QUESTION, "full_context"))["full_context"]
    assert answer.notes == () and answer.prompt_tokens > len((tiny.TEXT + tiny.KOREAN * 3).encode())


def test_answers_longer_than_the_models_positions_leave_no_room_for_the_text(rag):
    rag.settings = dataclasses.replace(rag.settings, answer_tokens=5000)
    stop = Stop()
    stop.all()
    *_, last = rag.ask(QUESTION, "full_context", stop=stop)
    assert "Only the first 0" in last.answer.notes[0]


def test_documents_that_do_not_fit_the_memory_are_noted(tiny_rag):
    texts = {"flood.txt": tiny.TEXT * 3, "winter.txt": "Snow fell on hills. " * 48, "small.txt": "Nothing happened."}
    list(tiny_rag.memorize([tiny.document(name, text) for name, text in texts.items()], ratio=1))
    for question, left in (("Did a flood take the bridge?", "winter.txt"), ("Snow fell on hills?", "flood.txt")):
        [answer] = finish(tiny_rag.ask(question, "memory_only")).values()
        [note] = answer.notes
        assert note.endswith(f"left out as least relevant: {left}.")


# --- with the embedded models ----------------------------------------------------------------------------------------


@pytest.mark.models
def test_the_embedded_models_find_and_answer(tmp_path, models):
    with Library(tmp_path / "library", models.embedder) as library:
        rag = MemoRAG(library, models, models.settings)
        other = "Bread rises because yeast makes gas. The dough must rest for two hours in a warm place. " * 8
        assert not [s.error for s in rag.memorize([tiny.document(), tiny.document("b.txt", other)]) if s.error]
        answers = finish(rag.compare("Who bought the mill in 1887?", ("memorag", "rag")))
        for answer in answers.values():
            assert any("Okafor" in found.text for found in answer.passages)
            assert "Anna" in answer.text or "Okafor" in answer.text
            for citation in answer.citations:
                source = citation.source
                assert library.text(source.document)[source.start : source.end].strip()
        assert answers["memorag"].clues
