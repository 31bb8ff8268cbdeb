"""Queries in other forms: text in, text and messages out, seeded.

How a query is *fed* (token by token, in chunks, in a batch with others) is no form of it; ``WAYS_OF_RUNNING`` names
those for what runs an artifact.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bakeout.models.data.forms.attachments import with_attachment
from bakeout.models.data.forms.follow_ups import with_follow_up
from bakeout.models.data.forms.frames import few_shot, framed
from bakeout.models.data.forms.kinds import CHAT_KINDS, KINDS, PLAIN, Kind, Plain, Use
from bakeout.models.data.forms.surface import respelled
from bakeout.models.data.forms.system_prompts import SYSTEM_PROMPTS
from bakeout.models.data.forms.turns import TURNS, Turn
from bakeout.models.data.forms.wrapping import wrapped
from bakeout.models.errors import BakeoutError

WayOfRunning = Literal["whole", "token_by_token", "chunked", "batch_mixing"]
WAYS_OF_RUNNING: Mapping[WayOfRunning, str] = {
    "whole": "the prompt in one run, alone",
    "token_by_token": "every token of the prompt in a run of its own, with the cache of those before it",
    "chunked": "the prompt in runs of a few tokens each, as servers fill their cache",
    "batch_mixing": "the prompt in one batch with prompts of other names, padded to the longest",
}


@dataclass(frozen=True)
class Query:
    """What a form is made from: what is asked, the response if there is one, and given paraphrases and translations.

    ``is_chat``: whether it stands in a conversation, which can have a system message and earlier turns.
    """

    text: str
    response: str | None = None
    paraphrases: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()
    is_chat: bool = False


@dataclass(frozen=True)
class Form:
    """A query in another form. ``source`` is the index of the query, whose answer it still has.

    ``system``: the system message of its conversation, None for the conversation's own; ``turns``: unrelated messages
    of the user, each with its answer, before the conversation; ``answered``: the query and what was said to it, right
    before ``text``, where that only follows it up.
    """

    kind: Kind | Plain
    source: int
    text: str
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    answered: tuple[Turn, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the query is asked as it is."""
        return self.kind == PLAIN


def variants(
    queries: Sequence[Query],
    kind: Kind,
    *,
    seed: int,
    use: Use = "testing",
    shots: Sequence[Query] = (),
    refused: Sequence[Turn] = (),
) -> list[Form]:
    """One form of ``kind`` for each query that has any.

    ``suffix``, ``prefix``: words around the query that ask nothing. ``whitespace``, ``case``, ``punctuation``: of the
    query's own letters. ``few_shot``: two answered queries of ``shots`` (others than the query itself) before it, in
    conversations half of the time two of other subjects. ``paraphrase``, ``language``: one of those that the query has,
    if it has any.

    Of conversations alone: ``system_prompt``, ``no_system_prompt``: another system message, and an empty one.
    ``second_turn``, ``third_turn``: unrelated turns before the query. ``after_refusal``: one of the turns ``refused``,
    questions that a refusal answered, alone or beside another turn. ``follow_up``: what insists behind the answered
    query, a refusal if it is among ``refused``, else its response or, half of the time, one of these refusals.
    ``instruction``, ``thanks``, ``lead_in``: whole phrases around it. ``attachment``: pasted material behind or before
    it. ``story``, ``quotation``, ``translation``, ``role``: a scene that holds it.

    ``use``: what is drawn for testing shares no wording, way of spacing or letter case with what is drawn for widening.
    The same arguments give the same forms. A form that would be the query itself is left out.
    Raises ``BakeoutError`` for an unknown kind, and for few_shot without two answered queries outside conversations.
    """
    if kind not in KINDS:
        raise BakeoutError(f"No attack is called {kind!r}.", f"Choose among {', '.join(KINDS)}.")
    answered = _answered(shots)
    if kind == "few_shot" and len(answered) < 2 and not all(query.is_chat for query in queries):
        raise BakeoutError(
            "Variants of the kind few_shot need two rows with a response.", "Add responses, or leave it out."
        )
    draw = random.Random(f"{kind}/{use}/{seed}")
    drawn = (_form(source, query, kind, use, draw, answered, refused) for source, query in enumerate(queries))
    return [form for form in drawn if form is not None]


