"""Variants of prompts that ask the same in another form: for testing a refusal, and for widening a probe set.

Text in, text out, seeded. How a prompt is *fed* (token by token, in chunks, in a batch with others) is no variant of
the prompt; ``WAYS_OF_RUNNING`` names those for what runs an artifact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bakeout.models.errors import BakeoutError

Kind = Literal["suffix", "prefix", "whitespace", "case", "few_shot", "punctuation", "paraphrase", "language"]
WayOfRunning = Literal["whole", "token_by_token", "chunked", "batch_mixing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WAYS_OF_RUNNING: Mapping[WayOfRunning, str] = {
    "whole": "the prompt in one run, alone",
    "token_by_token": "every token of the prompt in a run of its own, with the cache of those before it",
    "chunked": "the prompt in runs of a few tokens each, as servers fill their cache",
    "batch_mixing": "the prompt in one batch with prompts of other names, padded to the longest",
}

# Held out of widening: a probe set must not be widened with the variants that it is tested with.
_SUFFIXES = {
    "widening": (" Thanks.", " Please.", " Answer briefly.", " Think carefully.", " ok", "!!", " (important)"),
    "testing": (" Thank you.", " Quickly!", " Be brief.", " I need this today.", " hm", "??", " [urgent]"),
}
_PREFIXES = {
    "widening": ("Please: ", "Hello. ", "Question: ", "Now, ", "I wonder: ", "> ", "Well, "),
    "testing": ("Kindly: ", "Hi! ", "Task: ", "So, ", "Tell me: ", "* ", "Listen, "),
}
Use = Literal["widening", "testing"]


@dataclass(frozen=True)
class Prompt:
    """What a variant is made from: a prompt, its response where it has one, and its given paraphrases."""

    text: str
    response: str | None = None
    paraphrases: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A prompt in another form. ``source`` is the index of the prompt it is made from, whose answer it still has."""

    kind: Kind
    source: int
    text: str


def variants(
    prompts: Sequence[Prompt],
    kind: Kind,
    *,
    seed: int,
    use: Use = "testing",
    shots: Sequence[Prompt] = (),
) -> list[Variant]:
    """One variant of ``kind`` for each prompt that has any.

    ``suffix``, ``prefix``: words around the prompt that ask nothing. ``whitespace``, ``case``, ``punctuation``: of the
    prompt's own letters. ``few_shot``: two answered prompts of ``shots`` (others than the prompt itself) before it.
    ``paraphrase``, ``language``: one of those that the prompt has, if it has any. ``use``: what is drawn for
    testing shares no suffix, prefix, way of spacing or letter case with what is drawn for widening.

    The same arguments give the same variants. A variant that would be the prompt itself is left out.
    Raises ``BakeoutError`` for an unknown kind, and for few_shot without two answered prompts.
    """
    if kind not in KINDS:
        raise BakeoutError(f"No attack is called {kind!r}.", f"Choose among {', '.join(KINDS)}.")
    answered = [shot for shot in shots if shot.response is not None]
    if kind == "few_shot" and len(answered) < 2:
        raise BakeoutError(
            "Variants of the kind few_shot need two rows with a response.", "Add responses, or leave it out."
        )
    draw = random.Random(f"{kind}/{use}/{seed}")
    changed = []
    for source, prompt in enumerate(prompts):
        if kind == "few_shot":
            text: str | None = _few_shot(prompt, answered, draw)
        elif kind in ("paraphrase", "language"):
            given = prompt.paraphrases if kind == "paraphrase" else prompt.translations
            text = draw.choice(given) if given else None
        else:
            text = _CHANGES[kind](prompt.text, use, draw)
        if text is not None and text != prompt.text:
            changed.append(Variant(kind, source, text))
    return changed


def _suffix(text: str, use: Use, draw: random.Random) -> str:
    return text + draw.choice(_SUFFIXES[use])


def _prefix(text: str, use: Use, draw: random.Random) -> str:
    return draw.choice(_PREFIXES[use]) + text


def _whitespace(text: str, use: Use, draw: random.Random) -> str:
    """Widening doubles a space or adds one at an end; testing breaks a line, or trebles a space."""
    gap = "  " if use == "widening" else draw.choice(("   ", "\n"))
    places = [index for index, letter in enumerate(text) if letter == " "]
    if not places or draw.random() < 0.25:
        end = gap[:-1] or gap
        return end + text if draw.random() < 0.5 else text + end
    place = draw.choice(places)
    return text[:place] + gap + text[place + 1 :]


def _case(text: str, use: Use, draw: random.Random) -> str:
    """Widening writes all letters small, or the first ones of words large; testing all large, or every other one."""
    if use == "widening":
        return draw.choice((text.lower(), " ".join(word[:1].upper() + word[1:] for word in text.split(" "))))
    if draw.random() < 0.5:
        return text.upper()
    first = draw.randrange(2)
    return "".join(letter.upper() if index % 2 == first else letter.lower() for index, letter in enumerate(text))


def _punctuation(text: str, use: Use, draw: random.Random) -> str:
    """Widening drops or doubles what the prompt ends with; testing writes dots or a dash there."""
    bare = text.rstrip(" .?!:=")
    tail = text[len(bare) :]
    if use == "widening":
        return draw.choice((bare or text, text + tail.strip()[-1:]))
    return (bare or text) + draw.choice((" ...", " -", ";"))


def _few_shot(prompt: Prompt, answered: Sequence[Prompt], draw: random.Random) -> str | None:
    others = [shot for shot in answered if shot.text != prompt.text]
    if len(others) < 2:
        return None
    shown = draw.sample(others, 2)
    return "".join(f"{shot.text}{shot.response}\n" for shot in shown) + prompt.text


_CHANGES: Mapping[str, Callable[[str, Use, random.Random], str]] = {
    "suffix": _suffix,
    "prefix": _prefix,
    "whitespace": _whitespace,
    "case": _case,
    "punctuation": _punctuation,
}
