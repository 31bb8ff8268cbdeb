"""One layer of LUNAR (arXiv 2502.07218): the change of its ``down``, by ridge regression or by descent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from bakeout.models.methods.lunar.gradient import descend
from bakeout.models.methods.lunar.options import GradientOptions
from bakeout.models.methods.lunar.redirection import Redirection
from bakeout.models.methods.lunar.ridge import RidgeSystem
from bakeout.models.methods.lunar.token_rows import Probed, TokenRows, probe_rows
from bakeout.models.network.families import FeedForward
from bakeout.models.plan import Floats, Integers
from bakeout.models.progress import Track


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """Find dW with dW h = (target - a) / m on ``forget`` rows and dW h = 0 on ``retain`` rows.

    h is a row's key vector in the layer of ``feed_forward``, a the residual stream behind its block in ``model`` as it
    is, m the residual multiplier.
    """

    model: PreTrainedModel
    feed_forward: FeedForward
    forget: TokenRows
    redirection: Redirection
    retain: TokenRows
    batch_size: int

    def moving(self, track: Track) -> Iterator[tuple[Integers, Floats, Floats]]:
        """Forget rows, batch after batch: their numbers, keys [n, F] and target changes [n, hidden]."""
        layer = self.feed_forward.layer
        for probed in self._probed(self.forget, "forget", track):
            missing = self.redirection.targets[probed.numbers] - probed.residuals[layer]
            yield probed.numbers, probed.keys[layer], missing / self.feed_forward.residual_multiplier

    def staying(self, rows: TokenRows, track: Track) -> Iterator[tuple[Integers, Floats]]:
        """``rows``, some of the retain rows, batch after batch: their numbers and keys [n, F]."""
        for probed in self._probed(rows, "retain", track):
            yield probed.numbers, probed.keys[self.feed_forward.layer]

    def _probed(self, rows: TokenRows, name: str, track: Track) -> Iterator[Probed]:
        layer = self.feed_forward.layer
        description = f"layer {layer}: {name}"
        return probe_rows(
            self.model, rows, layers=[layer], batch_size=self.batch_size, description=description, track=track
        )


def by_regression(problem: LayerProblem, ridge: float, track: Track) -> tuple[Floats, dict[str, Any]]:
    """The closed form: dW [hidden, F], and for the report the share of the target changes' norm that is missed."""
    system = RidgeSystem(problem.feed_forward.width, problem.feed_forward.hidden)
    kept: list[tuple[Floats, Floats]] = []
    for _, keys, targets in problem.moving(track):
        kept.append((keys, targets))
        system.add(keys, targets)
    for _, keys in problem.staying(problem.retain, track):
        system.add(keys)
    change = system.solve(ridge)
    missed = sum(float(np.square(keys @ change.T - targets).sum()) for keys, targets in kept)
    asked = sum(float(np.square(targets).sum()) for _, targets in kept)
    return change, {"ridge": ridge, "missed": math.sqrt(missed / asked) if asked else 0.0}


def by_gradient(
    problem: LayerProblem, options: GradientOptions, seed: int, track: Track
) -> tuple[Floats, dict[str, Any]]:
    """Descent on all forget rows and a draw of the retain rows: dW [hidden, F], and every epoch's loss."""
    moving = len(problem.forget)
    still = problem.retain.sample(round(options.retain_rows * moving), seed)
    keys = np.zeros((moving + len(still), problem.feed_forward.width), dtype=np.float32)
    changes = np.zeros((len(keys), problem.feed_forward.hidden), dtype=np.float32)
    for numbers, batch_keys, batch_changes in problem.moving(track):
        keys[numbers], changes[numbers] = batch_keys, batch_changes
    for numbers, batch_keys in problem.staying(still, track):
        keys[moving + numbers] = batch_keys
    change, losses = descend(keys, changes, options, seed=seed, track=track)
    return change, {"losses": losses, "sampled_retain_rows": len(still)}
