"""Documents, clues, answers and the conversation as HTML: pure functions of a visit.

In: a `Visit`. Out: HTML in which every piece of a person's, a document's or a model's text has gone through `esc`.
"""

from __future__ import annotations

from memo.events import Answer, Clue
from memo.ui.board import Column
from memo.ui.marks import esc, place_of
from memo.ui.texts import note, say, size, tell
from memo.ui.visits import Row, Turn, Visit

SNIPPET = 110  # characters of a clue's source that are shown


def notice(kind: str, text: str) -> str:
    """A line that says how things stand. kind: "idle", "busy", "ready", "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="notice {kind}" role="{role}"><span class="dot" aria-hidden="true"></span>{esc(text)}</p>'


def span(text: str) -> str:
    """One fact in a row of facts."""
    return f"<span>{esc(text)}</span>"


# --- documents ---


def documents(visit: Visit) -> str:
    """One card per document."""
    if not visit.rows:
        return f'<p class="empty">{esc(say(visit.language, "documents.empty"))}</p>'
    return f'<ul class="documents">{"".join(document(visit, row) for row in list(visit.rows.values()))}</ul>'


def document(visit: Visit, row: Row) -> str:
    """A document: its state, how far it is, what it became."""
    language, name = visit.language, esc(row.name)
    delete = esc(say(language, "delete_one", name=row.name))
    return (
        f'<li class="document {row.state}"><div class="head"><span class="name">{name}</span>'
        f'<span class="state">{esc(state(language, row))}</span>{study(language, row)}'
        f'<button type="button" class="delete" data-delete="{row.key}" aria-label="{delete}" title="{delete}">'
        f'<span aria-hidden="true">×</span></button></div>{details(visit, row)}</li>'
    )


def study(language: str, row: Row) -> str:
    """The button that has a document studied, or stops that."""
    if row.state != "ready" and not row.study:
        return ""
    kind = "study.stop" if row.study else "study"
    label = esc(say(language, f"{kind}_one", name=row.name))
    return (
        f'<button type="button" class="study" data-study="{row.key}" aria-label="{label}" title="{label}">'
        f"{esc(say(language, kind))}</button>"
    )


def state(language: str, row: Row) -> str:
    """The state in words, with how far it is."""
    if row.state in ("memorizing", "indexing", "studying") and row.total:
        return say(language, f"state.{row.state}", percent=int(100 * row.done / row.total))
    return say(language, f"state.{row.state}", percent=0)


def details(visit: Visit, row: Row) -> str:
    """Progress, failure or what the document became."""
    language = visit.language
    if row.state == "ready" and row.entry:
        return figures(language, row) + why(visit, row)
    if row.state == "failed":
        return why(visit, row)
    share = row.done / row.total if row.total else 0.0
    label = esc(say(language, "progress_of", name=row.name))
    return f'<progress max="1" value="{share:.3f}" aria-label="{label}"></progress>'


def why(visit: Visit, row: Row) -> str:
    """What went wrong, if something did."""
    if row.error is None:
        return ""
    settings = visit.session.settings
    told = tell(
        visit.language, row.error, name=row.name, mb=settings.max_file_mb, pages=settings.max_pages,
        documents=settings.max_documents, tokens=f"{settings.max_tokens:,}",
    )  # fmt: skip
    return f'<p class="why">{esc(told)}</p>'


def figures(language: str, row: Row) -> str:
    """Tokens, slots, ratio and bytes of a document that is ready; its memory drawn beside the full cache."""
    entry = row.entry
    assert entry is not None
    share = entry.bytes / max(1, entry.full_bytes)
    lines = [
        say(language, "figures.slots", tokens=f"{entry.tokens:,}", slots=f"{entry.slots:,}", ratio=entry.ratio),
        say(language, "figures.bytes", bytes=size(entry.bytes), full=size(entry.full_bytes)),
    ]
    if row.wanted and entry.ratio > row.wanted:
        lines.append(say(language, "figures.raised", ratio=entry.ratio))
    if row.studied:
        lines.append(say(language, "figures.studied"))
    width = max(1, round(100 * share))
    bar = f'<div class="bar" aria-hidden="true"><i style="width:{width}%"></i></div>'
    return f'{bar}<p class="figures">{"".join(map(span, lines))}</p>'


# --- clues ---


def clue_origin(visit: Visit, clue: Clue, number: int) -> str:
    """Which clue it is and of what kind, how sure the model was, and where in the documents it looked."""
    language = visit.language
    kind = esc(say(language, "clue.number", number=number, kind=say(language, f"kind.{clue.kind}")))
    head = f'<span class="kind">{kind}</span>'
    if clue.kind != "name":  # which was read, not generated
        title = esc(say(language, "clue_score.help"))
        score = esc(say(language, "clue_score", score=f"{clue.score:.2f}"))
        head += f'<span class="score" title="{title}">{score}</span>'
    return f'<div class="origin"><p class="head">{head}</p>{sources(visit, clue)}</div>'


def sources(visit: Visit, clue: Clue) -> str:
    """A strip of the document with the places a clue looked at, and the words at the strongest of them."""
    if not clue.sources:
        return ""
    best = clue.sources[0]
    strongest = max(source.weight for source in clue.sources) or 1.0
    places = [visit.place(s.document, s.start)[2] for s in clue.sources if s.document == best.document]
    weights = [s.weight for s in clue.sources if s.document == best.document]
    marks = "".join(
        f'<i style="left:{100 * at:.1f}%;opacity:{0.35 + 0.65 * weight / strongest:.2f}"></i>'
        for at, weight in zip(places, weights, strict=True)
    )
    text = " ".join(visit.text_of(best.document, best.start, best.end).split())
    text = text if len(text) <= SNIPPET else text[: SNIPPET - 1].rstrip() + "…"
    where = say(
        visit.language, "from", place=place_of(visit, best.document, best.start), percent=round(100 * places[0])
    )
    quote = f'<q>{esc(text)}</q>' if text else ""
    return f'<div class="strip" aria-hidden="true">{marks}</div><p class="from">{esc(where)} {quote}</p>'


# --- answers ---


def answer(visit: Visit, column: Column) -> str:
    """One strategy's answer, with its citations and its costs."""
    language, name = visit.language, column.strategy
    head = (
        f'<header><h3>{esc(say(language, f"strategy.{name}"))}</h3>'
        f'<p class="line">{esc(say(language, f"strategy.{name}.line"))}</p></header>'
    )
    busy = str(column.running).lower()
    body = f'<div class="text" aria-busy="{busy}">{answer_text(visit, column)}</div>'
    return f'<article class="answer {column.phase}">{head}{body}{answer_foot(visit, column)}</article>'


