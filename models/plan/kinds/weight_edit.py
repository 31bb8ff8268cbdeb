"""What all kinds have in common that change weights. A new one is one file: its changes, and its way to a plan file."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.attention_modules import is_of_an_end, is_of_attention
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.intervention import Blocks, CoinPlace, Intervention
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.model_identity import ModelIdentity


class WeightEdit(Intervention):
    """An intervention that changes weights, and leaves the graph as it is.

    ``count_key`` is what `--json` calls the count of a weight.

    The canary is the pre-activations of the first ``CANARY_NEURONS`` neurons of the last layer that sees every token,
    or in a mixture of experts the logits of the last router where that lies deeper, at the last token, before anything
    is made of them there.
    """

    edits_weights = True
    count_key: ClassVar[str] = "count"

    @abstractmethod
    def weight_changes(self) -> tuple[WeightChange, ...]:
        """What becomes of each weight, ascending by layer, then by role; no weight twice."""

    @property
    @abstractmethod
    def explanation(self) -> str:
        """How it works, for people."""

    @property
    def name(self) -> str:
        """The name of this edit, if its kind's title is not specific enough."""
        return self.title

    @property
    def summary(self) -> str:
        """What is edited, in one line."""
        parts = self.parts
        return f"{counted(len(parts), 'weight')} in {counted(len({part.layer for part in parts}), 'layer')}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """One for every weight."""
        return tuple(
            Part(change.layer, change.count, self.count_text(change.count), change.role)
            for change in self.weight_changes()
        )

    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has all weights, of the shapes that they are changed in."""
        for change in self.weight_changes():
            if change.role == "vector" or is_of_an_end(change.role) or is_of_attention(change.role):
                # How wide these are, they tell themselves.
                model.require_block(change.layer)
                continue
            model.require_layer(change.layer)
            if not change.fits(shape := model.weight_shape(change.role, change.layer)):
                raise PlanError(
                    f"{self.name}: the change of layer {change.layer}, {change.role}, does not fit a weight of shape "
                    f"{shape}.",
                    "Bake the plan into the model it was fitted on.",
                )

    def is_behind(self, coin: CoinPlace, place: int, blocks: Blocks) -> bool:
        """Whether the coin is drawn before what the edit is seen in."""
        return blocks[1] > coin[0]

    def figures(self) -> dict[str, Any]:
        """What `--json` shows of the edit beside its weights."""
        return {}

    def describe(self, decode: Decode | None = None) -> Description:
        """Weight by weight."""
        return Description(
            kind=self.kind,
            title=self.name,
            summary=self.summary,
            explanation=self.explanation,
            parts=self.parts,
            facts=tuple(self.report.facts()),
            details=self.report.details,
            json={
                "kind": self.kind,
                **self.figures(),
                "weights": [
                    {"layer": part.layer, "role": part.role, self.count_key: part.count} for part in self.parts
                ],
                "report": self.report.as_json(),
            },
        )
