"""Descriptions of interventions, under the title of the method that fitted them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from bakeout.models.methods.registry import methods
from bakeout.models.plan import Description, Intervention, ModelIdentity, Role
from bakeout.models.plan.kinds.description import Decode


def described(intervention: Intervention, model: ModelIdentity, decode: Decode | None = None) -> Description:
    """An intervention's description, its layers by their names in ``model``.

    If several methods end in its kind, its title is that of the fitting one.
    """
    description = intervention.describe(decode)
    method = methods().get(description.json.get("method", ""))
    named = tuple(
        part
        # Of attention, norms and biases, by the block.
        if part.role is not None and part.role not in get_args(Role)
        else replace(part, place=model.name_of(part.layer, intervention.watches))
        for part in description.parts
    )
    return replace(description, parts=named, title=method.title if method else description.title)
