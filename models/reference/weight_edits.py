"""Weight edits on a PyTorch model, in place, by their textbook formulas in float64.

The formula is the kind's (``WeightChange.formula``), computed by torch. Nothing here is shared with what edits files
and graphs (``weight_arithmetic``): baked weights are compared with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.errors import BakeoutError
from bakeout.models.network.devices import in_float64
from bakeout.models.network.families import FeedForward, experts, feed_forwards_if_any, identity
from bakeout.models.plan import Intervention, PlanError, Role, WeightChange, is_of_an_end, is_of_attention


def weight_of(feed_forward: FeedForward, role: Role) -> Tensor:
    """The weight W [out, in] of an FFL (``y = W x``): a view of the model's own parameter.

    For a fused layer the half that ``role`` names, for a ``Conv1D`` the transposed. Raises ``BakeoutError`` for the
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


def planned_weights(model: PreTrainedModel, changes: Iterable[WeightChange]) -> list[Tensor]:
    """The weights that ``changes`` are of.

    FFLs have the numbers that plans give them: experts follow the layers that see every token. Raises ``PlanError``
    where the model has no such linear layer, or a change does not fit it.
    """
    layers, routed = feed_forwards_if_any(model), experts(model)

    def weight(change: WeightChange) -> Tensor:
        if change.role == "vector":
            return _vector(model, change.place, change)
        if is_of_an_end(change.role) or is_of_attention(change.role):
            return _weight_of_module(model, str(change.module), change)
        if change.layer < len(layers):
            return weight_of(layers[change.layer], change.role)
        return routed[change.layer - len(layers)].weight(change.role)

    return list(map(weight, changes))


def _weight_of_module(model: PreTrainedModel, path: str, change: WeightChange) -> Tensor:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise PlanError(f"The model has no module {path}.", "Name the model that the plan is of.") from None
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        raise PlanError(f"{path} is a {type(module).__name__}, not a plain linear layer.", "Name a plain model.")
    weight = _weight(module)
    if not change.fits(tuple(weight.shape)):
        raise PlanError(
            f"The change of {path} does not fit its weight, of shape {tuple(weight.shape)}.",
            "Name the model that the plan is of.",
        )
    return weight


def _vector(model: PreTrainedModel, name: str, change: WeightChange) -> Tensor:
    """A parameter [n] as a weight [n, 1]."""
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise PlanError(f"The model has no parameter {name}.", "Name the model that the plan is of.") from None
    vector: Tensor = parameter.unsqueeze(-1)
    if not change.fits(tuple(vector.shape)):
        raise PlanError(
            f"The change of {name} does not fit it, of shape {tuple(parameter.shape)}.",
            "Name the model that the plan is of.",
        )
    return vector


def apply_weight_edit(model: PreTrainedModel, edit: Intervention, *, stored_as: torch.dtype | None = None) -> None:
    """Change the weights of ``model`` in place, as ``edit`` does; what edits no weights changes nothing.

    Computed in float64 and rounded to the parameter's own dtype (by way of float32, as torch converts), or first to
    ``stored_as``, where the weights are stored in that. Raises ``PlanError`` or ``BakeoutError``, before anything is
    changed, where the edit does not fit the model.
    """
    edit.require_fit(identity(model, ""))
    changes = edit.weight_changes()
    weights = planned_weights(model, changes)
    with torch.no_grad():
        for change, weight in zip(changes, weights, strict=True):
            weight.copy_(_changed(weight, change, stored_as or weight.dtype))


@contextmanager
def edited_weights(
    model: PreTrainedModel, interventions: Sequence[Intervention], *, stored_as: torch.dtype | None = None
) -> Iterator[None]:
    """A context in which ``model`` carries the weight edits among ``interventions``, in their order.

    ``stored_as`` as of ``apply_weight_edit``. When it ends, every weight is what it was before, bit for bit.
    """
    edits = [intervention for intervention in interventions if intervention.edits_weights]
    for edit in edits:
        edit.require_fit(identity(model, ""))
    touched = {(change.layer, change.place): change for edit in edits for change in edit.weight_changes()}
    views = [weight.detach() for weight in planned_weights(model, touched.values())]
    kept = [view.clone() for view in views]
    try:
        for edit in edits:
            apply_weight_edit(model, edit, stored_as=stored_as)
        yield
    finally:
        for view, before in zip(views, kept, strict=True):
            view.copy_(before)


def _changed(weight: Tensor, change: WeightChange, dtype: torch.dtype) -> Tensor:
    """A weight after its change, by the formula of its kind."""
    kept = weight.clone() if change.exact else in_float64(weight)

    def array(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(kept.device)

    if change.exact:
        exact: Tensor = change.formula(kept, array)
        return exact
    rounded: Tensor = change.formula(kept, array).float().to(dtype)
    return rounded


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight
