"""A change of a weight as two factors of the least rank that keeps nearly all of it."""

from __future__ import annotations

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats, Floats32


def truncated(change: Floats, share: float) -> tuple[Floats32, Floats32, float]:
    """``left`` [out, rank], ``right`` [rank, in], float32, and the share of the Frobenius norm that they leave out.

    The rank is the least, 1 at the least, that leaves out at most ``share`` of the norm of ``change`` [out, in]; the
    factors share the singular values evenly. Their signs are fixed, so that the same change gives the same bytes.
    Raises ``BakeoutError`` where ``change`` is 0 or not finite.
    """
    if not np.isfinite(change).all():
        raise BakeoutError("The change of a weight holds NaN or infinite values.", "Probe again, in float32.")
    left, values, right = np.linalg.svd(change, full_matrices=False)
    if values[0] == 0:
        raise BakeoutError("The change of a weight is 0: the edit would do nothing.", "Look at the data and options.")
    # What is left out after rank 1, 2, …; the sum from the smallest value up keeps its digits.
    left_out = np.sqrt(np.append(np.cumsum(np.square(values[:0:-1]))[::-1], 0.0)) / np.linalg.norm(values)
    # Values that are rounding are no rank.
    rank = 1 + int(np.argmax(left_out <= max(share, 1e-12)))
    signs = np.sign(left[np.abs(left[:, :rank]).argmax(axis=0), np.arange(rank)])
    scale = np.sqrt(values[:rank])
    factors = left[:, :rank] * (signs * scale), right[:rank] * (signs * scale)[:, None]
    return factors[0].astype(np.float32), factors[1].astype(np.float32), float(left_out[rank - 1])
