"""Where and how the recipe's model runs while it is probed, fitted and tuned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self

from pydantic import Field

from bakeout.models.checkpoint.placement import Dtype, Placement
from bakeout.models.methods.options import Section


class PlacementOptions(Section):
    """The options of ``Placement``, as recipes have them. A model in memory stays where and as it is."""

    device: str = Field(
        default="auto",
        description="Where the model is probed and fitted: auto (the first CUDA device, else the CPU), cpu, cuda, "
        "cuda:N or mps.",
    )
    dtype: Dtype = Field(
        default="auto",
        description="The model's type while it is probed and fitted; auto: float32, on CUDA bfloat16 (float16 where "
        "that is lacking). Statistics are float64 always.",
    )
    device_map: str | dict[str, str | int] | None = Field(
        default=None,
        description="For a model larger than one device, accelerate's map: auto, balanced, balanced_low_0, sequential, "
        "or modules with the device of each (`disk` too).",
    )

    def placed(self, **given: Any) -> Self:
        """The same with the options that are given and not None (``Placement.changed``)."""
        changed = self.placement.changed(**given)
        return self if changed == self.placement else self.model_copy(update=asdict(changed))

    @property
    def placement(self) -> Placement:
        """What is asked for."""
        return Placement(self.device, self.dtype, self.device_map)
