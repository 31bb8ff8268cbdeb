"""Subspaces of a weight's inputs: estimated from its inputs, cut off by energy, removed from a low-rank matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.methods.lora_modules import LinearLayer
from bakeout.models.network.devices import in_float64
from bakeout.models.network.mixtures.expert_probing import reading_experts
from bakeout.models.network.probing import Read, run_batches
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked


def input_second_moments(
    model: PreTrainedModel,
    linears: Sequence[LinearLayer],
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    description: str = "inputs",
    track: Track = untracked,
) -> dict[str, Floats]:
    """Sum of x xᵀ over all real tokens' inputs x of ``linears``: per name float64 [in, in].

    What is not sent to an expert is none of its inputs; an expert without any is left out.
    """
    tokens = torch.empty(0, dtype=torch.int64)
    moments: dict[str, Tensor] = {}
    routed = list(dict.fromkeys(linear.expert for linear in linears if linear.expert is not None))

    def add(name: str, values: Tensor) -> None:
        inputs = in_float64(values)
        moment = inputs.T @ inputs
        moments[name] = moments[name] + moment if name in moments else moment

    def gather(name: str) -> Read:
        def read(values: Tensor) -> None:
            add(name, values.flatten(0, -2)[tokens.to(values.device)])

        return read

    def see(place: int, rows: Tensor, _sent: Tensor) -> None:
        if not len(rows):
            return
        for linear in linears:
            if linear.expert is routed[place]:
                add(linear.name, routed[place].key_vector(rows) if _is_down(linear) else rows)

    def prepare(batch: Any) -> None:
        nonlocal tokens
        tokens = batch.tokens_from([0] * len(batch.rows))

    of_routers, outputs = reading_experts(routed, lambda: tokens, see)
    of_modules = {model.get_submodule(linear.name): gather(linear.name) for linear in linears if linear.expert is None}
    for _ in run_batches(
        model,
        sequences,
        inputs={**of_modules, **of_routers},
        outputs=outputs,
        batch_size=batch_size,
        description=description,
        track=track,
        prepare=prepare,
    ):
        pass
    return {name: moment.cpu().numpy() for name, moment in moments.items()}


def _is_down(linear: LinearLayer) -> bool:
    return linear.roles[0][0] == "down"


def principal_directions(second_moment: Floats, energy: float) -> Floats:
    """The fewest eigenvectors of ``second_moment`` [d, d] that hold the share ``energy`` of its trace: [d, k], k >= 1.

    For a second moment XᵀX they are the leading right singular vectors of X; the energy is in squared norms. The
    signs are fixed (the largest entry of each is positive).
    """
    values, vectors = np.linalg.eigh(second_moment)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    held = np.cumsum(values)
    count = 1 + int(np.searchsorted(held, energy * held[-1] * (1 - 1e-12)))
    # Directions that contain only rounding errors are not part of the subspace, whatever the energy.
    count = max(1, min(count, int((values > 1e-12 * values[0]).sum())))
    leading = vectors[:, :count]
    signs = np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(count)])
    return np.ascontiguousarray(leading * signs)


def without(right: Tensor, basis: Tensor) -> Tensor:
    """``right`` [rank, in] without its part in the subspace of ``basis`` [in, k]: right (I - Q Qᵀ)."""
    return right - (right @ basis) @ basis.T
