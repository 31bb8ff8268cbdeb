"""The choice of Key Space Detection's layers, cubes, floor and epsilon, on queries that set nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.cubes import Clusters, Cubes, LayerKeys, cluster, joint_keys
from bakeout.models.methods.key_space_detection.detection import least_queries
from bakeout.models.methods.key_space_detection.options import Structure
from bakeout.models.methods.key_space_detection.separation import Auroc, Share, auroc
from bakeout.models.plan import Floats
from bakeout.models.plan.kinds.detection_report import StructureChoice, StructureFigures
from bakeout.models.progress import Track, untracked

# What `auto` tries. As many cubes only as leave each some twenty probe queries to measure deviations on.
CUBES = (1, 2, 4, 8, 16, 32)
FLOORS = (0.1, 0.3, 1.0)
EPSILONS = (0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03)
_QUERIES_A_CUBE = 20
# Cubes in the first comparison of layers.
_FEW = 8
# Depths that `auto` looks at, alone and as neighbours, and how many neighbours jointly.
_DEPTHS = 12
_JOINTLY = 3
# Right answers that may be left of a skill to forget, and lost of any other: what either is measured in.
LEFT, LOST = 0.02, 0.01
# Margins are taken of so many queries at a time, which stay in the cache.
_ROWS = 64

Right = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Candidate:
    """A structure, and what it does on the selection split.

    ``alpha``: per skill to forget, the smallest that holds all but epsilon of its queries. ``missed``: of the skill
    that fares worst, the queries outside; ``refused``: of each name to retain, those inside; both of queries that the
    base model answers rightly. ``auroc``: per name to retain, against the skill that it is told from worst.
    """

    structure: Structure
    alpha: Mapping[str, float]
    missed: Share
    refused: Mapping[str, Share]
    auroc: Mapping[str, Auroc]

    @property
    def worst_auroc(self) -> Auroc:
        """Of the name that is told apart worst."""
        return min(self.auroc.values(), key=lambda area: area.value)

    @property
    def error(self) -> float:
        """The worse of what is missed and what is falsely refused, each in units of what is tolerated."""
        return max(self.missed.value / LEFT, *(share.value / LOST for share in self.refused.values()))

    @property
    def highest_error(self) -> float:
        """The upper end of the error's interval: of what is worst, Clopper-Pearson."""
        ends = [(self.missed.value / LEFT, self.missed.interval()[1] / LEFT)]
        ends += [(share.value / LOST, share.interval()[1] / LOST) for share in self.refused.values()]
        return max(ends)[1]

    @property
    def feared_error(self) -> float:
        """The error if everything were at the upper end of its interval: few queries make it no better."""
        ends = [share.interval()[1] / LOST for share in self.refused.values()]
        return max(self.missed.interval()[1] / LEFT, *ends)

    def figures(self) -> StructureFigures:
        """The candidate as a row of a table."""
        return StructureFigures(
            layers=self.structure.layers,
            cubes=self.structure.cubes,
            floor=self.structure.floor,
            epsilon=self.structure.epsilon,
            alpha=dict(self.alpha),
            missed=self.missed.value,
            refused={name: share.value for name, share in self.refused.items()},
            auroc={name: (area.value, area.low, area.high) for name, area in self.auroc.items()},
            error=self.error,
        )


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and all that were looked at."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]

    def figures(self) -> StructureChoice:
        """The choice with its table, for an intervention's report."""
        return StructureChoice(chosen=self.chosen.figures(), candidates=tuple(one.figures() for one in self.candidates))


def layer_sets(layers: int) -> list[tuple[int, ...]]:
    """What `auto` looks at in a model of so many layers: single ones, and two or three neighbours jointly.

    Of deep models, twelve depths evenly spaced, the last among them.
    """
    depths = sorted({round((index + 1) * layers / min(layers, _DEPTHS)) - 1 for index in range(min(layers, _DEPTHS))})
    return [
        tuple(depths[start : start + jointly])
        for jointly in range(1, _JOINTLY + 1)
        for start in range(len(depths) - jointly + 1)
    ]