def answer_text(visit: Visit, column: Column) -> str:
    """The text so far; once it is finished, with its citations."""
    language = visit.language
    if column.phase == "failed":
        why = tell(language, column.error) if column.error else say(language, "error.unexpected")
        return f'<p class="why">{esc(why)}</p>'
    if column.answer is not None:
        nothing = "phase.stopped" if column.answer.stopped else "answer.nothing"
        return cited(visit, column.answer) or f'<p class="empty">{esc(say(language, nothing))}</p>'
    if column.text.strip():
        return f'{esc(column.text.strip())}<span class="caret" aria-hidden="true"></span>'
    return f'<p class="empty">{esc(say(language, f"phase.{column.phase}"))}</p>'


def cited(visit: Visit, result: Answer) -> str:
    """The text of an answer with a button after every sentence that a passage supports."""
    text, parts, at = result.text, [], 0
    for number, citation in sorted(enumerate(result.citations), key=lambda pair: pair[1].end):
        end = max(at, min(citation.end, len(text)))
        stop = len(text[:end].rstrip())
        found = result.passages[citation.passage]
        label = say(
            visit.language, "citation", number=citation.passage + 1,
            place=place_of(visit, found.document, citation.source.start),
        )  # fmt: skip
        parts.append(esc(text[at:stop]))
        parts.append(
            f'<button type="button" class="cite" data-strategy="{esc(result.strategy)}" data-cite="{number}" '
            f'data-passage="{citation.passage}" aria-label="{esc(label)}" title="{esc(label)}">'
            f"{citation.passage + 1}</button>"
        )
        at = stop
    return "".join([*parts, esc(text[at:])])


def answer_foot(visit: Visit, column: Column) -> str:
    """State, times, tokens and notes of a finished answer."""
    language, result = visit.language, column.answer
    if result is None:
        return ""
    facts = []
    if result.stopped:
        facts.append(f'<span class="stopped">{esc(say(language, "answer.stopped"))}</span>')
    if (first := result.timings.get("first_token")) is not None:
        facts.append(span(say(language, "time.first", seconds=f"{first:.1f}")))
    facts.append(span(say(language, "time.total", seconds=f"{result.timings.get('total', 0):.1f}")))
    facts.append(span(say(language, "tokens", prompt=f"{result.prompt_tokens:,}", answer=f"{result.answer_tokens:,}")))
    notes = "".join(f'<p class="note">{esc(note(language, text))}</p>' for text in result.notes)
    if result.passages and result.text and not result.citations:
        notes += f'<p class="note">{esc(say(language, "answer.uncited"))}</p>'
    return f'<footer>{notes}<p class="facts">{"".join(facts)}</p></footer>'


# --- conversation ---


def conversation(visit: Visit) -> str:
    """What was asked so far, latest last."""
    if not visit.turns:
        return f'<p class="empty">{esc(say(visit.language, "conversation.empty"))}</p>'
    return f'<ol class="conversation">{"".join(turn(visit, item) for item in visit.turns)}</ol>'


def turn(visit: Visit, item: Turn) -> str:
    """A question and its answer."""
    main = item.main
    name = esc(say(visit.language, f"strategy.{main.strategy}"))
    text = esc(main.text) or esc(say(visit.language, "answer.nothing"))
    return f'<li><p class="asked">{esc(item.question)}</p><p class="told"><b>{name}</b> {text}</p></li>'
