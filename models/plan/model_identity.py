"""The model that a plan was fitted on, as far as the plan knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.report import Figures

# The linear layers of an FFL. "gate" makes the pre-activation, in an ungated FFL too; "up" only gated FFLs have.
Role = Literal["gate", "up", "down"]


@dataclass(frozen=True)
class ModelIdentity(Figures):
    """What a plan knows of the model it was fitted on.

    ``width`` is F, the number of neurons of one FFL; ``digest`` the SHA-256 of the checkpoint's weights
    (``models.checkpoint.checkpoint_files.weights_digest``).
    """

    architecture: str
    layers: int
    width: int
    hidden: int
    vocabulary: int
    digest: str

    def weight_shape(self, role: Role) -> tuple[int, int]:
        """The shape [out, in] of a weight of an FFL."""
        return (self.hidden, self.width) if role == "down" else (self.width, self.hidden)

    def require_shape(self, *, layers: int, width: int, hidden: int) -> None:
        """Raise ``PlanError`` unless a model of these dimensions can be the one the plan was fitted on."""
        expected = (self.layers, self.width, self.hidden)
        if (layers, width, hidden) != expected:
            raise PlanError(
                f"The plan was fitted on a model of {self.layers} layers, FFL width {self.width} and hidden size "
                f"{self.hidden}; this one has {layers}, {width} and {hidden}.",
                "Bake the plan into the model it was fitted on, or fit one for this model.",
            )

    def require_layer(self, layer: int) -> None:
        """Raise ``PlanError`` unless the model has layer ``layer``."""
        if layer >= self.layers:
            raise PlanError(f"The plan names layer {layer} of a model with {self.layers}.")
