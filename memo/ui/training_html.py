"""The tab Training as HTML: how far it is, what came of it, before and after, the shipped run. Functions of a visit.

In: a `Visit`. Out: HTML in which every piece of a person's, a document's or a model's text has gone through `esc`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from memo.models import trained_weights
from memo.settings import Settings
from memo.ui.cards import notice, span
from memo.ui.marks import esc
from memo.ui.texts import say, size, tell

if TYPE_CHECKING:
    from memo.evaluate.beside import Told
    from memo.ui.visits import Visit

LOG = "training.json"  # beside shipped weights: their runs
MEASURES = ("evidence_tokens", "answer_tokens", "f1")


def status(visit: Visit) -> str:
    """What is under way and how far it is, or why nothing was begun, or what to do."""
    training, language = visit.training, visit.language
    if training.refused:
        return notice("error", say(language, training.refused))
    if training.running:
        return progress(visit)
    if training.error is not None:
        return notice("error", tell(language, training.error))
    if training.kept is not None:
        return notice("ready", say(language, "weights.in_place"))
    if training.weights is not None:
        return notice("ready", say(language, "weights.made"))
    return notice("idle", say(language, "weights.ready" if visit.ready else "weights.no_document"))


def progress(visit: Visit) -> str:
    """A bar and its numbers."""
    training, language = visit.training, visit.language
    done, of, place = training.done, training.of, training.place
    key = "turn" if training.stage == "waiting" and place else training.stage or "waiting"
    share = done / of if of else 0.0
    told = say(language, f"weights.stage.{key}", done=done, of=of, place=place, percent=int(100 * share))
    facts = []
    if training.stage == "training" and training.lines:
        line = training.lines[-1]
        facts.append(say(language, "weights.loss", loss=f"{line['loss']:.3f}"))
        facts.append(say(language, "weights.speed", tokens=f"{line['tokens'] / max(line['seconds'], 1e-6):,.0f}"))
    if (left := training.seconds_left) is not None:
        facts.append(say(language, "weights.left", minutes=int(left // 60), seconds=int(left % 60)))
    label = esc(say(language, "tab.training"))
    bar = f'<progress max="1" value="{share:.3f}" aria-label="{label}"></progress>' if of else ""
    return notice("busy", told) + bar + f'<p class="figures">{"".join(map(span, facts))}</p>'


def brought(visit: Visit) -> str:
    """Which lessons SFT is on."""
    training, language = visit.training, visit.language
    if training.lessons:
        key, count = "weights.lessons.file", len(training.lessons)
    elif training.pairs:
        key, count = "weights.lessons.pairs", len(training.pairs)
    else:
        key, count = "weights.lessons.written", 0
    return f'<p class="hint">{esc(say(language, key, count=count))}</p>'


def outcome(visit: Visit) -> str:
    """What came of the training: loss before and after, speed, what was thrown away."""
    training, language = visit.training, visit.language
    facts = []
    if training.thrown or training.taught:
        thrown = ", ".join(f"{count} {say(language, f'weights.thrown.{reason}')}" for reason, count in
                           training.thrown.most_common())  # fmt: skip
        facts.append(say(language, "weights.taught", count=training.taught))
        facts += [say(language, "weights.thrown", reasons=thrown)] if thrown else []
    if training.lines:
        line = training.lines[-1]
        facts.append(say(
            language, "weights.read", tokens=f"{line['tokens']:,}", steps=line["step"],
            speed=f"{line['tokens'] / max(line['seconds'], 1e-6):,.0f}",
        ))  # fmt: skip
    if len(training.held) == 1:
        facts.append(say(language, "weights.held.before", before=f"{training.held[0][1]:.3f}", count=training.held_out))
    elif training.held:
        before, after = (loss for _, loss in training.held[:2])
        facts.append(say(
            language, "weights.held.both", before=f"{before:.3f}", after=f"{after:.3f}", count=training.held_out
        ))  # fmt: skip
        if after >= before:
            facts.append(say(language, "weights.no_help"))
    if training.weights is not None and training.weights.exists():
        facts.append(say(language, "weights.size", size=size(training.weights.stat().st_size)))
    if facts:
        return f'<p class="figures">{"".join(map(span, facts))}</p>'
    return "" if training.running else f'<p class="empty">{esc(say(language, "weights.empty"))}</p>'


# --- before and after ------------------------------------------------------------------------------------------------


def table(visit: Visit) -> str:
    """The questions with both answers and what is measured of them; last the means."""
    training, language = visit.training, visit.language
    if not training.compared:
        count = len(training.questions)
        return f'<p class="hint">{esc(say(language, "weights.questions", count=count))}</p>' if count else ""
    rows = "".join(
        f'<tr><th scope="rowgroup" rowspan="2">{esc(one.question)}</th>{_side(language, "before", one.before)}</tr>'
        f"<tr>{_side(language, 'after', one.after)}</tr>"
        for one in training.compared
    )
    if any(one.before.answer_tokens is not None for one in training.compared):
        sides = {side: [getattr(one, side) for one in training.compared] for side in ("before", "after")}
        rows += f'<tr><th scope="rowgroup" rowspan="2">{esc(say(language, "testing.mean"))}</th>' + "</tr><tr>".join(
            f'<th scope="row">{esc(say(language, f"weights.{side}"))}</th><td></td>{_cells(_means(told))}'
            for side, told in sides.items()
        ) + "</tr>"  # fmt: skip
    titles = ("testing.question", "weights.with", "testing.answer", *(f"weights.{name}" for name in MEASURES))
    head = "".join(f'<th scope="col">{esc(say(language, title))}</th>' for title in titles)
    label = esc(say(language, "weights.compare.title"))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="hint">{esc(say(language, "weights.measures"))}</p>'
    )


def _side(language: str, side: str, told: Told) -> str:
    values = {name: getattr(told, name) for name in MEASURES}
    name = esc(say(language, f"weights.{side}"))
    return f'<th scope="row">{name}</th><td>{esc(told.answer)}</td>{_cells(values)}'


def _cells(values: dict[str, float | None]) -> str:
    return "".join(f"<td>{'' if value is None else f'{value:.2f}'}</td>" for value in values.values())


def _means(told: list[Told]) -> dict[str, float | None]:
    found = {name: [v for one in told if (v := getattr(one, name)) is not None] for name in MEASURES}
    return {name: fmean(values) if values else None for name, values in found.items()}


# --- the shipped run -------------------------------------------------------------------------------------------------


def shipped(settings: Settings) -> dict[str, dict[str, Any]]:
    """Stage -> the run that made the weights which memo reads with; empty where nothing is known of it."""
    place = trained_weights(settings)
    return runs(place / LOG) if place is not None else {}


@lru_cache(maxsize=4)
def runs(path: Path) -> dict[str, dict[str, Any]]:
    """The runs of a `training.json` that have a log; empty if it is not there or cannot be read."""
    try:
        return {run["stage"]: run for run in json.loads(path.read_text(encoding="utf-8")) if run["log"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def shipped_note(visit: Visit, kind: str) -> str:
    """What that run was, in numbers."""
    language, run = visit.language, shipped(visit.session.settings).get(kind)
    if run is None:
        return f'<p class="empty">{esc(say(language, "weights.shipped.none"))}</p>'
    plan, log = run["plan"], run["log"]
    told = say(
        language, "weights.shipped.note", steps=plan["steps"], batch=plan["batch"], tokens=f"{run['tokens']:,}",
        rate=f"{plan['learning_rate']:g}", before=f"{log[0]['loss']:.3f}", after=f"{log[-1]['loss']:.3f}",
    )  # fmt: skip
    return f'<p class="hint">{esc(told)}</p>'
