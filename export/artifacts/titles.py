"""Descriptions of interventions, under the title of the method that fitted them."""

from __future__ import annotations

from dataclasses import replace

from bakeout.models.methods.registry import methods
from bakeout.models.plan import Description, Intervention
from bakeout.models.plan.kinds.description import Decode


def described(intervention: Intervention, decode: Decode | None = None) -> Description:
    """An intervention's description. If several methods end in its kind, its title is that of the fitting one."""
    description = intervention.describe(decode)
    method = methods().get(description.json.get("method", ""))
    return replace(description, title=method.title) if method else description
