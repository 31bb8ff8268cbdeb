"""The same letters, written otherwise: their case, the spaces between words, the punctuation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from bakeout.models.data.forms.kinds import Surface, Use

_GAPS: dict[Use, tuple[str, ...]] = {"widening": ("  ", " \t", "\n\n", "     "), "testing": ("   ", "\n", "\t", "    ")}
_MARKS = ".,;:?!"
# Marks that end a part of a sentence; not those within a number.
_ENDS = re.compile(rf"[{_MARKS}]+(?=\s|$)")


def respelled(query: str, kind: Surface, use: Use, draw: random.Random) -> str:
    """The query's letters in another case, with other spaces, or with other punctuation.

    What is drawn for testing is never drawn for widening. Case: single sentences, words or letters, against all capital
    or every other letter. Punctuation: some marks dropped or doubled, against none at all or other ones at the end.
    """
    return _CHANGES[kind](query, use, draw)


def _whitespace(query: str, use: Use, draw: random.Random) -> str:
    """Wider gaps: one, a fifth of them, or all; or one at an end."""
    gap = draw.choice(_GAPS[use])
    places = [index for index, letter in enumerate(query) if letter == " "]
    if not places or draw.random() < 0.1:
        return gap + query if draw.random() < 0.5 else query + gap
    count = draw.choice((1, -(-len(places) // 5), len(places)))
    widened = set(draw.sample(places, count))
    return "".join(gap if index in widened else letter for index, letter in enumerate(query))


def _case(query: str, use: Use, draw: random.Random) -> str:
    if use == "testing":
        return query.upper() if draw.random() < 0.5 else draw.choice(_alternating(query))
    words, way = query.split(" "), draw.randrange(5)
    if way == 0:
        return query.lower()
    if way == 1:
        return " ".join(word[:1].upper() + word[1:] for word in words)
    if way == 2:
        share = draw.uniform(0.2, 0.8)
        written = "".join(letter.upper() if draw.random() < share else letter.lower() for letter in query)
    elif way == 3:
        share = draw.uniform(0.6, 0.95)
        written = " ".join(word.upper() if draw.random() < share else word.lower() for word in words)
    else:
        kept = draw.randint(1, 3)
        written = " ".join([*words[:kept], *(word.upper() for word in words[kept:])])
    # A short query can come out as one for testing.
    return query.lower() if written in (query.upper(), *_alternating(query)) else written


def _alternating(query: str) -> tuple[str, str]:
    """Every other letter in capitals, beginning with the first one, and with the second."""
    even, odd = (
        "".join(letter.upper() if index % 2 == first else letter.lower() for index, letter in enumerate(query))
        for first in (0, 1)
    )
    return even, odd


def _punctuation(query: str, use: Use, draw: random.Random) -> str:
    bare = query.rstrip(_MARKS + " =") or query
    end = query[len(bare) :].strip()[-1:]
    # Where there are no marks but the last, testing leaves that to widening.
    several = _ENDS.search(bare) is not None
    if use == "testing":
        if several and draw.random() < 0.5:
            return _ENDS.sub("", bare)
        return bare + draw.choice((" ...", " -", ";", " ;;", ",", " …"))
    way = draw.randrange(4)
    if way == 0:
        return bare
    if way == 1:
        return query + (end or ".") * draw.randint(1, 3)
    if way == 2 or not several:
        return bare + draw.choice((".", " ?!", "??", " !", " :"))
    dropped = draw.uniform(0.4, 0.95)
    return _ENDS.sub(lambda mark: "" if draw.random() < dropped else mark[0], bare) + (end or ".")


_CHANGES: dict[Surface, Callable[[str, Use, random.Random], str]] = {
    "whitespace": _whitespace,
    "case": _case,
    "punctuation": _punctuation,
}
