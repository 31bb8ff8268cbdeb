"""The kinds that plan files can hold, by their names there."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from bakeout.models.plan.kinds.intervention import Intervention
from bakeout.models.plan.kinds.key_space_detection import KeySpaceDetection
from bakeout.models.plan.kinds.low_rank_update import LowRankUpdate
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjust
from bakeout.models.plan.kinds.residual_addition import ResidualAddition
from bakeout.models.plan.kinds.residual_projection import ResidualProjection
from bakeout.models.plan.kinds.vector_update import VectorUpdate
from bakeout.models.plan.kinds.zero_columns import ZeroColumns

_Kind = TypeVar("_Kind", bound=type[Intervention])
# Where installed packages name their kinds: the kind's name, and "module:class".
ENTRY_POINTS = "bakeout.kinds"

_KINDS: dict[str, type[Intervention]] = {}


def register_kind(kind: _Kind) -> _Kind:
    """Let plan files hold a kind; a decorator of its class. Raises ``ValueError`` where another has its name."""
    if _KINDS.setdefault(kind.kind, kind) is not kind:
        raise ValueError(f"a kind of intervention is called {kind.kind!r} already")
    return kind


def find_kind(name: str) -> type[Intervention] | None:
    """The class of a kind: one of ours, a registered one, or an installed package's."""
    if name not in _KINDS:
        for entry_point in entry_points(group=ENTRY_POINTS, name=name):
            register_kind(entry_point.load())
    return _KINDS.get(name)


for _kind in (
    NeuronAdjust,
    KeySpaceDetection,
    ZeroColumns,
    LowRankUpdate,
    VectorUpdate,
    ResidualAddition,
    ResidualProjection,
):
    register_kind(_kind)
