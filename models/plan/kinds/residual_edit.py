"""What the kinds have in common that edit the residual stream: a direction for each of some layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bakeout.models.plan.arrays import Array, Floats32, PlanError, require_finite, require_layer
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.intervention import Blocks, CoinPlace, Intervention, Take
from bakeout.models.plan.model_identity import ModelIdentity, Watched


@dataclass(frozen=True, eq=False)
class LayerDirection:
    """A direction of the residual stream behind block ``layer``, counted from 0: float32 [hidden]."""

    layer: int
    direction: Floats32

    def __post_init__(self) -> None:
        where = f"Residual stream, layer {self.layer}"
        require_layer(self.layer, where)
        if self.direction.ndim != 1 or self.direction.dtype != np.float32:
            raise PlanError(f"{where}: a direction is one float32 vector.")
        require_finite(self.direction, f"{where}: direction")
        if not self.direction.any():
            raise PlanError(f"{where}: the direction is all zero, so it would change nothing.")


class ResidualEdit(Intervention):
    """An intervention that changes the residual stream behind blocks, at every token, before anything reads it there.

    ``layers``: ascending, each once. The canary is the first ``CANARY_NEURONS`` elements of the key vectors of these
    layers at the last token, which lie before the change in their own layer and behind it in all later ones.
    """

    unit = "direction"
    explanation: ClassVar[str]
    layers: tuple[LayerDirection, ...]

    @property
    def watches(self) -> Watched:
        """The key vectors."""
        return "key_vector"

    def require_layers(self) -> None:
        """Raise ``PlanError`` unless the layers ascend, and their directions are of one stream."""
        numbers = [placed.layer for placed in self.layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise PlanError(f"{self.title}: the layers are not ascending, or there is none.")
        if len({placed.direction.shape for placed in self.layers}) > 1:
            raise PlanError(f"{self.title}: the directions differ in length.")

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The settings beside the layers, as JSON; `--json` shows them too."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What is done, in one line."""

    def settings(self) -> dict[str, Any]:
        """The layers and figures."""
        return {"layers": [placed.layer for placed in self.layers], **self.figures()}

    def structure(self) -> dict[str, Any]:
        """All but the directions, and what scales them."""
        return {"kind": self.kind, **self.settings()}

    def arrays(self) -> dict[str, Array]:
        """The direction of every layer."""
        return {f"layers.{placed.layer}.direction": placed.direction for placed in self.layers}

    @staticmethod
    def directions_from(settings: Mapping[str, Any], take: Take) -> tuple[LayerDirection, ...]:
        """The directions that ``settings`` and ``arrays`` were given by."""
        return tuple(
            LayerDirection(layer, take(f"layers.{layer}.direction", np.float32)) for layer in settings["layers"]
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """One for every layer."""
        return tuple(Part(placed.layer, 1, self.count_text(1)) for placed in self.layers)

    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has the layers, and a residual stream of the directions' length."""
        for placed in self.layers:
            model.require_layer(placed.layer, experts=False)
            if len(placed.direction) != model.hidden:
                raise PlanError(
                    f"{self.title}, layer {placed.layer}: a direction of {len(placed.direction)} elements does not fit "
                    f"a residual stream of {model.hidden}.",
                    "Bake the plan into the model it was fitted on.",
                )

    def is_behind(self, coin: CoinPlace, place: int, blocks: Blocks) -> bool:
        """Whether the deepest layer is in the coin's block or a later one."""
        return blocks[0][self.layers[-1].layer] >= coin[0]

    def describe(self, decode: Decode | None = None) -> Description:
        """Layer by layer."""
        norms = [float(np.linalg.norm(placed.direction.astype(np.float64))) for placed in self.layers]
        return Description(
            kind=self.kind,
            title=self.title,
            summary=self.summary,
            explanation=self.explanation,
            parts=self.parts,
            facts=tuple(self.report.facts()),
            details=self.report.details,
            json={
                "kind": self.kind,
                **self.figures(),
                "layers": [
                    {"layer": placed.layer, "norm": norm} for placed, norm in zip(self.layers, norms, strict=True)
                ],
                "report": self.report.as_json(),
            },
        )

    def _in_layers(self) -> str:
        return f"in {counted(len(self.layers), 'layer')}"