def mixture(
    queries: Sequence[Query],
    shares: Mapping[Kind | Plain, int],
    *,
    seed: str,
    use: Use,
    shots: Sequence[Query] = (),
    refused: Sequence[Turn] = (),
) -> list[Form]:
    """Each query in one form, whose kind is drawn with relative ``shares``, independently of all others.

    Queries outside conversations stay plain, and so do those that have no form of the kind that is drawn. The same
    arguments give the same forms.
    """
    answered = _answered(shots)
    kinds, weights = list(shares), list(shares.values())
    draw = random.Random(f"mixture/{use}/{seed}")
    forms = []
    for source, query in enumerate(queries):
        kind = draw.choices(kinds, weights)[0]
        form = None
        if kind != PLAIN and query.is_chat:
            form = _form(source, query, kind, use, draw, answered, refused)
        forms.append(form or Form(PLAIN, source, query.text))
    return forms


def _answered(shots: Sequence[Query]) -> list[Turn]:
    return [(shot.text, shot.response) for shot in shots if shot.response is not None]


def _form(
    source: int,
    query: Query,
    kind: Kind,
    use: Use,
    draw: random.Random,
    answered: Sequence[Turn],
    refused: Sequence[Turn],
) -> Form | None:
    """The query in a form of ``kind``; None where it has none, or none that differs."""
    if kind in CHAT_KINDS and not query.is_chat:
        return None
    match kind:
        case "system_prompt":
            return Form(kind, source, query.text, system=draw.choice(SYSTEM_PROMPTS[use]))
        case "no_system_prompt":
            return Form(kind, source, query.text, system="")
        case "second_turn" | "third_turn":
            turns = draw.sample(TURNS[use], 1 if kind == "second_turn" else 2)
            return Form(kind, source, query.text, turns=tuple(turns))
        case "after_refusal":
            earlier = _with_a_refusal(query, use, draw, refused)
            return Form(kind, source, query.text, turns=earlier) if earlier else None
        case "follow_up":
            if not (replies := _replies(query, draw, refused)):
                return None
            answered_query, insisting = with_follow_up(query.text, replies, use, draw)
            return Form(kind, source, insisting, answered=answered_query)
        case "suffix" | "prefix" | "instruction" | "thanks" | "lead_in":
            text: str | None = wrapped(query.text, kind, use, draw)
        case "attachment":
            text = with_attachment(query.text, use, draw)
        case "whitespace" | "case" | "punctuation":
            text = respelled(query.text, kind, use, draw)
        case "story" | "quotation" | "translation" | "role":
            text = framed(query.text, kind, use, draw)
        case "few_shot":
            text = _few_shot(query, use, draw, answered)
        case "paraphrase" | "language":
            given = query.paraphrases if kind == "paraphrase" else query.translations
            text = draw.choice(given) if given else None
    return None if text is None or text == query.text else Form(kind, source, text)


def _with_a_refusal(query: Query, use: Use, draw: random.Random, refused: Sequence[Turn]) -> tuple[Turn, ...]:
    """Earlier turns of which one or two were refused; none of them asks the query itself."""
    others = [turn for turn in refused if turn[0] != query.text]
    if not others:
        return ()
    first, second, unrelated = draw.choice(others), draw.choice(others), draw.choice(TURNS[use])
    return draw.choice(((first,), (first,), (unrelated, first), (first, unrelated), (first, second)))


def _replies(query: Query, draw: random.Random, refused: Sequence[Turn]) -> list[str]:
    """What may have been said to a query: how it was refused, or if it was not its response or any refusal."""
    own = [answer for asked, answer in refused if asked == query.text]
    others = sorted({answer for _, answer in refused})
    if own or query.response is None or (others and draw.random() < 0.5):
        return own or others
    return [query.response]


def _few_shot(query: Query, use: Use, draw: random.Random, answered: Sequence[Turn]) -> str | None:
    """Two answered queries, as text that a model continues; in a conversation marked, and half of them unrelated."""
    others = [shot for shot in answered if shot[0] != query.text]
    if query.is_chat:
        own = len(others) >= 2 and draw.random() < 0.5
        return few_shot(query.text, draw.sample(others if own else TURNS[use], 2), use, draw)
    if len(others) < 2:
        return None
    return "".join(f"{asked}{answer}\n" for asked, answer in draw.sample(others, 2)) + query.text
