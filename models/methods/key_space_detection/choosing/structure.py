"""The choice of Key Space Detection's regions: shape, layers, number, floor, epsilon, on queries of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.choosing.candidate import Candidate, Choice
from bakeout.models.methods.key_space_detection.choosing.unseen_forms import Forms
from bakeout.models.methods.key_space_detection.cubes import (
    Clusters,
    LayerKeys,
    cluster,
    joint_keys,
    require_dimension,
    stacked_keys,
)
from bakeout.models.methods.key_space_detection.detection import queries_beyond
from bakeout.models.methods.key_space_detection.options import Region, Structure
from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.registry import FITTERS
from bakeout.models.methods.key_space_detection.separation import Auroc, Share, auroc, distance, harmonic_mean
from bakeout.models.plan import Floats, Floats32, Keys
from bakeout.models.progress import Track, untracked

# The values that `auto` tries. The number of cubes is limited so that each has about twenty probe queries, on which
# its deviations are measured.
CUBES = (1, 2, 4, 8, 16, 32)
FLOORS = (0.1, 0.3, 1.0)
# Calibration queries that `epsilon: auto` leaves beyond alpha, if there are enough: the farthest of all says little of
# the others, and alpha must not go wherever it lies.
SPARE = 2
EPSILONS = (0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03)
_QUERIES_A_CUBE = 20
# Of shapes that do equally well, the first is taken.
_PREFERENCE = list(FITTERS)
# What separates the selection queries by a hair does not separate others: a structure whose distance is at least this
# is taken before all others that separate as well.
CLEAR = 2.0
# Cubes in the first comparison of layers.
_FEW = 8
# How many depths `auto` examines, and how many neighbours among them jointly.
_DEPTHS = 12
_NEIGHBOURS = 3
Correct = Mapping[str, NDArray[np.bool_]]
# By name the margins of its queries to the regions of each skill that they are held against.
_Margins = dict[str, dict[str, Floats]]
# Shape, layers, regions a skill, and floor.
_Setting = tuple[Region, tuple[int, ...], int, float]


def layer_sets(layers: int) -> list[tuple[int, ...]]:
    """The sets of layers that `auto` examines: single layers, two or three neighbours jointly, and all of them.

    Deep models are examined at twelve evenly spaced depths, which include the last layer.
    """
    depths = sorted({round((index + 1) * layers / min(layers, _DEPTHS)) - 1 for index in range(min(layers, _DEPTHS))})
    sizes = sorted({*range(1, min(_NEIGHBOURS, len(depths)) + 1), len(depths)})
    return [tuple(depths[start : start + jointly]) for jointly in sizes for start in range(len(depths) - jointly + 1)]


def choose_structure(
    probe: Mapping[str, LayerKeys],
    selection: Mapping[str, LayerKeys],
    *,
    region: Literal["auto"] | Region = "cube",
    against: Mapping[str, LayerKeys] | None = None,
    forms: Forms | None = None,
    layers: Literal["auto"] | Sequence[int],
    cubes: Literal["auto"] | int | Sequence[int],
    floor: Literal["auto"] | float,
    epsilon: Literal["auto"] | float,
    seed: int,
    keys: Keys = "key_vector",
    blocks: Sequence[int] | None = None,
    correct: Correct | None = None,
    calibration_queries: int | None = None,
    track: Track = untracked,
) -> Choice:
    """Choose a structure that separates as well as the best: the shallowest, or of half-spaces the farthest.

    ``probe``: keys per layer of the skills to forget, ``selection``: fresh ones of these and of the names to retain,
    ``against``: other keys of the names to retain, for shapes that are fitted against them. All are ``keys`` of one
    kind; ``joint_choice`` chooses among several. ``forms``: of all these queries, where they were drawn. ``blocks``:
    the number of every layer's block, where it is another than the layer's: kinds that are counted apart are compared
    by it. ``correct``: per name, which selection queries the base model answers correctly, some of them: refusing the
    others costs nothing.
    Options that are not ``auto`` are kept. ``layers`` auto takes the ``layer_sets`` of all layers that are probed.

    The best candidate has the lowest error (``Candidate.error``) at the alpha that contains 1 - epsilon of the
    selection queries. A candidate is as good as the best if its error does not exceed the upper end of the best one's
    Clopper-Pearson interval (nor the tolerated error, if the best one does not exceed that) and if the AUROC of its
    worst name is not below the lower end of the interval of the highest such AUROC. Neither tells a gap from a hair: of
    those as good as the best the ones are taken whose ``distance`` from the nearest name is at least ``CLEAR``, if
    there are any. Among these, those of one shape are taken: the cube if any of them is one, or else the next that
    ``FITTERS`` has. A half-space can hold anything that looks unlike the retained data, so of half-spaces the one is
    taken whose ``distance`` from the nearest name is the largest: with ``forms`` the harmonic mean of the distance in
    forms that it was fitted to, which tells strangers apart, and of that in forms that it was not, which tells how it
    does in words that nobody fitted (our reading, measured in examples/benchmarks/README.md). Of other shapes the ones
    whose deepest layer is the shallowest are taken (an early exit that costs no quality saves the most compute); among
    these the one of lowest feared error (``Candidate.feared_error``), then the one of fewest layers and cubes.
    ``epsilon`` auto tries the values that ``calibration_queries`` can guarantee, with ``SPARE`` of them beyond alpha
    where there are enough, and keeps for each structure the smallest one with the lowest feared error.

    Not every combination is tried, because that would take long: all layers are tried with few cubes and a medium
    floor, and those that could still be the best with all other settings.

    Raises ``BakeoutError`` if a skill has no selection queries, or if there is nothing to retain.
    """
    retained = [name for name in selection if name not in probe]
    if absent := [skill for skill in probe if skill not in selection]:
        raise BakeoutError(
            f"Key Space Detection: {absent[0]} has no queries to choose by.",
            "Give it a file to select on, or name the layers and the number of cubes.",
        )
    require_retained(retained)
    search = _Search(
        probe,
        against or {},
        forms,
        selection,
        retained,
        correct or {},
        _epsilons(epsilon, calibration_queries),
        seed,
        keys,
        blocks,
    )
    probed = min(len(next(iter(keys.values()))) for keys in probe.values())
    candidates: list[Candidate] = []
    for shape in _shapes(region, against):
        sets = _sets(layers, probe, FITTERS[shape])
        counts = _counts(cubes, probed, FITTERS[shape].counts)
        floors = _floors(floor, FITTERS[shape])
        few = [count for count in counts if count <= _FEW] or counts[:1]
        middling = floors[len(floors) // 2]
        alike = search.all(
            itertools.product([shape], sets, {few[0], few[-1]}, [middling]), track, f"comparing layers, {shape}"
        )
        promising = _promising(alike, sets)
        settings = itertools.product([shape], promising, counts, floors)
        candidates += alike + search.all(settings, track, f"comparing regions, {shape}")
    unique = {candidate.structure: candidate for candidate in candidates}
    return Choice(choose(list(unique.values())), tuple(unique.values()))


def require_retained(names: Sequence[str]) -> None:
    """Raise ``BakeoutError`` where no ``names`` are to be retained: structures are compared by what they spare."""
    if not names:
        raise BakeoutError(
            "Key Space Detection: there is nothing to retain, which a choice needs for comparison.",
            "Name retain data, or the layers and the number of cubes.",
        )


def joint_choice(choices: Sequence[Choice]) -> Choice:
    """The choice among all candidates of several kinds of keys, by the same rule as among layers."""
    candidates = tuple(candidate for choice in choices for candidate in choice.candidates)
    return Choice(choose(candidates), candidates)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The rule of ``choose_structure``."""
    best = min(candidates, key=lambda candidate: (candidate.error, -candidate.worst_auroc.value, candidate.place))
    highest = best.highest_error if best.error > 1 else min(best.highest_error, 1.0)
    as_good = [candidate for candidate in candidates if candidate.error <= highest]
    clearest = max(as_good, key=lambda candidate: candidate.worst_auroc.value).worst_auroc
    as_good = [candidate for candidate in as_good if candidate.worst_auroc.value >= clearest.low]
    as_good = [candidate for candidate in as_good if candidate.least_distance >= CLEAR] or as_good
    preferred = min(as_good, key=lambda candidate: _PREFERENCE.index(candidate.structure.region)).structure.region
    alike = [candidate for candidate in as_good if candidate.structure.region == preferred]
    if FITTERS[preferred].needs_retained:
        return min(alike, key=lambda candidate: (-candidate.least_distance, candidate.place, candidate.structure.size))
    return min(alike, key=lambda candidate: (candidate.place, candidate.feared_error, candidate.structure.size))


