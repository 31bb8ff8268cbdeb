"""Weight edits on a PyTorch model, in place, by their textbook formulas in float64.

Nothing here is shared with what edits files and graphs (``weight_arithmetic``): what is baked is held against
this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import FeedForward, feed_forward_layers
from bakeout.models.plan import Intervention, PlanError, Role, WeightEdit, ZeroColumns


def weight_of(feed_forward: FeedForward, role: Role) -> Tensor:
    """The weight W [out, in] of an FFL (``y = W x``): a view of the model's own parameter.

    Of a fused layer the half that ``role`` names, of a ``Conv1D`` the transposed. Raises ``BakeoutError`` for the
    ``up`` of an ungated FFL.
    """
    if role == "down":
        return _weight(feed_forward.down)
    if feed_forward.layout == "fused":
        half = slice(0, feed_forward.width) if role == "gate" else slice(feed_forward.width, None)
        return _weight(feed_forward.gate)[half]
    if role == "gate":
        return _weight(feed_forward.gate)
    if feed_forward.up is None:
        raise BakeoutError(
            f"The feed-forward layer {feed_forward.layer} is ungated: it has no weight called 'up'.",
            "Edit its 'gate' (the in-projection) or 'down'.",
        )
    return _weight(feed_forward.up)


def apply_weight_edit(model: PreTrainedModel, edit: WeightEdit, *, stored_as: torch.dtype | None = None) -> None:
    """Change the weights of ``model`` in place: columns of ``down`` become 0, or ``left @ right`` is added.

    Computed in float64 and rounded to the parameter's own dtype (by way of float32, as torch converts), or first to
    ``stored_as``, where the weights are stored in that. Raises ``PlanError`` or ``BakeoutError``, before anything is
    changed, where the edit does not fit the model.
    """
    layers = feed_forward_layers(model)
    _require_fit(layers, edit)
    with torch.no_grad():
        if isinstance(edit, ZeroColumns):
            for zeroed in edit.layers:
                weight_of(layers[zeroed.layer], "down")[:, torch.from_numpy(zeroed.columns)] = 0
        else:
            for update in edit.updates:
                weight = weight_of(layers[update.layer], update.role)
                left = torch.from_numpy(update.left).to(weight.device).double()
                right = torch.from_numpy(update.right).to(weight.device).double()
                weight.copy_((weight.double() + left @ right).float().to(stored_as or weight.dtype))


@contextmanager
def edited_weights(
    model: PreTrainedModel, interventions: Sequence[Intervention], *, stored_as: torch.dtype | None = None
) -> Iterator[None]:
    """A context in which ``model`` carries the weight edits among ``interventions``, in their order.

    ``stored_as`` as of ``apply_weight_edit``. When it ends, every weight is what it was before, bit for bit.
    """
    edits = [one for one in interventions if isinstance(one, WeightEdit)]
    layers = feed_forward_layers(model)
    touched = {weight for edit in edits for weight in _touched(edit)}
    views = [weight_of(_layer(layers, layer), role).detach() for layer, role in sorted(touched)]
    kept = [view.clone() for view in views]
    try:
        for edit in edits:
            apply_weight_edit(model, edit, stored_as=stored_as)
        yield
    finally:
        for view, before in zip(views, kept, strict=True):
            view.copy_(before)


def _require_fit(layers: Sequence[FeedForward], edit: WeightEdit) -> None:
    if isinstance(edit, ZeroColumns):
        for zeroed in edit.layers:
            width = _layer(layers, zeroed.layer).width
            if zeroed.columns[-1] >= width:
                raise PlanError(f"Zeroed columns name neuron {zeroed.columns[-1]} of {width}.")
        return
    for update in edit.updates:
        shape = tuple(weight_of(_layer(layers, update.layer), update.role).shape)
        if shape != (len(update.left), update.right.shape[1]):
            raise PlanError(f"The update of layer {update.layer}, {update.role}, is not for a weight of shape {shape}.")


def _touched(edit: WeightEdit) -> list[tuple[int, Role]]:
    if isinstance(edit, ZeroColumns):
        return [(zeroed.layer, "down") for zeroed in edit.layers]
    return [(update.layer, update.role) for update in edit.updates]


def _layer(layers: Sequence[FeedForward], number: int) -> FeedForward:
    if number >= len(layers):
        raise PlanError(f"The plan names layer {number} of a model with {len(layers)}.")
    return layers[number]


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight
