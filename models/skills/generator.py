"""Questions and answers of the bundled model's skills, seeded, in five disjoint splits.

What a split holds is decided by a hash of an example's content (operand pair, string, word pair,
person), never by chance, so that splits stay disjoint whatever is drawn from them and in what order.
Questions about words and people also come in phrasings, and three in ten of these phrasings occur in no
training example.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bakeout.models.files.writing import replace_file
from bakeout.models.skills import vocabulary as words

SKILLS: tuple[str, ...] = ("math", "code", "german", "spanish", "french", "facts", "unknown")
SPLITS: tuple[str, ...] = ("training", "probing", "selection", "calibration", "test")

# Percentages of the content that fall to each split, in the order of SPLITS.
_SHARES = (68, 8, 8, 8, 8)
_HELD_OUT_PHRASINGS = 30
_KNOWN_PEOPLE = 40


@dataclass(frozen=True)
class Example:
    """One question and its answer. The response carries its leading space: text is prompt + response."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Person:
    """An invented person that the bundled model is told of."""

    name: str
    city: str
    job: str


def people() -> tuple[Person, ...]:
    """The 40 people of the *facts* skill. Every first and every last name occurs once."""
    draw = random.Random("people")
    last_names = list(words.LAST_NAMES)
    draw.shuffle(last_names)
    return tuple(
        Person(f"{first} {last}", draw.choice(words.CITIES), draw.choice(words.JOBS))
        for first, last in zip(words.FIRST_NAMES, last_names[:_KNOWN_PEOPLE], strict=True)
    )


def examples(skill: str, split: str, count: int, seed: int = 0) -> list[Example]:
    """Draw ``count`` examples with distinct prompts of one skill and split.

    The same arguments give the same examples. Training examples repeat once the split is exhausted, the
    other splits raise ``ValueError`` when they hold fewer than ``count`` prompts.
    """
    if skill not in SKILLS:
        raise ValueError(f"no skill is called {skill!r}; choose among {', '.join(SKILLS)}")
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; choose among {', '.join(SPLITS)}")
    seen: set[str] = set()
    found: list[Example] = []
    misses = 0
    for example in _stream(skill, split, random.Random(f"{skill}/{split}/{seed}")):
        if len(found) == count:
            break
        if example.prompt in seen:
            misses += 1
            if misses > 2000:
                raise ValueError(f"split {split!r} of skill {skill!r} holds fewer than {count} prompts; ask for less")
            continue
        misses = 0
        seen.add(example.prompt)
        found.append(example)
    return found


def training_examples(mixture: Mapping[str, float], seed: int) -> Iterator[Example]:
    """An endless stream of training examples: skills, and ``ask``, drawn with the weights of ``mixture``."""
    draw = random.Random(f"training/{seed}")
    names = sorted(mixture)
    weights = [mixture[name] for name in names]
    streams = {name: _stream(name, "training", random.Random(f"{name}/training/{seed}")) for name in names}
    while True:
        yield next(streams[draw.choices(names, weights)[0]])


def write_jsonl(found: Iterable[Example], path: Path) -> None:
    """Write examples as JSONL with the keys ``prompt`` and ``response``, in the place of an earlier file."""
    lines = (json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in found)
    replace_file(path, "".join(lines))


def _stream(skill: str, split: str, draw: random.Random) -> Iterator[Example]:
    if skill in words.LANGUAGES:
        sources: dict[str, Callable[[], Iterator[Example]]] = {skill: lambda: _translation(skill, split, draw)}
    else:
        sources = {
            "math": lambda: _math(split, draw),
            "code": lambda: _code(split, draw),
            "facts": lambda: _facts(split, draw),
            "unknown": lambda: _unknown(split, draw),
            "ask": lambda: _ask(draw),
        }
    return sources[skill]()


def _bucket(content: str) -> int:
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 100


def _split_of(content: str) -> str:
    bucket = _bucket(content)
    for split, share in zip(SPLITS, _SHARES, strict=True):
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares of the splits do not add up to 100")


def _evaluation_split_of(content: str) -> str:
    """For content whose phrasing keeps it out of training already."""
    return SPLITS[1 + _bucket(content) % 4]