def choose_structure(
    probe: Mapping[str, LayerKeys],
    selection: Mapping[str, LayerKeys],
    *,
    layers: Literal["auto"] | Sequence[int],
    cubes: Literal["auto"] | int | Sequence[int],
    floor: Literal["auto"] | float,
    epsilon: Literal["auto"] | float,
    seed: int,
    right: Right | None = None,
    calibration_queries: int | None = None,
    track: Track = untracked,
) -> Choice:
    """Choose the shallowest structure that separates as well as the best, within the best one's confidence interval.

    ``probe``: keys per layer of the skills to forget, ``selection``: fresh ones of these and of the names to retain.
    ``right``: per name, which selection queries the base model answers rightly: a refusal of the others costs nothing.
    Options that are not ``auto`` are kept. ``layers`` auto takes the ``layer_sets`` of all layers that are probed.

    What separates best is what has the lowest error (``Candidate.error``) at the alpha that holds 1 - epsilon of the
    selection queries. As good as the best is what does not exceed the upper end of its Clopper-Pearson interval (nor,
    where the best does not, what is tolerated) and, among these, what has an AUROC, of the worst name, not below the
    lower end of the highest one's interval. Of what is as good, those whose deepest layer is the shallowest are taken
    (an early exit that costs nothing in quality saves the most compute), of these the one of lowest feared error
    (``Candidate.feared_error``), and at the same that of fewest layers and cubes. ``epsilon`` auto tries those that
    ``calibration_queries`` can guarantee; of one structure, it keeps the least that has the lowest feared error.

    To look at everything would take long: all layers are tried with few cubes and a middling floor, and what could
    yet be the best of them with all others.

    Raises ``BakeoutError`` where a skill has no selection queries, or there is nothing to retain.
    """
    retained = [name for name in selection if name not in probe]
    if absent := [skill for skill in probe if skill not in selection]:
        raise BakeoutError(
            f"Key Space Detection: {absent[0]} has no queries to choose by.",
            "Give it a file to select on, or name the layers and the number of cubes.",
        )
    if not retained:
        raise BakeoutError(
            "Key Space Detection: there is nothing to retain that a choice could be held against.",
            "Name retain data, or the layers and the number of cubes.",
        )
    search = _Search(probe, selection, retained, right or {}, _epsilons(epsilon, calibration_queries), seed)
    probed = min(len(next(iter(keys.values()))) for keys in probe.values())
    counts = _counts(cubes, probed)
    floors = FLOORS if floor == "auto" else (floor,)
    sets = _sets(layers, probe)
    few = [count for count in counts if count <= _FEW] or counts[:1]
    middling = floors[len(floors) // 2]
    candidates = search.all(itertools.product(sets, {few[0], few[-1]}, [middling]), track, "comparing layers")
    promising = _promising(candidates, sets)
    candidates += search.all(
        ((layers, count, floor) for layers, count, floor in itertools.product(promising, counts, floors)),
        track,
        "comparing cubes",
    )
    unique = {one.structure: one for one in candidates}
    return Choice(choose(list(unique.values())), tuple(unique.values()))


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The rule of ``choose_structure``."""
    best = min(candidates, key=lambda one: (one.error, -one.worst_auroc.value, one.structure.depth))
    highest = best.highest_error if best.error > 1 else min(best.highest_error, 1.0)
    as_good = [one for one in candidates if one.error <= highest]
    clearest = max(as_good, key=lambda one: one.worst_auroc.value).worst_auroc
    as_good = [one for one in as_good if one.worst_auroc.value >= clearest.low]
    return min(as_good, key=lambda one: (one.structure.depth, one.feared_error, one.structure.size))


class _Search:
    """Candidates of one set of queries. Clusters are kept: floors share them."""

    def __init__(
        self,
        probe: Mapping[str, LayerKeys],
        selection: Mapping[str, LayerKeys],
        retained: Sequence[str],
        right: Right,
        epsilons: Sequence[float],
        seed: int,
    ) -> None:
        self._probe = probe
        self._selection = selection
        self._retained = retained
        self._right = right
        self._epsilons = epsilons
        self._seed = seed
        self._seen: dict[tuple[tuple[int, ...], int, float], Candidate] = {}
        self._clusters: dict[tuple[tuple[int, ...], int], dict[str, Clusters]] = {}

    def all(
        self, settings: Iterable[tuple[tuple[int, ...], int, float]], track: Track, description: str
    ) -> list[Candidate]:
        """The candidates of several (layers, cubes, floor)."""
        todo = list(settings)
        for setting in track(todo, description, len(todo)):
            if setting not in self._seen:
                self._seen[setting] = self._candidate(*setting)
        return [self._seen[setting] for setting in todo]

    def _candidate(self, layers: tuple[int, ...], count: int, floor: float) -> Candidate:
        if (layers, count) not in self._clusters:
            self._clusters[layers, count] = {
                skill: cluster(
                    joint_keys(keys, layers, f"probe queries of {skill}"),
                    skill,
                    layers=len(layers),
                    count=count,
                    seed=self._seed,
                )
                for skill, keys in self._probe.items()
            }
        margins: dict[str, dict[str, Floats]] = {name: {} for name in self._selection}
        for name, keys in self._selection.items():
            joint = joint_keys(keys, layers, f"selection queries of {name}").astype(np.float32)
            for skill, clusters in self._clusters[layers, count].items():
                if name == skill or name in self._retained:
                    margins[name][skill] = nearest_margins(joint, clusters.cubes(floor))
        areas = {
            name: min(
                (auroc(margins[skill][skill], self._counted(name, margins[name][skill])) for skill in self._probe),
                key=lambda area: area.value,
            )
            for name in self._retained
        }
        found = [
            self._at(Structure(layers, count, floor, epsilon), margins, areas) for epsilon in sorted(self._epsilons)
        ]
        return min(found, key=lambda one: one.feared_error)

    def _at(
        self, structure: Structure, margins: Mapping[str, Mapping[str, Floats]], areas: Mapping[str, Auroc]
    ) -> Candidate:
        alpha = {
            skill: float(np.quantile(margins[skill][skill], 1 - structure.epsilon, method="higher"))
            for skill in self._probe
        }
        inside = {
            name: np.any([margins[name][skill] <= alpha[skill] for skill in margins[name]], axis=0)
            for name in self._selection
        }
        counted = {name: self._counted(name, rows) for name, rows in inside.items()}
        missed = [Share(int((~counted[skill]).sum()), len(counted[skill])) for skill in self._probe]
        refused = {name: Share(int(counted[name].sum()), len(counted[name])) for name in self._retained}
        return Candidate(structure, alpha, max(missed, key=lambda share: share.value), refused, areas)

    def _counted(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """What there is of the queries that the base model answers rightly; of all, where it answers none so."""
        right = self._right.get(name)
        return rows if right is None or not right.any() else rows[right]


def nearest_margins(keys: NDArray[np.float32], cubes: Cubes) -> Floats:
    """The margin of each key [n, D] to the nearest cube, in float32, which is what the keys come in: float64 [n]."""
    nearest = np.full(len(keys), np.inf)
    centres, inverses = cubes.centre.astype(np.float32), (1 / cubes.deviation).astype(np.float32)
    for start in range(0, len(keys), _ROWS):
        rows = keys[start : start + _ROWS]
        for centre, inverse in zip(centres, inverses, strict=True):
            away = rows - centre
            np.abs(away, out=away)
            away *= inverse
            np.minimum(nearest[start : start + _ROWS], away.max(axis=1), out=nearest[start : start + _ROWS])
    return nearest


def _promising(candidates: Sequence[Candidate], sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The third of the layer sets that separates best so far, and the one that would be chosen now."""
    lowest = {layers: min(one.error for one in candidates if one.structure.layers == layers) for layers in sets}
    kept = sorted(sets, key=lambda layers: (lowest[layers], layers[-1], len(layers)))[: max(1, -(-len(sets) // 3))]
    return sorted({*kept, choose(candidates).structure.layers})


def _sets(layers: Literal["auto"] | Sequence[int], probe: Mapping[str, LayerKeys]) -> list[tuple[int, ...]]:
    if layers != "auto":
        return [tuple(sorted(set(layers)))]
    available = sorted(set.intersection(*(set(keys) for keys in probe.values())))
    return [tuple(available[index] for index in one) for one in layer_sets(len(available))]


def _counts(cubes: Literal["auto"] | int | Sequence[int], queries: int) -> list[int]:
    if isinstance(cubes, int):
        return [cubes]
    if cubes != "auto":
        return sorted(set(cubes))
    return [count for count in CUBES if count == 1 or count * _QUERIES_A_CUBE <= queries]


def _epsilons(epsilon: Literal["auto"] | float, calibration_queries: int | None) -> list[float]:
    if epsilon != "auto":
        return [epsilon]
    guaranteed = [one for one in EPSILONS if calibration_queries is None or least_queries(one) <= calibration_queries]
    # With too few queries for any, the fit says how many are needed.
    return guaranteed or [EPSILONS[-1]]
