"""The tab Inside the memory as HTML: a text with its slots, clues, one slot, losses, one part. Functions of a visit.

In: a `Visit`. Out: HTML in which every piece of a person's, a document's or a model's text has gone through `esc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memo.ui.cards import notice, span
from memo.ui.chips import empty, seen
from memo.ui.marks import esc, marked, place_of
from memo.ui.texts import say, size, tell

if TYPE_CHECKING:
    from torch import Tensor

    from memo.inside import Part, Recalled, Slot
    from memo.ui.visits import Visit

STRONGEST = 5  # slots, and layers of a slot, that are listed
AROUND = 70  # characters of the text before and after a slot that is looked at
STRIDE = 1000  # more than a clue has tokens: clue and token are one number


def status(visit: Visit) -> str:
    """What is under way, or why nothing is to be seen."""
    language, looking = visit.language, visit.looking
    if looking.refused:
        return notice("error", say(language, looking.refused))
    if looking.error is not None:
        return notice("error", tell(language, looking.error))
    if not looking.running:
        return ""
    percent = int(100 * looking.read)
    return notice("busy", say(language, f"inside.running.{looking.running}", percent=percent))


# --- the text --------------------------------------------------------------------------------------------------------


def text(visit: Visit) -> str:
    """The documents to choose from, what is kept of the one that is open, and a part of its text with the slots."""
    looking, language = visit.looking, visit.language
    documents = dict(visit.session.rag.library.documents)
    if not documents:
        return empty(visit, "inside.empty")
    chips = "".join(
        f'<button type="button" class="chip" data-pick="document" data-id="{esc(entry.id)}" '
        f'aria-pressed="{str(entry.id == looking.document).lower()}">{esc(entry.name)}</button>'
        for entry in documents.values()
    )
    head = f'<div class="sets" role="group" aria-label="{esc(say(language, "inside.documents"))}">{chips}</div>'
    entry = documents.get(looking.document)
    if entry is None or not looking.parts:
        return head
    facts = [
        say(language, "figures.slots", tokens=f"{entry.tokens:,}", slots=f"{entry.slots:,}", ratio=entry.ratio),
        say(language, "figures.bytes", bytes=size(entry.bytes), full=size(entry.full_bytes)),
    ]
    key = f'<span class="key at">{esc(say(language, "inside.key.slot"))}</span>'
    mass = looking.mass()
    if mass is not None:
        key += f'<span class="key looked">{esc(say(language, "inside.key.looked"))}</span>'
    return (
        f'{head}<p class="figures">{"".join(map(span, facts))}</p>{parts(visit)}<p class="legend">{key}</p>'
        f'<div class="slots" tabindex="0" role="group" data-part="{looking.document}-{looking.part}" '
        f'aria-label="{esc(say(language, "inside.text.title"))}">{stretches(visit, mass)}</div>'
    )


def name_of(visit: Visit, number: int) -> str:
    """A part in words."""
    looking, language = visit.looking, visit.language
    part = looking.parts[number]
    if visit.session.rag.library.documents[looking.document].pages:
        return say(language, "inside.page_number", page=part.number)
    return say(language, "inside.part_number", part=part.number, of=len(looking.parts))


def parts(visit: Visit) -> str:
    """The way to another part of the text."""
    looking, language = visit.looking, visit.language
    if len(looking.parts) < 2:
        return ""

    def step(key: str, sign: str, to: int) -> str:
        off = "" if 0 <= to < len(looking.parts) else " disabled"
        return (
            f'<button type="button" class="chip" data-pick="part" data-number="{to}" '
            f'aria-label="{esc(say(language, key))}"{off}>{sign}</button>'
        )

    chosen = {looking.part: " selected"}
    options = "".join(
        f'<option value="{number}"{chosen.get(number, "")}>{esc(name_of(visit, number))}</option>'
        for number in range(len(looking.parts))
    )
    label = esc(say(language, "inside.parts"))
    select = f'<select class="chip" aria-label="{label}">{options}</select>'
    before, after = step("inside.before", "‹", looking.part - 1), step("inside.after", "›", looking.part + 1)
    return f'<div class="parts">{before}{select}{after}</div>'


def over_layers(mass: Tensor) -> Tensor:
    """The mean attention on each slot; none on the first, which draws it without meaning. (layers, m) -> (m,)"""
    strength = mass.mean(dim=0)
    strength[0] = 0
    return strength


def stretches(visit: Visit, mass: Tensor | None) -> str:
    """The open part: what each slot stands for, the token it sits at marked, coloured by the attention on it."""
    looking, part = visit.looking, visit.looking.parts[visit.looking.part]
    shares = [0.0] * len(looking.slots)
    if mass is not None:
        strength = over_layers(mass)
        shares = (strength / strength.max().clamp(min=1e-9)).tolist()
    return "".join(
        stretch(visit, number, slot, part, shares[number])
        for number, slot in enumerate(looking.slots)
        if max(slot.start, part.start) < min(slot.end, part.end)
    )


def stretch(visit: Visit, number: int, slot: Slot, part: Part, share: float) -> str:
    """One slot."""
    looking = visit.looking
    chosen = number == looking.slot
    start, end = max(slot.start, part.start), min(slot.end, part.end)
    head, button = "", ""
    if slot.token is not None and start <= slot.token[0] and slot.token[1] <= end:
        token = looking.text[slot.token[0] : slot.token[1]]
        blank = token[: len(token) - len(token.lstrip())] if token.strip() else ""
        title = esc(say(visit.language, "inside.slot", slot=number + 1, of=len(looking.slots)))
        button = (
            f'<button type="button" class="at" data-pick="slot" data-number="{number}" title="{title}" '
            f'aria-pressed="{str(chosen).lower()}">{esc(seen(token[len(blank) :]))}</button>'
        )
        head = esc(looking.text[start : slot.token[0]] + blank)
        start = slot.token[1] if token.strip() else slot.token[0]  # what is not seen keeps its effect behind its sign
    return (
        f'{head}<span class="stretch{" chosen" if chosen else ""}" data-pick="slot" data-number="{number}" '
        f'style="--by:{share:.2f}">{button}{esc(looking.text[start:end])}</span>'
    )


# --- clues -----------------------------------------------------------------------------------------------------------


def clues(visit: Visit) -> str:
    """The clues that were recalled, every token of them a button."""
    looking, language = visit.looking, visit.language
    if not looking.recalled:
        if looking.running == "recall":
            items = "".join(
                f'<li><span class="kind">{esc(say(language, f"kind.{clue.kind}"))}</span> '
                f'<span class="said">{esc(clue.text)}</span></li>'
                for clue in looking.coming
            )
            return f'<ul class="recalled">{items}</ul>'
        return empty(visit, "inside.clues.none" if looking.question else "inside.clues.empty")
    items = "".join(clue(visit, number, found) for number, found in enumerate(looking.recalled))
    hint = esc(say(language, "inside.clues.hint"))
    asked = esc(say(language, "inside.asked", question=looking.question))
    return f'<p class="hint">{asked} {hint}</p><ul class="recalled">{items}</ul>'


def clue(visit: Visit, number: int, found: Recalled) -> str:
    """One clue: its kind, which stands for the whole, and its tokens."""
    looking, language = visit.looking, visit.language

    def pressed(token: int) -> str:
        return str((looking.clue, looking.token) == (number, token)).lower()

    tokens = []
    for index, said in enumerate(found.tokens):
        off = f' disabled title="{esc(say(language, "inside.first_token"))}"' if said.mass is None else ""
        tokens.append(
            f'<button type="button" class="token" data-pick="token" data-number="{number * STRIDE + index}" '
            f'aria-pressed="{pressed(index)}"{off}>{esc(seen(said.text))}</button>'
        )
    return (
        f'<li><button type="button" class="chip" data-pick="clue" data-number="{number}" '
        f'aria-pressed="{pressed(-1)}">{esc(say(language, f"kind.{found.clue.kind}"))}</button> '
        f'<span class="said">{"".join(tokens)}</span></li>'
    )


def slot(visit: Visit) -> str:
    """The slot that is looked at and the layers that look there, and where the chosen token looks most."""
    looking = visit.looking
    mass = looking.mass()
    parts = [chosen_slot(visit, mass)] if 0 <= looking.slot < len(looking.slots) else []
    if mass is not None:
        strength = over_layers(mass)
        best = strength.topk(min(STRONGEST, len(strength)))
        items = "".join(
            f'<li><button type="button" class="place" data-pick="place" data-number="{number}">'
            f'<span class="share">{share:.2%}</span> <q>{esc(excerpt(visit, number, 24)[1].strip())}</q></button></li>'
            for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if share > 0
        )
        if items:
            title = esc(say(visit.language, "inside.strongest"))
            parts.append(f'<h3>{title}</h3><ol class="strongest">{items}</ol>')
        parts.append(f'<p class="hint">{esc(say(visit.language, "inside.map.how"))}</p>')
    return "".join(parts)


def excerpt(visit: Visit, number: int, least: int = 0) -> tuple[str, str, str]:
    """The text before a slot, what the slot stands for (and more, up to `least` characters), the text after it."""
    looking = visit.looking
    one = looking.slots[number]
    end = max(one.end, min(one.start + least, len(looking.text)))
    before, after = looking.text[max(0, one.start - AROUND) : one.start], looking.text[end : end + AROUND]
    if one.start > AROUND:  # from a whole word on, to a whole word
        before = before.partition(" ")[2] or before
    if end + AROUND < len(looking.text):
        after = after.rpartition(" ")[0] or after
    return before, looking.text[one.start : end], after


def chosen_slot(visit: Visit, mass: Tensor | None) -> str:
    """One slot: where it is, what it stands for, which layers look there."""
    looking, language = visit.looking, visit.language
    before, own, after = map(esc, excerpt(visit, looking.slot))
    where = esc(place_of(visit, looking.document, looking.slots[looking.slot].start))
    title = esc(say(language, "inside.slot", slot=looking.slot + 1, of=len(looking.slots)))
    layers = f'<p class="hint">{esc(say(language, "inside.no_clue"))}</p>'
    if mass is not None:
        best = mass[:, looking.slot].topk(min(STRONGEST, len(mass)))
        most = max(float(best.values[0]), 1e-9)
        items = "".join(
            f'<li style="--by:{share / most:.2f}"><span>{esc(say(language, "inside.layer", layer=layer + 1))}</span> '
            f"<span>{share:.2%}</span></li>"
            for share, layer in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        layers = f'<ol class="layers" aria-label="{esc(say(language, "inside.layers"))}">{items}</ol>'
    return (
        f'<div class="chosen-slot"><p class="where"><b>{title}</b> {where}</p>'
        f"<blockquote>{before}<b>{own}</b>{after}</blockquote>{layers}</div>"
    )


# --- losses, and one part --------------------------------------------------------------------------------------------


def losses_note(visit: Visit) -> str:
    """How to read the curves, and their means."""
    looking, language = visit.looking, visit.language
    if not looking.losses:
        return ""
    import torch

    parts = list(looking.losses)
    means = {which: torch.cat([getattr(part, which) for part in parts]).mean() for which in ("none", "memory")}
    facts = []
    if parts[0].full is not None:
        means["full"] = torch.cat([part.full for part in parts]).mean()
        if (gap := float(means["none"] - means["full"])) > 0:
            kept = float(means["none"] - means["memory"]) / gap
            facts.append(say(language, "inside.losses.kept", percent=f"{100 * kept:.0f}"))
    else:
        facts.append(say(language, "inside.losses.too_long"))
    sums = "".join(
        f'<div class="{which}"><dt>{esc(say(language, f"inside.losses.{which}"))}</dt><dd>{float(mean):.2f}</dd></div>'
        for which, mean in means.items()
    )
    how = f'<p class="hint">{esc(say(language, "inside.losses.how"))}</p>'
    return f'<dl class="sums">{sums}</dl><p class="figures">{"".join(map(span, facts))}</p>{how}'


def page(visit: Visit) -> str:
    """A part as it is recalled beside what it is, the words in common marked."""
    looking, language = visit.looking, visit.language
    if not looking.parts:
        return empty(visit, "inside.empty")
    if looking.asked < 0:
        return f'<p class="hint">{esc(say(language, "inside.page.which", part=name_of(visit, looking.part)))}</p>'
    from memo.inside import in_common, words

    mine, theirs = in_common(looking.said, looking.real)
    count = len(words(looking.said))
    told = say(
        language, "inside.page.common", part=name_of(visit, looking.asked), common=len(mine), words=count
    )  # fmt: skip
    columns = "".join(
        f'<div><h3>{esc(say(language, key))}</h3><div class="whole" tabindex="0"><i>{esc(looking.given)}</i>'
        f"{marked(text, spans)}</div></div>"
        for key, text, spans in (
            ("inside.page.said", looking.said, mine), ("inside.page.real", looking.real, theirs),
        )
    )  # fmt: skip
    return f'<p class="hint">{esc(told)}</p><div class="beside">{columns}</div>'
