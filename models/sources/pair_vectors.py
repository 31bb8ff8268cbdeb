"""The vectors in which two checkpoints differ: norms' weights and biases, wholly and exactly."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from bakeout.models.checkpoint.weight_arithmetic import EDITABLE
from bakeout.models.plan import UpdatedVector
from bakeout.models.plan.attention_modules import block_of, list_of_blocks
from bakeout.models.sources.tensor_file import FileTensor


def updated_vector(
    name: str, before: FileTensor, after: FileTensor, scale: float, lists: Collection[str], last: int
) -> UpdatedVector | None:
    """What was done to the vector that the model calls ``name``, ``scale`` times as large.

    ``lists``: the lists that the model's blocks are in; ``last``: its last block, as whose counts what is in none. None
    for what is no vector of floats, and for one in a block of another list, such as a vision tower's.
    """
    block = block_of(name)
    if len(before.shape) != 1 or before.dtype not in EDITABLE:
        return None
    if block is not None and lists and list_of_blocks(name) not in lists:
        return None
    values = before.values()
    return UpdatedVector(
        last if block is None else block, name, values.astype(np.float32), (after.values() - values) * scale
    )


def unequal_elements(vector: UpdatedVector, after: FileTensor, dtype: str) -> int:
    """How many elements baking, rounded to ``dtype``, gives otherwise than ``after`` has them."""
    sums = (vector.before.astype(np.float64) + vector.added).astype(np.float32)
    return int((sums.astype(EDITABLE[dtype]).astype(np.float64) != after.values()).sum())
