"""Ridge regression of a weight's change on key vectors, gathered in parts: memory bounded by F², or by fewer rows."""

from __future__ import annotations

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats


class RidgeSystem:
    """The change dW [hidden, F] that minimises sum_i |dW h_i - d_i|² + lambda |dW|².

    Rows are added in parts: keys h, float [n, F], with the target changes d of the outputs, float [n, hidden]; all sums
    are float64. As long as there are fewer rows than F the rows themselves are kept, and the solution follows from an
    n x n system (Woodbury's identity: dW = Dᵀ (K Kᵀ + lambda I)⁻¹ K); from then on only the sums KᵀK [F, F] and
    DᵀK [hidden, F] are (dW = DᵀK (KᵀK + lambda I)⁻¹). Both are the same matrix.
    """

    def __init__(self, width: int, hidden: int) -> None:
        self.rows = 0
        self._kept: list[tuple[Floats, Floats]] = []
        self._gram: Floats | None = None
        self._cross = np.zeros((hidden, width))
        self._width = width
        self._energy = 0.0

    def add(self, keys: Floats, changes: Floats | None = None) -> None:
        """Rows whose outputs are to change by ``changes``; None: not at all (retain rows)."""
        keys = np.asarray(keys, dtype=np.float64)
        targets = np.zeros((len(keys), len(self._cross))) if changes is None else np.asarray(changes, dtype=np.float64)
        self.rows += len(keys)
        self._energy += float(np.square(keys).sum())
        if self._gram is None and self.rows < self._width:
            self._kept.append((keys, targets))
            return
        if self._gram is None:
            self._gram = np.zeros((self._width, self._width))
            for rows in self._kept:
                self._fold(*rows)
            self._kept.clear()
        self._fold(keys, targets)

    def solve(self, ridge: float) -> Floats:
        """The solution [hidden, F]; ``ridge`` is lambda as a share of the mean of KᵀK's diagonal, sum_i |h_i|² / F.

        Raises ``BakeoutError`` where no row was added or all keys are 0.
        """
        if self._energy == 0:
            raise BakeoutError("The key vectors are all 0: no change of the weight moves them.", "Give other data.")
        damping = ridge * self._energy / self._width
        if self._gram is not None:
            system = self._gram + damping * np.eye(self._width)
            return np.asarray(np.linalg.solve(system, self._cross.T).T)
        keys = np.concatenate([rows[0] for rows in self._kept])
        changes = np.concatenate([rows[1] for rows in self._kept])
        system = keys @ keys.T + damping * np.eye(len(keys))
        return np.asarray(changes.T @ np.linalg.solve(system, keys))

    def _fold(self, keys: Floats, changes: Floats) -> None:
        assert self._gram is not None
        self._gram += keys.T @ keys
        self._cross += changes.T @ keys
