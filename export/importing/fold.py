"""A direction projected out of what blocks write, as weights: W becomes W - v (v W) where W writes, which is of rank 1.

This is not the projection behind a block: there, a feed-forward layer reads what its block's attention wrote along the
direction, and what the embedding put into the stream is removed too. Folded, neither attention nor feed-forward layers
write along the direction (arXiv 2406.11717, appendix on weight orthogonalisation, but for the embedding).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import read_config
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers, model_limits
from bakeout.models.plan import Floats32, LowRankUpdate, ResidualProjection, WeightUpdate, attention_weight
from bakeout.models.reference.weight_edits import edited_weights

METHOD = "folded projection"
_TOKENS = 48
# The share of what a block writes for a token that may still lie along the direction: what float32 rounds, beside the
# rounding of the sum with what the block read.
_ROUNDED = 1e-4
_OF_SUMS = 16 * float(np.finfo(np.float32).eps)


def folded(model: PreTrainedModel, projection: ResidualProjection, stored_as: torch.dtype) -> LowRankUpdate:
    """The projection's directions taken out of what attention and FFLs of its blocks write into the residual stream.

    The report has the largest share of what a block writes for a token that is left along its direction, in float32
    and with weights that are stored as ``stored_as``. But for that rounding the fold is exact: raises ``BakeoutError``,
    naming the block, where anything of these blocks is still written along the direction, measured on the model: by
    biases, by norms behind the written output, by experts.
    """
    outputs = {
        place[0]: name
        for name, _ in model.named_modules()
        if (place := attention_weight(name)) is not None and place[1] == "o"
    }
    layers = feed_forward_layers(model)
    updates: list[WeightUpdate] = []
    for placed in projection.layers:
        if placed.layer not in outputs:
            raise BakeoutError(
                f"The attention of block {placed.layer} has no output projection that is known by its name.",
                "Bake the projection itself, without `fold`.",
            )
        output = outputs[placed.layer]
        left = np.ascontiguousarray(-placed.direction[:, None])
        down, attention = layers[placed.layer].down, model.get_submodule(output)
        updates += [
            WeightUpdate(placed.layer, "down", left, _written_along(down, placed.direction)),
            WeightUpdate(placed.layer, "o", left, _written_along(attention, placed.direction), output),
        ]
    edit = LowRankUpdate(METHOD, tuple(updates), projection.report)
    with edited_weights(model, [edit]):
        shares = _shares_along(model, projection)
    _require_exact(shares)
    with edited_weights(model, [edit], stored_as=stored_as):
        rounded = _shares_along(model, projection)
    imported = {**projection.report.details["imported"], "folded": _figures(shares, rounded, stored_as)}
    return replace(edit, report=replace(projection.report, details={**projection.report.details, "imported": imported}))


def _figures(shares: Mapping[int, float], rounded: Mapping[int, float], stored_as: torch.dtype) -> dict[str, Any]:
    """How much is left along the directions: in float32, and after rounding to the type that weights are stored in."""
    return {
        "left_along": float(f"{max(shares.values()):.2g}"),
        "stored_as": str(stored_as).removeprefix("torch."),
        "left_along_stored": float(f"{max(rounded.values()):.2g}"),
    }


def stored_as(checkpoint: Checkpoint) -> torch.dtype:
    """The type that a checkpoint says its weights are stored in."""
    config = read_config(checkpoint.directory)
    dtype: torch.dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return dtype


def _written_along(linear: nn.Module, direction: Floats32) -> Floats32:
    """V W [1, in] of a linear layer."""
    weight = linear.get_parameter("weight").detach().double().numpy()
    row: Floats32 = (direction.astype(np.float64) @ (weight.T if isinstance(linear, Conv1D) else weight))[None]
    return np.ascontiguousarray(row, np.float32)


@torch.no_grad()
def _shares_along(model: PreTrainedModel, projection: ResidualProjection) -> Mapping[int, float]:
    """For each block the largest share of what it writes for a token that lies along its direction."""
    layers = feed_forward_layers(model)
    read: dict[int, Tensor] = {}
    shares: dict[int, float] = {}

    def before(layer: int) -> Any:
        def hook(_module: Any, arguments: Any, named: Any) -> None:
            read[layer] = (arguments[0] if arguments else named["hidden_states"]).double()

        return hook

    def behind(layer: int, direction: Tensor) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> None:
            written = (output[0] if isinstance(output, tuple) else output).double() - read[layer]
            along = ((written @ direction).abs() - _OF_SUMS * read[layer].norm(dim=-1)).clamp(min=0)
            # Token by token: what one writes may be thousands of times what the others do.
            shares[layer] = float((along / written.norm(dim=-1).clamp(min=1e-30)).max())

        return hook

    handles = []
    for placed in projection.layers:
        block, direction = layers[placed.layer].block, torch.from_numpy(placed.direction).double()
        handles.append(block.register_forward_pre_hook(before(placed.layer), with_kwargs=True))
        handles.append(block.register_forward_hook(behind(placed.layer, direction)))
    try:
        vocabulary = len(model.get_input_embeddings().get_parameter("weight"))
        count = min(_TOKENS, model_limits(model).context or _TOKENS)
        model(torch.linspace(0, vocabulary - 1, count).long()[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return shares


def _require_exact(shares: Mapping[int, float]) -> None:
    """Raise ``BakeoutError`` unless nothing that the blocks write lies along their directions."""
    worst = max(shares, key=lambda layer: shares[layer])
    if not shares[worst] <= _ROUNDED:
        raise BakeoutError(
            f"No fold of the projection into weights is exact: a share of {shares[worst]:.2g} of what block {worst} "
            "writes for a token would still lie along the direction, by a bias, a norm behind it, or experts.",
            "Bake the projection itself, without `fold`.",
        )
