"""What an adjusting intervention provides: which neurons, by which Gaussians, with which coin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bakeout.models.plan.arrays import (
    Floats,
    Integers,
    PlanError,
    require_ascending,
    require_finite,
    require_layer,
)

Coin = Literal["stochastic", "threshold", "expected"]
# Which tokens Gaussians are of: the answers' alone, or all.
Tokens = Literal["answer", "all"]


@dataclass(frozen=True, eq=False)
class AdjustedLayer:
    """The selected neurons of one layer and the Gaussians of their pre-activations.

    ``neurons``: int64 [n], ascending. The four others: float64 [n], in the unit of the pre-activation; the
    deviations are positive.
    """

    layer: int
    neurons: Integers
    forget_mean: Floats
    forget_deviation: Floats
    retain_mean: Floats
    retain_deviation: Floats

    def __post_init__(self) -> None:
        where = f"Neuron Adjust, layer {self.layer}"
        require_layer(self.layer, where)
        require_ascending(self.neurons, "neurons", where)
        for name in ("forget_mean", "forget_deviation", "retain_mean", "retain_deviation"):
            values = getattr(self, name)
            if values.shape != self.neurons.shape:
                raise PlanError(f"{where}: {name} has shape {values.shape}, not {self.neurons.shape}.")
            require_finite(values, f"{where}: {name}")
        if bool(np.any(self.forget_deviation <= 0)) or bool(np.any(self.retain_deviation <= 0)):
            raise PlanError(f"{where}: a standard deviation is not positive, so the neuron has no density.")

    def log_odds(self, values: Floats) -> Floats:
        """Log p_f(v) - log p_r(v), by the paper's densities: float64 [tokens, n] to the same shape."""

        def log_density(mean: Floats, deviation: Floats) -> Floats:
            return -((values - mean) ** 2) / (2 * deviation**2) - np.log(deviation * math.sqrt(2 * math.pi))

        forget = log_density(self.forget_mean, self.forget_deviation)
        return forget - log_density(self.retain_mean, self.retain_deviation)

    def shifted(self, values: Floats) -> Floats:
        """Values mirrored into the retain set's Gaussian: float64 [tokens, n] to the same shape."""
        return self.retain_mean - self.retain_deviation * (values - self.forget_mean) / self.forget_deviation


class Adjustment:
    """Neurons, by layer (ascending), whose pre-activations are shifted where the forget set's density is the higher."""

    coin: Coin
    layers: tuple[AdjustedLayer, ...]

    @property
    def tokens(self) -> Tokens:
        """Which tokens the Gaussians are of."""
        return "answer"
