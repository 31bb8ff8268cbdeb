"""Ridge regression of a weight's change on key vectors, gathered in parts: memory bounded by F², or by fewer rows."""

from __future__ import annotations

import math

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats


class RidgeSystem:
    """The change dW [hidden, F] that minimises sum_i |dW h_i - d_i|² + lambda |dW|².

    Rows are added in parts: keys h, float [n, F], with the target changes d of the outputs, float [n, hidden]; all sums
    are float64. As long as there are fewer rows than F the rows themselves are kept, and the solution follows from an
    n x n system (Woodbury's identity: dW = Dᵀ (K Kᵀ + lambda I)⁻¹ K); from then on only the sums KᵀK [F, F] and
    DᵀK [hidden, F] are (dW = DᵀK (KᵀK + lambda I)⁻¹). Both are the same matrix. Of the rows that are to change, KᵀK is
    summed a second time, for ``missed``.
    """

    def __init__(self, width: int, hidden: int) -> None:
        self.rows = 0
        self._kept: list[tuple[Floats, Floats | None]] = []
        self._gram: Floats | None = None
        self._moved_gram = np.zeros((0, 0))
        self._cross = np.zeros((hidden, width))
        self._width = width
        self._energy = 0.0
        self._asked = 0.0

    def add(self, keys: Floats, changes: Floats | None = None) -> None:
        """Rows whose outputs are to change by ``changes``; None: not at all (retain rows)."""
        keys = np.asarray(keys, dtype=np.float64)
        targets = None if changes is None else np.asarray(changes, dtype=np.float64)
        self.rows += len(keys)
        self._energy += float(np.square(keys).sum())
        self._asked += 0.0 if targets is None else float(np.square(targets).sum())
        self._kept.append((keys, targets))
        if self.rows >= self._width:
            self._fold()

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
        keys = np.concatenate([keys for keys, _ in self._kept])
        changes = np.concatenate(
            [np.zeros((len(keys), len(self._cross))) if targets is None else targets for keys, targets in self._kept]
        )
        system = keys @ keys.T + damping * np.eye(len(keys))
        return np.asarray(changes.T @ np.linalg.solve(system, keys))

    def missed(self, change: Floats) -> float:
        """The share of the target changes' norm that ``change`` [hidden, F] misses, over the rows that are to change.

        From the sums, a difference of numbers of one size, it is known to about 1e-5.
        """
        if self._asked == 0:
            return 0.0
        if self._gram is None:
            pairs = ((keys, targets) for keys, targets in self._kept if targets is not None)
            squares = sum(float(np.square(keys @ change.T - targets).sum()) for keys, targets in pairs)
        else:
            # sum_i |dW h_i - d_i|² = tr(dW KᵀK dWᵀ) - 2 tr(dW (DᵀK)ᵀ) + sum_i |d_i|², over the rows that move.
            squares = float(((change @ self._moved_gram - 2 * self._cross) * change).sum()) + self._asked
        return math.sqrt(max(0.0, squares) / self._asked)

    def _fold(self) -> None:
        """Take the rows that are kept into the sums."""
        if self._gram is None:
            self._gram, self._moved_gram = (np.zeros((self._width, self._width)) for _ in range(2))
        for keys, targets in self._kept:
            products = keys.T @ keys
            self._gram += products
            if targets is not None:
                self._moved_gram += products
                self._cross += targets.T @ keys
        self._kept.clear()
