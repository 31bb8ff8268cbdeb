"""What each weight method has forgotten: its plan and its data, for the rows that look at every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import weights_lunar
import weights_pruning
import weights_reveal
import weights_unlearn
from bench import Bench

from bakeout.models.data.rows import Record
from bakeout.models.plan import Plan
from bakeout.models.skills.generator import SKILLS

# The share of neurons cut off in these rows.
PRUNED = ("math", 0.2)
_ROWS = 100


@dataclass(frozen=True)
class Forgotten:
    """A method's plan, and what it forgets: ``forget`` to learn it again from, ``asked`` to see what is back.

    ``retain`` is what else the model knows. All of ``asked`` are test prompts; those of LUNAR are about five of the
    ten people, ``forget`` is about the other five.
    """

    method: str
    subject: str
    plan: Callable[[], Plan]
    forget: list[Record]
    asked: list[Record]
    retain: list[Record]


def forgotten(bench: Bench) -> Iterator[Forgotten]:
    """Every weight method that forgets."""
    yield _people(bench, "closed form")
    request = weights_unlearn.REQUESTS[1]
    yield _skill(bench, "UNLEARN", request[0][0], lambda: weights_unlearn.fitted(bench, request))
    yield _skill(bench, "Reveal-and-Release", weights_reveal.FORGOTTEN, lambda: weights_reveal.fitted(bench))
    skill, ratio = PRUNED
    yield _skill(
        bench,
        f"Selective Pruning, p = {ratio:.0%}",
        skill,
        lambda: weights_pruning.pruned(bench, skill, ratio, weights_pruning.probed(bench)),
    )
    yield _people(bench, "gradient")


def _skill(bench: Bench, method: str, skill: str, plan: Callable[[], Plan]) -> Forgotten:
    retain = [record for name in SKILLS if name != skill for record in bench.records(name, "probing", _ROWS)]
    forget = bench.records(skill, "probing", _ROWS)
    return Forgotten(method, skill, plan, forget, bench.records(skill, "test", _ROWS), retain)


def _people(bench: Bench, solver: str) -> Forgotten:
    learned, asked = weights_lunar.FIRST[:5], weights_lunar.FIRST[5:]
    facts = bench.records("facts", "probing")
    skills = [record for name in SKILLS if name != "facts" for record in bench.records(name, "probing", _ROWS)]
    return Forgotten(
        f"LUNAR, {solver}",
        "ten people",
        lambda: weights_lunar.fitted(bench, solver, weights_lunar.training_data(bench)),
        weights_lunar.about(facts, learned),
        weights_lunar.about(bench.records("facts", "test"), asked),
        skills + weights_lunar.about(facts, weights_lunar.NAMES[10:])[:_ROWS],
    )
