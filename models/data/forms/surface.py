"""The same letters, written otherwise: their case, the spaces between words, the punctuation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from bakeout.models.data.forms.kinds import Surface, Use

_GAPS: dict[Use, tuple[str, ...]] = {
    "widening": ("  ", " \t", "\n\n", "     ", " \n", "\t\t", "      ", "\n\t"),
    "testing": ("   ", "\n", "\t", "    "),
}
_MARKS = ".,;:?!"
# Marks that end a part of a sentence; not those within a number.
_ENDS = re.compile(rf"[{_MARKS}]+(?=\s|$)")
_BEHIND_MARKS = re.compile(rf"(?<=[{_MARKS}]) ")


def respelled(query: str, kind: Surface, use: Use, draw: random.Random) -> str:
    """The query's letters in another case, with other spaces, or with other punctuation.

    What is drawn for testing is never drawn for widening. Case: single sentences, words or letters, up to all but a
    few of them, against all capital or every other letter. Spaces: none behind marks, other gaps side by side, against
    gaps of one other kind. Punctuation: some marks dropped or doubled, against none at all or other ones at the end.
    """
    return _CHANGES[kind](query, use, draw)


def _whitespace(query: str, use: Use, draw: random.Random) -> str:
    """Wider gaps: one, a fifth of them, or all; or one at an end. For widening, also no spaces behind marks."""
    gap = draw.choice(_GAPS[use])
    places = [index for index, letter in enumerate(query) if letter == " "]
    if not places or draw.random() < 0.1:
        return gap + query if draw.random() < 0.5 else query + gap
    count = draw.choice((1, -(-len(places) // 5), len(places)))
    widened = set(draw.sample(places, count))
    if use == "testing":
        return "".join(gap if index in widened else letter for index, letter in enumerate(query))
    if draw.random() < 0.2 and (closed := _BEHIND_MARKS.sub("", query)) != query:
        return closed
    gaps = _GAPS[use] if draw.random() < 0.4 else (gap,)
    return "".join(draw.choice(gaps) if index in widened else letter for index, letter in enumerate(query))


def _case(query: str, use: Use, draw: random.Random) -> str:
    if use == "testing":
        return query.upper() if draw.random() < 0.5 else draw.choice(_alternating(query))
    written = draw.choice(_OTHER_CASES)(query, draw)
    # A short query can come out as one for testing.
    return query.lower() if written in (query.upper(), *_alternating(query)) else written


def _title(query: str, _draw: random.Random) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in query.split(" "))


def _inverted_title(query: str, _draw: random.Random) -> str:
    return " ".join(word[:1].lower() + word[1:].upper() for word in query.split(" "))


def _single_letters(query: str, draw: random.Random) -> str:
    share = draw.uniform(0.2, 0.98)
    return "".join(letter.upper() if draw.random() < share else letter.lower() for letter in query)


def _single_words(query: str, draw: random.Random) -> str:
    share = draw.uniform(0.6, 0.99)
    return " ".join(word.upper() if draw.random() < share else word.lower() for word in query.split(" "))


def _all_but_the_first(query: str, draw: random.Random) -> str:
    words, kept = query.split(" "), draw.randint(1, 3)
    return " ".join([*words[:kept], *(word.upper() for word in words[kept:])])


def _all_but_few_letters(query: str, draw: random.Random) -> str:
    small = set(draw.sample(range(len(query)), min(len(query), draw.randint(1, 3))))
    return "".join(letter.lower() if index in small else letter.upper() for index, letter in enumerate(query))


def _nearly_alternating(query: str, draw: random.Random) -> str:
    is_capital, written, share = draw.random() < 0.5, [], draw.uniform(0.75, 0.98)
    for letter in query:
        written.append(letter.upper() if is_capital else letter.lower())
        is_capital ^= draw.random() < share
    return "".join(written)


# All capital letters and every other one, which test, lie among these. Queries whose letters change their case all the
# time lie farthest from all others, so there are more of them.
_OTHER_CASES: tuple[Callable[[str, random.Random], str], ...] = (
    lambda query, _draw: query.lower(),
    _title,
    _inverted_title,
    _single_letters,
    _single_words,
    _all_but_the_first,
    *(_all_but_few_letters, _all_but_few_letters),
    *(_nearly_alternating, _nearly_alternating, _nearly_alternating, _nearly_alternating),
)


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
