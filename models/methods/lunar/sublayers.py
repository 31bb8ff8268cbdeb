"""What LUNAR changes of a block: the `down` of its FFL, or of a mixture's block every one whose output is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.network.blocks import block_path
from bakeout.models.network.families import (
    FeedForward,
    block_numbers,
    feed_forward_layers,
    feed_forwards_if_any,
    require_experts,
)
from bakeout.models.network.mixtures.experts import Expert
from bakeout.models.network.mixtures.routers import routers


@dataclass(frozen=True, eq=False)
class Part:
    """One `down`: ``number`` is its FFL's in plans, ``width`` its F, and that FFL sees every token or is an expert."""

    number: int
    width: int
    of: FeedForward | Expert

    def shifted_by(self, vector: Tensor) -> Any:
        """Add ``vector`` [hidden] to what it gives, until what is returned is told to ``remove``."""
        if isinstance(self.of, Expert):
            return self.of.shifted_by(vector)
        return self.of.down.register_forward_hook(lambda _module, _arguments, output: output + vector.to(output))


@dataclass(frozen=True, eq=False)
class Sublayer:
    """The parts of one block, and the block, whose output is the residual stream [..., hidden] behind it.

    ``multiplier``: what a part's output is multiplied by before it is added to the stream; None where that hangs on
    the token, as of experts, which a router weights.
    """

    block: nn.Module
    hidden: int
    parts: tuple[Part, ...]
    multiplier: float | None


def sublayers(model: PreTrainedModel, *, with_experts: bool) -> tuple[Sublayer, ...]:
    """What LUNAR's ``layers`` count: FFLs; or ``with_experts`` of a mixture the blocks, from the embedding upwards.

    Raises ``BakeoutError`` as ``feed_forward_layers``, and for experts of a form that is not read.
    """
    routed = routers(model)
    if not (routed and with_experts):
        return tuple(
            Sublayer(
                layer.block,
                layer.hidden,
                (Part(layer.layer, layer.width, layer),),
                None if routed else layer.residual_multiplier,
            )
            for layer in feed_forward_layers(model)
        )
    every: list[FeedForward | Expert] = [*feed_forwards_if_any(model), *require_experts(model)]
    of_block: dict[int, list[Part]] = {}
    for number, (block, layer) in enumerate(zip(block_numbers(model), every, strict=True)):
        of_block.setdefault(block, []).append(Part(number, layer.width, layer))
    return tuple(
        Sublayer(_block(model, parts[0]), parts[0].of.hidden, tuple(parts), None)
        for _, parts in sorted(of_block.items())
    )


def _block(model: PreTrainedModel, part: Part) -> nn.Module:
    if isinstance(part.of, Expert):
        return model.get_submodule(block_path(part.of.router.path))
    return part.of.block
