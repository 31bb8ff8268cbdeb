"""Receipts: what an edit matched and changed, so that no edit can silently do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bakeout.models.plan.kinds.report import Figures


@dataclass(frozen=True)
class Receipt(Figures):
    """One edit of one layer, node or tensor.

    ``intervention`` is its index in the plan; ``node`` and ``tensor`` name what was matched (for Neuron Adjust the
    pre-activation, for Key Space Detection the key vector); ``count`` how many neurons, cubes or columns;
    ``before`` and ``after`` are SHA-256 of what was edited (the serialised graph without its weights, or the
    tensor). ``detail`` is JSON for what only one kind of edit has.
    """

    intervention: int
    kind: str
    layer: int
    node: str
    tensor: str
    count: int
    before: str
    after: str
    detail: Mapping[str, Any] = field(default_factory=dict)
