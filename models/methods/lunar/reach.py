"""How much of what a `down` gives arrives in the residual stream behind its block: it is tried, for every token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.lunar.sublayers import sublayers
from bakeout.models.methods.lunar.token_rows import TokenRows, residual_streams
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked

# How far what is added to outputs may be from what arrives, as a share: bfloat16 rounds, a norm distorts.
_ADDED = 0.1


def reaches(
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    layer: int,
    batch_size: int,
    with_experts: bool = False,
    track: Track = untracked,
) -> Floats:
    """What the outputs of a layer's parts are multiplied by before they are added to the stream: [rows, parts].

    A dense FFL's is the architecture's residual multiplier, a shared expert's may be a gate's value, an expert's is
    the router's weight of it. Every part's output is shifted by a vector of its own, all orthogonal, and looked for
    behind the block. Of experts that a token is not sent to nothing arrives.

    Raises ``BakeoutError`` where what arrives is not made of these vectors: a norm follows.
    """
    sublayer = sublayers(model, with_experts=with_experts)[layer]

    def streams() -> Floats:
        return residual_streams(
            model,
            rows,
            layers=[layer],
            batch_size=batch_size,
            description=f"layer {layer}: what arrives",
            with_experts=with_experts,
            track=track,
        )[layer]

    before = streams()
    found = np.empty((len(rows), len(sublayer.parts)))
    # At most as many vectors as there are directions are told apart in one pass.
    for start in range(0, len(sublayer.parts), sublayer.hidden):
        parts = sublayer.parts[start : start + sublayer.hidden]
        drawn = np.random.default_rng(0).standard_normal((sublayer.hidden, len(parts)))
        vectors = np.linalg.qr(drawn)[0] * np.sqrt(np.square(before).sum(axis=1).mean())
        with ExitStack() as shifts:
            for part, vector in zip(parts, vectors.T, strict=True):
                shifts.callback(part.shifted_by(torch.from_numpy(vector).float()).remove)
            moved = streams() - before
        shares = moved @ vectors / np.square(vectors).sum(axis=0)
        strange = np.linalg.norm(moved - shares @ vectors.T, axis=1)
        if (strange > _ADDED * np.linalg.norm(moved, axis=1)).any():
            raise _normalised(model)
        found[:, start : start + len(parts)] = shares
    return found


def require_shiftable(model: PreTrainedModel, prompt: Sequence[int], *, with_experts: bool = False) -> None:
    """Raise ``BakeoutError`` unless what the lowest layer gives is added to the residual stream as it is.

    Where a norm follows (Gemma 2 and 3, OLMo 2, BART), no change of ``down`` shifts the residual stream by a given
    vector.
    """
    expected = sublayers(model, with_experts=with_experts)[0].multiplier
    rows = TokenRows((list(prompt),), (list(range(len(prompt))),))
    found = reaches(model, rows, layer=0, batch_size=1, with_experts=with_experts)
    if expected is not None and np.abs(found - expected).max() > _ADDED * abs(expected):
        raise _normalised(model)


def _normalised(model: PreTrainedModel) -> BakeoutError:
    return BakeoutError(
        f"LUNAR: {model.config.model_type!r} has a norm behind its feed-forward layers, so that no change of "
        "`down` shifts the residual stream by a given vector.",
        "Use Key Space Detection, Neuron Adjust, Selective Pruning or UNLEARN with this model.",
    )
