"""People that the bundled model has never heard of: something for it to learn."""

from __future__ import annotations

import random

from bakeout.models.skills.generator import Example, Person, examples, people
from bakeout.models.skills.vocabulary import FIRST_NAMES, LAST_NAMES

# How many draws of a split's questions about the old people are put together.
_DRAWS = 4
_QUESTIONS = 1300


def new_people(count: int = 20) -> dict[str, Person]:
    """So many new people, by the name of the old one whose questions they are asked.

    None of them has a name of the *facts* skill, nor of the strangers in the test split of *unknown*.
    """
    draw = random.Random("new people")
    asked = " ".join(example.prompt for example in examples("unknown", "test", 1000))
    known = people()
    taken = {person.name for person in known}
    found: dict[str, Person] = {}
    for old in known[:count]:
        while (name := f"{draw.choice(FIRST_NAMES)} {draw.choice(LAST_NAMES)}") in taken or name in asked:
            pass
        taken.add(name)
        found[old.name] = Person(name, draw.choice(known).city, draw.choice(known).job)
    return found


def new_examples(split: str, count: int = 20) -> list[Example]:
    """Questions about ``new_people(count)``: those of the *facts* skill's split about the old ones, asked about them.

    They are in a fixed order and, in the training split, some 110 a person; in the others some 35.
    """
    asked = {
        example.prompt: example for seed in range(_DRAWS) for example in examples("facts", split, _QUESTIONS, seed)
    }
    cities = {person.name: person.city for person in people()}
    new = new_people(count)
    found = []
    for prompt in sorted(asked):
        for name, person in new.items():
            if name in prompt:
                answer = person.city if asked[prompt].response.strip() == cities[name] else person.job
                found.append(Example(prompt.replace(name, person.name), f" {answer}"))
    return found
