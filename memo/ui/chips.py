"""The Memory Decoder's tab as HTML: tokens, one token, its neighbours, the training. Pure functions of a visit.

In: a `Visit`. Out: HTML in which every piece of a person's, a document's or a model's text has gone through `esc`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memo import decoder_file
from memo.models import decoder_place, display_name
from memo.ui.cards import notice, span
from memo.ui.decoding import READ, decoder_of
from memo.ui.marks import esc
from memo.ui.texts import say, tell

if TYPE_CHECKING:
    from memo.trace import Neighbour, Token
    from memo.ui.visits import Visit

STRONG = 2.0  # nats by which a token is raised or lowered where its colour is fullest
SEEN = 0.02  # nats below which it has none


def seen(text: str) -> str:
    """A token as it is shown: white space that would not be seen has a sign."""
    return (text.replace("\n", "↵").replace("\t", "⇥") if text.strip(" ") or not text else "·" * len(text)) or "◦"


def percent(logp: float) -> str:
    """A probability."""
    p = 100 * math.exp(logp)
    return f"{p:.0f} %" if p >= 10 else f"{p:.1f} %" if p >= 0.1 else f"{p:.1g} %"


def empty(visit: Visit, key: str) -> str:
    return f'<p class="empty">{esc(say(visit.language, key))}</p>'


def which(visit: Visit) -> str:
    """Which decoder there is, or what to do about it that there is none."""
    kind = decoder_of(visit.session)
    place, count = decoder_place(visit.session.settings), visit.learning.about.get("documents", 0)
    name = decoder_file.about(place).get("name") or display_name(place) if kind == "shared" else ""
    told = say(visit.language, f"decoder.which.{kind or 'none'}", documents=count, name=name)
    return notice("ready" if kind in ("own", "shared") else "idle", told)


def status(visit: Visit) -> str:
    """What is under way, or why nothing is to be seen."""
    language, decoding = visit.language, visit.decoding
    if decoding.refused:
        return notice("error", say(language, decoding.refused))
    if decoding.error is not None:
        return notice("error", tell(language, decoding.error))
    if decoding.running:
        return notice("busy", say(language, "decoder.running"))
    return notice("idle", say(language, "decoder.cut", count=READ)) if decoding.cut else ""


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokens(visit: Visit) -> str:
    """The text, every token of it a button, coloured by how much the decoder raises or lowers it."""
    decoding, language = visit.decoding, visit.language
    if not decoding.tokens:
        return empty(visit, "decoder.tokens.empty")
    chips = "".join(chip(visit, number, token) for number, token in enumerate(list(decoding.tokens)))
    key = "".join(
        f'<span class="key {kind}">{esc(say(language, f"decoder.{kind}"))}</span>'
        for kind in ("lowered", "raised", "written")
    )
    return f'<p class="legend">{key}</p><div class="tokens" role="group">{chips}</div>'


def chip(visit: Visit, number: int, token: Token) -> str:
    """One token."""
    from memo.trace import lift, mixed_logp

    decoding, by = visit.decoding, lift(token, visit.decoding.alpha)
    kinds = ["token", "raised" if by > SEEN else "lowered" if by < -SEEN else "", "written" if token.written else ""]
    told = say(visit.language, "decoder.first")
    if token.predicted:
        mix = percent(mixed_logp(token, decoding.alpha))
        told = say(
            visit.language, "decoder.chip", llm=percent(token.llm), memory=percent(token.memory), mix=mix
        )  # fmt: skip
    text, pressed = esc(seen(token.text)), str(number == decoding.chosen).lower()
    return (
        f'<button type="button" class="{" ".join(filter(None, kinds))}" data-token="{number}" aria-pressed="{pressed}" '
        f'style="--by:{min(1.0, abs(by) / STRONG):.2f}" title="{esc(told)}" aria-label="{text}: {esc(told)}">'
        f"{text}</button>" + "<br>" * token.text.count("\n")
    )


def sums(visit: Visit) -> str:
    """The perplexity of the text that was given, with and without the decoder."""
    decoding, language = visit.decoding, visit.language
    if not decoding.tokens:  # as on every page that is opened: it need not wait for the models' libraries
        return ""
    from memo.trace import perplexities

    found = perplexities(list(decoding.tokens), decoding.alpha)
    if not found:
        return ""
    facts = "".join(
        f'<div class="{name}"><dt>{esc(say(language, f"decoder.perplexity.{name}"))}</dt>'
        f"<dd>{value:,.{0 if value >= 1000 else 2}f}</dd></div>"
        for name, value in found.items()
    )
    return f'<dl class="sums" title="{esc(say(language, "decoder.perplexity.help"))}">{facts}</dl>'


# --- one token -------------------------------------------------------------------------------------------------------


def token(visit: Visit) -> str:
    """What both models thought of the token that is looked at."""
    decoding, language, one = visit.decoding, visit.language, visit.decoding.token
    if one is None:
        return empty(visit, "decoder.token.empty")
    from memo.trace import lift, remix

    head = f'<p class="looked-at"><b>{esc(seen(one.text))}</b></p>'
    if not one.predicted:
        return head + empty(visit, "decoder.first")
    times = math.exp(lift(one, decoding.alpha))
    said = say(language, "decoder.times", times=f"{times:.2f}")
    names = ("llm", "memory", "mix")
    cells = "".join(f"<th scope='col'>{esc(say(language, f'decoder.{name}'))}</th>" for name in names)
    rows = "".join(
        f'<tr{" class=came" if c.id == one.id else ""}><th scope="row">{esc(seen(c.text))}</th>'
        f"<td>{percent(c.llm)}</td><td>{percent(c.memory)}</td><td>{percent(logp)}</td></tr>"
        for c, logp in remix(one, decoding.alpha)
    )
    table = (
        f'<details class="numbers"><summary>{esc(say(language, "decoder.numbers"))}</summary><table><thead><tr>'
        f"<th></th>{cells}</tr></thead><tbody>{rows}</tbody></table></details>"
    )
    return f"{head}<p class='times'>{esc(said)}</p>{table}"


def neighbours(visit: Visit, found: list[Neighbour] | None, error: Exception | None = None) -> str:
    """What stood in the corpus after a context like that of the token."""
    language = visit.language
    if visit.decoding.token is None or not visit.decoding.token.predicted:
        return ""
    title = f"<h3>{esc(say(language, 'decoder.near'))}</h3>"
    if error is not None:
        return title + f'<p class="why">{esc(tell(language, error))}</p>'
    if found is None:
        return title + empty(visit, "decoder.near.none")
    items = "".join(
        f'<li><span class="distance">{esc(say(language, "decoder.distance", distance=f"{near.distance:,.1f}"))}</span> '
        f"<q>{esc(near.before.lstrip())}<b>{esc(seen(near.token) if not near.token.strip() else near.token)}</b>"
        f"{esc(near.after.rstrip())}</q></li>"
        for near in found
    )
    return f'{title}<ol class="near">{items}</ol>'


# --- training --------------------------------------------------------------------------------------------------------


def training(visit: Visit) -> str:
    """How far the training is, and what came of it."""
    learning, language = visit.learning, visit.language
    if learning.running:
        done, of = learning.done, learning.of
        stage = "measuring" if learning.stage == "training" and done == of else learning.stage
        percent = int(100 * done / of) if of else 0
        facts = [say(language, f"decoder.stage.{stage}", done=done, of=of, percent=percent)]
        if learning.loss is not None:
            facts.append(say(language, "decoder.loss", loss=f"{learning.loss:.3f}"))
        if (left := learning.seconds_left) is not None:
            facts.append(say(language, "decoder.left", minutes=int(left // 60), seconds=int(left % 60)))
        label = esc(say(language, "decoder.training.title"))
        bar = f'<progress max="1" value="{percent / 100}" aria-label="{label}"></progress>'
        return f'{bar}<p class="figures">{"".join(map(span, facts))}</p>'
    why = f'<p class="why">{esc(tell(language, learning.error))}</p>' if learning.error else ""
    if not learning.about:
        return why
    about, held = learning.about, learning.about["held_out_perplexity"]
    llm, mixed, alpha = f"{held['llm']:.2f}", f"{held['mixed']:.2f}", f"{about['alpha']:g}"
    facts = [
        say(language, "decoder.learnt", tokens=f"{about['tokens']:,}", documents=about["documents"]),
        say(language, "decoder.held", llm=llm, mixed=mixed, alpha=alpha),
    ]
    if not about["alpha"]:
        facts.append(say(language, "decoder.no_help"))
    return why + f'<p class="figures">{"".join(map(span, facts))}</p>'