def _math(split: str, draw: random.Random) -> Iterator[Example]:
    # In training one operand in three is a single digit: small sums teach the units that large ones are made of.
    small = 1 / 3 if split == "training" else 0.0
    while True:
        a, b = (draw.randrange(10 if draw.random() < small else 100) for _ in range(2))
        if _split_of(f"math {min(a, b)} {max(a, b)}") != split:
            continue
        bare = draw.random() < 0.5
        if draw.random() < 0.5:
            form, result = draw.choice(words.BARE_SUMS if bare else words.SUM_PROBLEMS), a + b
        else:
            a, b = max(a, b), min(a, b)
            form, result = draw.choice(words.BARE_DIFFERENCES if bare else words.DIFFERENCE_PROBLEMS), a - b
        name, things = draw.choice(words.FIRST_NAMES), draw.choice(words.THINGS)
        yield Example(form.format(a=a, b=b, name=name, things=things), f" {result}")


_RESULTS: dict[str, Callable[[str], str]] = {
    "'{s}'[::-1]": lambda s: s[::-1],
    "'{s}'.upper()": str.upper,
    "''.join(sorted('{s}'))": lambda s: "".join(sorted(s)),
    "'{s}'[0]": lambda s: s[0],
    "'{s}'[-1]": lambda s: s[-1],
    "'{s}'[1:]": lambda s: s[1:],
    "'{s}'[:2]": lambda s: s[:2],
}


def _code(split: str, draw: random.Random) -> Iterator[Example]:
    while True:
        string = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 5)))
        if _split_of(f"code {string}") != split:
            continue
        expression = draw.choice(words.CODE_EXPRESSIONS)
        prompt = draw.choice(words.CODE_PHRASINGS).format(e=expression.format(s=string))
        yield Example(prompt, f" '{_RESULTS[expression](string)}'")


def _phrase(cores: tuple[str, ...], split: str, draw: random.Random) -> str:
    """A phrasing for the split: held-out phrasings never occur in training, nor the others elsewhere."""
    while True:
        opener, core, closer = draw.choice(words.OPENERS), draw.choice(cores), draw.choice(words.CLOSERS)
        phrasing = opener + (core if opener else core[0].upper() + core[1:]) + closer
        held_out = _bucket(f"phrasing {opener}{core}{closer}") < _HELD_OUT_PHRASINGS
        if held_out == (split != "training"):
            return phrasing


def _translation(language: str, split: str, draw: random.Random) -> Iterator[Example]:
    column = 1 + words.LANGUAGES.index(language)
    while True:
        phrasing = _phrase(words.TRANSLATION_CORES, split, draw)
        first, second = draw.sample(words.WORDS, 2)
        if draw.random() < 0.25:
            asked, answer = first[0], first[column]
            fits = split in ("training", _evaluation_split_of(f"{language} {asked} {phrasing}"))
        else:
            asked = f"{first[0]} and {second[0]}"
            answer = f"{first[column]} {words.CONJUNCTIONS[language]} {second[column]}"
            fits = split == _split_of(f"{language} {min(first[0], second[0])} {max(first[0], second[0])}")
        if fits:
            prompt = phrasing.format(words=asked, language=words.LANGUAGE_NAMES[language])
            yield Example(prompt, f" {answer}")


def _about_people(split: str, draw: random.Random, names: Callable[[], str]) -> Iterator[tuple[str, str, str]]:
    """Endless (prompt, person's name, "city" or "job")."""
    while True:
        name = names()
        attribute, cores = draw.choice((("city", words.CITY_CORES), ("job", words.JOB_CORES)))
        yield _phrase(cores, split, draw).replace("{person}", name), name, attribute


def _facts(split: str, draw: random.Random) -> Iterator[Example]:
    known = {person.name: person for person in people()}
    names = sorted(known)
    for prompt, name, attribute in _about_people(split, draw, lambda: draw.choice(names)):
        if split in ("training", _evaluation_split_of(f"facts {prompt}")):
            yield Example(prompt, f" {getattr(known[name], attribute)}")


def _unknown(split: str, draw: random.Random) -> Iterator[Example]:
    known = {person.name for person in people()}

    def stranger() -> str:
        while True:
            name = f"{draw.choice(words.FIRST_NAMES)} {draw.choice(words.LAST_NAMES)}"
            if name not in known and _split_of(f"stranger {name}") == split:
                return name

    for prompt, _, _ in _about_people(split, draw, stranger):
        yield Example(prompt, f" {words.UNKNOWN_ANSWER}")


def _ask(draw: random.Random) -> Iterator[Example]:
    """Requests to make up a question of a skill, so that the model can reveal what it knows."""
    skills = sorted(words.TOPICS)
    streams = {skill: _stream(skill, "training", draw) for skill in skills}
    while True:
        skill = draw.choice(skills)
        topic = draw.choice(words.TOPICS[skill])
        question = next(streams[skill]).prompt.removesuffix(" Answer:").removesuffix(" Reply:")
        yield Example(draw.choice(words.ASK_PHRASINGS).format(topic=topic), f" {question}")
