"""The model that a plan was fitted on, as far as the plan knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.report import Figures

# The linear layers of an FFL. "gate" makes the pre-activation, in an ungated FFL too; "up" only gated FFLs have.
Role = Literal["gate", "up", "down"]


@dataclass(frozen=True)
class ModelIdentity(Figures):
    """What a plan knows of the model it was fitted on.

    ``width`` is F, the number of neurons of one FFL; where the FFLs differ it is the widest's, and ``widths`` has each
    layer's. ``digest`` is the SHA-256 of the checkpoint's weights
    (``models.checkpoint.checkpoint_files.weights_digest``).
    """

    architecture: str
    layers: int
    width: int
    hidden: int
    vocabulary: int
    digest: str
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.widths is not None and (len(self.widths) != self.layers or max(self.widths) != self.width):
            raise PlanError(f"The widths {list(self.widths)} are not those of {self.layers} layers up to {self.width}.")

    def width_of(self, layer: int) -> int:
        """F of one layer."""
        return self.width if self.widths is None else self.widths[layer]

    def weight_shape(self, role: Role, layer: int) -> tuple[int, int]:
        """The shape [out, in] of a weight of an FFL."""
        width = self.width_of(layer)
        return (self.hidden, width) if role == "down" else (width, self.hidden)

    def require_shape(self, *, widths: Sequence[int], hidden: int) -> None:
        """Raise ``PlanError`` unless a model with FFLs of these widths can be the one the plan was fitted on."""
        expected = [self.width_of(layer) for layer in range(self.layers)]
        if (list(widths), hidden) != (expected, self.hidden):
            raise PlanError(
                f"The plan was fitted on a model of {self.layers} layers, FFL width {_told(expected)} and hidden size "
                f"{self.hidden}; this one has {len(widths)}, {_told(widths)} and {hidden}.",
                "Bake the plan into the model it was fitted on, or fit one for this model.",
            )

    def require_layer(self, layer: int) -> None:
        """Raise ``PlanError`` unless the model has layer ``layer``."""
        if layer >= self.layers:
            raise PlanError(f"The plan names layer {layer} of a model with {self.layers}.")


def _told(widths: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(set(widths))))
