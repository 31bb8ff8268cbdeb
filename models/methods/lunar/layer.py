"""One layer of LUNAR (arXiv 2502.07218): the change of its ``down``, by ridge regression or by descent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.methods.lunar.gradient import descend
from bakeout.models.methods.lunar.options import GradientOptions
from bakeout.models.methods.lunar.redirection import Redirection
from bakeout.models.methods.lunar.ridge import RidgeSystem
from bakeout.models.methods.lunar.sublayers import Part, Sublayer
from bakeout.models.methods.lunar.token_rows import Probed, TokenRows, probe_rows
from bakeout.models.plan import Floats, Integers
from bakeout.models.progress import Track

# Tokens of which less arrives than this share are asked for no larger change than those of which it does.
_LEAST_REACH = 0.1


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """Find dW with dW h = (target - a) / m on ``forget`` rows and dW h = 0 on ``retain`` rows, for every part.

    h is a row's key vector in the part, a the residual stream behind the block in ``model`` as it is. m is what of the
    layer's parts arrives there: the residual multiplier, or in a mixture the sum over the parts that the token is sent
    to (``reaches``, float64 [rows, parts]). All of these are asked for one change (our reading): where each gives it,
    the stream moves to its target, and no part's solution hangs on another's.
    """

    model: PreTrainedModel
    layer: int
    sublayer: Sublayer
    forget: TokenRows
    redirection: Redirection
    retain: TokenRows
    batch_size: int
    with_experts: bool = False
    reaches: Floats | None = None

    def moving(self, track: Track) -> Iterator[tuple[Part, Integers, Floats, Floats]]:
        """Forget rows, part after part of a batch: their numbers, keys [n, F] and target changes [n, hidden]."""
        for probed in self._probed(self.forget, "forget", track):
            missing = self.redirection.targets[probed.numbers] - probed.residuals[self.layer]
            changes = missing / self._arriving(probed)
            for part in self.sublayer.parts:
                keys = probed.keys[part.number]
                yield part, probed.numbers[keys.places], keys.values, changes[keys.places]

    def staying(self, rows: TokenRows, track: Track) -> Iterator[tuple[Part, Integers, Floats]]:
        """``rows``, some of the retain rows, likewise: their numbers and keys [n, F]."""
        for probed in self._probed(rows, "retain", track):
            for part in self.sublayer.parts:
                keys = probed.keys[part.number]
                yield part, probed.numbers[keys.places], keys.values

    def _arriving(self, probed: Probed) -> float | Floats:
        if self.sublayer.multiplier is not None:
            return self.sublayer.multiplier
        assert self.reaches is not None, "what arrives of a mixture was measured"
        total = np.zeros((len(probed.numbers), 1))
        for column, part in enumerate(self.sublayer.parts):
            places = probed.keys[part.number].places
            total[places, 0] += self.reaches[probed.numbers[places], column]
        return np.maximum(total, _LEAST_REACH)

    def _probed(self, rows: TokenRows, name: str, track: Track) -> Iterator[Probed]:
        return probe_rows(
            self.model,
            rows,
            layers=[self.layer],
            batch_size=self.batch_size,
            description=f"layer {self.layer}: {name}",
            with_experts=self.with_experts,
            track=track,
        )


# dW [hidden, F], and figures for the report.
Solution = tuple[Floats, dict[str, Any]]


def by_regression(problem: LayerProblem, ridge: float, track: Track) -> dict[int, Solution]:
    """The closed form, for each part that a forget row is sent to; its figure is the share of the target changes' norm
    that is missed.
    """
    hidden = problem.sublayer.hidden
    systems = {part.number: RidgeSystem(part.width, hidden) for part in problem.sublayer.parts}
    for part, _, keys, targets in problem.moving(track):
        systems[part.number].add(keys, targets)
    sent = [number for number, system in systems.items() if system.rows]
    for part, _, keys in problem.staying(problem.retain, track):
        systems[part.number].add(keys)
    solutions: dict[int, Solution] = {}
    for number in sent:
        change = systems[number].solve(ridge)
        solutions[number] = change, {"ridge": ridge, "missed": systems[number].missed(change)}
    return solutions


def by_gradient(problem: LayerProblem, options: GradientOptions, seed: int, track: Track) -> dict[int, Solution]:
    """Descent on all forget rows and a draw of the retain rows, for each part that a forget row is sent to; its figures
    are every epoch's loss and the number of retain rows.
    """
    moving = len(problem.forget)
    still = problem.retain.sample(round(options.retain_rows * moving), seed)
    rows: dict[int, list[_Rows]] = {part.number: [] for part in problem.sublayer.parts}
    for part, numbers, keys, changes in problem.moving(track):
        rows[part.number].append((numbers, keys.astype(np.float32), changes.astype(np.float32)))
    sent = {number for number, batches in rows.items() if any(len(batch[0]) for batch in batches)}
    for part, numbers, keys in problem.staying(still, track):
        unmoved = np.zeros((len(keys), problem.sublayer.hidden), dtype=np.float32)
        rows[part.number].append((moving + numbers, keys.astype(np.float32), unmoved))
    solutions: dict[int, Solution] = {}
    for number in sorted(sent):
        ordered = _by_number(rows.pop(number))
        change, losses = descend(*ordered[1:], options, seed=seed, track=track)
        solutions[number] = change, {"losses": losses, "sampled_retain_rows": int((ordered[0] >= moving).sum())}
    return solutions


# Numbers [n], keys [n, F] and target changes [n, hidden].
_Rows = tuple[Integers, NDArray[np.float32], NDArray[np.float32]]


def _by_number(batches: Sequence[_Rows]) -> _Rows:
    numbers, keys, changes = (np.concatenate([batch[place] for batch in batches]) for place in range(3))
    order = np.argsort(numbers)
    return numbers[order], keys[order], changes[order]
