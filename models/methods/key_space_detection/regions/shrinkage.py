"""Ledoit and Wolf's shrinkage of a covariance (2004), for more dimensions than rows: no D x D matrix is formed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bakeout.models.plan import Floats


@dataclass(frozen=True)
class Shrinkage:
    """The estimate (1 - ``share``) * S + ``share`` * ``variance`` * I from the covariance S (divided by n)."""

    share: float
    variance: float


def ledoit_wolf(products: Floats, dimensions: int) -> Shrinkage:
    """The shrinkage of least expected squared error, from the ``products`` [n, n] of centred rows with each other.

    ``sklearn.covariance.ledoit_wolf`` gives the same of the rows.
    """
    rows = len(products)
    squares = np.diag(products)
    variance = float(squares.sum() / rows / dimensions)
    # Squared Frobenius norms, D times too large each: of S, and the sum over rows of x x^T.
    of_covariance = float((products**2).sum() / rows**2)
    spread = of_covariance - dimensions * variance**2
    error = (float((squares**2).sum() / rows) - of_covariance) / rows
    if error <= 0 or spread <= 0:
        return Shrinkage(0.0, variance)
    return Shrinkage(min(error / spread, 1.0), variance)
