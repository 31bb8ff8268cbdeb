"""Interventions as people are told of them: under the title of the method that fitted them."""

from __future__ import annotations

from dataclasses import replace

from bakeout.models.methods.registry import methods
from bakeout.models.plan import Description, Intervention
from bakeout.models.plan.kinds.description import Decode


def described(intervention: Intervention, decode: Decode | None = None) -> Description:
    """What an intervention is. Where several methods end in its kind, it has the title of the one that fitted it."""
    description = intervention.describe(decode)
    method = methods().get(description.json.get("method", ""))
    return replace(description, title=method.title) if method else description