@dataclass(frozen=True, eq=False)
class _Joint:
    """The keys of some layers side by side, by name [queries, D], and all to fit against [n, D], if there are any.

    In float32, as they were probed: a choice among many need not be more exact.
    """

    layers: tuple[int, ...]
    probe: Mapping[str, Floats32]
    against: Floats32 | None
    selection: Mapping[str, Floats32]


class _Search:
    """Candidates of one set of queries. Clusters are kept: floors share them."""

    def __init__(
        self,
        probe: Mapping[str, LayerKeys],
        against: Mapping[str, LayerKeys],
        forms: Forms | None,
        selection: Mapping[str, LayerKeys],
        retained: Sequence[str],
        correct: Correct,
        epsilons: Sequence[float],
        seed: int,
        keys: Keys,
        blocks: Sequence[int] | None,
    ) -> None:
        self._probe = probe
        self._against = against
        self._forms = forms
        self._selection = selection
        self._retained = retained
        self._correct = correct
        self._epsilons = epsilons
        self._seed = seed
        self._keys = keys
        self._blocks = blocks
        self._seen: dict[_Setting, Candidate] = {}
        self._clusters: dict[tuple[tuple[int, ...], int], dict[str, Clusters]] = {}
        self._latest: _Joint | None = None

    def all(self, settings: Iterable[_Setting], track: Track, description: str) -> list[Candidate]:
        """The candidates of several settings."""
        todo = list(settings)
        for setting in track(todo, description, len(todo)):
            if setting not in self._seen:
                self._seen[setting] = self._candidate(*setting)
        return [self._seen[setting] for setting in todo]

    def _candidate(self, region: Region, layers: tuple[int, ...], count: int, floor: float) -> Candidate:
        fitter = FITTERS[region]
        probed = dict(self._probed(fitter, layers, count))
        joint = self._joint(layers).selection
        margins: _Margins = {name: {} for name in joint}
        for skill, own in probed.items():
            regions = fitter.fit(own, floor)
            for name, keys in joint.items():
                if name == skill or name in self._retained:
                    margins[name][skill] = fitter.nearest(keys, regions)
        pairs = self._pairs(margins)
        areas = {name: min((auroc(*pair) for pair in own), key=lambda area: area.value) for name, own in pairs.items()}
        distances = {name: min(distance(*pair) for pair in own) for name, own in pairs.items()}
        if fitter.refits is not None and self._forms is not None:
            unseen = self._pairs(self._unseen(fitter, probed, joint, margins))
            distances = {
                name: harmonic_mean(seen, min(distance(*pair) for pair in unseen[name]))
                for name, seen in distances.items()
            }
        candidates = [
            self._at(Structure(layers, count, floor, epsilon, region, self._keys), margins, areas, distances)
            for epsilon in sorted(self._epsilons)
        ]
        return min(candidates, key=lambda candidate: candidate.feared_error)

    def _pairs(self, margins: _Margins) -> dict[str, list[tuple[Floats, Floats]]]:
        """For each name to retain: each skill's margins to its own regions, and the name's margins to these."""
        return {
            name: [(margins[skill][skill], self._counted(name, margins[name][skill])) for skill in self._probe]
            for name in self._retained
        }

    def _unseen(
        self, fitter: Fitter, probed: Mapping[str, Probed], joint: Mapping[str, Floats32], margins: _Margins
    ) -> _Margins:
        """``margins`` with each query in a drawn form judged by regions that were fitted without its group of forms.

        Where too few queries are left to fit, it stays as it is.
        """
        refits_of, forms = fitter.refits, self._forms
        assert refits_of is not None and forms is not None
        unseen: _Margins = {name: {skill: rows.copy() for skill, rows in own.items()} for name, own in margins.items()}
        for skill, own in probed.items():
            splits = list(forms.splits(skill))
            if not splits:
                continue
            judged = {name: keys for name, keys in joint.items() if skill in unseen[name]}
            refits = refits_of(own, judged)
            for split in splits:
                fitted = refits.fitted(split.probe, split.against)
                if fitted is None:
                    continue
                for name in judged:
                    if len(rows := split.judged[name]):
                        unseen[name][skill][rows] = fitted(name, rows)
        return unseen

    def _probed(self, fitter: Fitter, layers: tuple[int, ...], count: int) -> Iterator[tuple[str, Probed]]:
        """What each skill's regions are fitted to."""
        joint = self._joint(layers)
        clusters = self._clusters.setdefault((layers, count), {})
        for skill, keys in joint.probe.items():
            if skill not in clusters:
                clusters[skill] = cluster(keys, skill, layers=len(layers), count=count, seed=self._seed)
            yield skill, Probed(keys, clusters[skill], joint.against if fitter.needs_retained else None, np.float32)

    def _joint(self, layers: tuple[int, ...]) -> _Joint:
        """The keys of some layers. Those of the latest are kept: settings of the same layers follow each other."""
        if self._latest is None or self._latest.layers != layers:

            def joint(queries: Mapping[str, LayerKeys], use: str) -> dict[str, Any]:
                return {
                    name: joint_keys(keys, layers, f"{use} queries of {name}", np.float32)
                    for name, keys in queries.items()
                }

            # The latest ones' memory is free before the next are read.
            self._latest = None
            probe = joint(self._probe, "probe")
            against = stacked_keys(self._against, layers, "probe", np.float32) if self._against else None
            if against is not None:
                require_dimension(against, next(iter(probe.values())).shape[1], "retained queries")
            self._latest = _Joint(layers, probe, against, joint(self._selection, "selection"))
        return self._latest

    def _at(
        self,
        structure: Structure,
        margins: _Margins,
        areas: Mapping[str, Auroc],
        distances: Mapping[str, float],
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
        deepest = structure.layers[-1]
        return Candidate(
            structure,
            block=deepest if self._blocks is None else self._blocks[deepest],
            alpha=alpha,
            missed=max(missed, key=lambda share: share.value),
            refused=refused,
            auroc=areas,
            distance=distances,
        )

    def _counted(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """The queries that the base model answers correctly; all of a name of which that is not told."""
        correct = self._correct.get(name)
        return rows if correct is None else rows[correct]


def _promising(candidates: Sequence[Candidate], sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The third of the layer sets that has separated best so far, and the one that would be chosen now."""
    lowest = {
        layers: min(candidate.error for candidate in candidates if candidate.structure.layers == layers)
        for layers in sets
    }
    kept = sorted(sets, key=lambda layers: (lowest[layers], layers[-1], len(layers)))[: max(1, -(-len(sets) // 3))]
    return sorted({*kept, choose(candidates).structure.layers})


def _sets(
    layers: Literal["auto"] | Sequence[int], probe: Mapping[str, LayerKeys], fitter: Fitter
) -> list[tuple[int, ...]]:
    if layers != "auto":
        return [tuple(sorted(set(layers)))]
    available = sorted(set.intersection(*(set(keys) for keys in probe.values())))
    some = next(iter(probe.values()))
    sets = [tuple(available[index] for index in places) for places in layer_sets(len(available))]
    # Keys of several widths are not tested jointly.
    sets = [own for own in sets if len({some[layer].shape[1] for layer in own}) == 1]
    return sets if fitter.everywhere else [own for own in sets if len(own) <= _NEIGHBOURS]


def _counts(cubes: Literal["auto"] | int | Sequence[int], queries: int, most: int) -> list[int]:
    if isinstance(cubes, int):
        return [cubes]
    if cubes != "auto":
        return sorted(set(cubes))
    return [count for count in CUBES if count == 1 or (count <= most and count * _QUERIES_A_CUBE <= queries)]


def _shapes(region: Literal["auto"] | Region, against: Mapping[str, LayerKeys] | None) -> list[Region]:
    """The shapes to try, in order of preference."""
    if region != "auto":
        return [region]
    return [fitter.name for fitter in FITTERS.values() if against or not fitter.needs_retained]


def _floors(floor: Literal["auto"] | float, fitter: Fitter) -> Sequence[float]:
    if floor != "auto":
        return (floor,)
    return FLOORS if fitter.uses_floor else (0.0,)


def _epsilons(epsilon: Literal["auto"] | float, calibration_queries: int | None) -> list[float]:
    if epsilon != "auto":
        return [epsilon]
    if calibration_queries is None:
        return list(EPSILONS)
    beyond = {value: queries_beyond(value, calibration_queries) for value in EPSILONS}
    guaranteed = [value for value, queries in beyond.items() if queries >= 0]
    steady = [value for value in guaranteed if beyond[value] >= SPARE]
    # With too few queries for any of them, the error of the fit gives the number needed.
    return steady or guaranteed or [EPSILONS[-1]]
