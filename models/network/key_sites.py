"""Where the keys of Key Space Detection are read in a PyTorch model: key vectors of FFLs, and what routers see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.network.blocks import block_number, block_path
from bakeout.models.network.families import feed_forwards_if_any
from bakeout.models.network.mixtures.routers import routers
from bakeout.models.plan import Keys


@dataclass(frozen=True, eq=False)
class KeySite:
    """A place whose keys are read: ``key`` of what goes into ``module``, [..., width], all tokens in their order.

    ``block``: the number of the block that it is in. Places of several kinds are compared by it: FFLs and routers are
    counted apart, and not every block has one.
    """

    module: nn.Module
    width: int
    block: int
    key: Callable[[Tensor], Tensor]


def key_sites(model: PreTrainedModel, keys: Keys = "key_vector") -> tuple[KeySite, ...]:
    """The places of one kind of keys, from the embedding upwards: those of every FFL that sees all tokens, or of every
    router. Empty where the model has none of the kind.
    """
    if keys == "key_vector":
        return tuple(
            KeySite(layer.down, layer.width, layer.block_number, _as_it_is) for layer in feed_forwards_if_any(model)
        )
    routed = [(router, block_number(block_path(router.path))) for router in routers(model)]
    if keys == "router_input":
        return tuple(KeySite(router.module, router.hidden, block, _as_it_is) for router, block in routed)
    return tuple(KeySite(router.module, router.experts, block, router.logits) for router, block in routed)


def _as_it_is(value: Tensor) -> Tensor:
    return value
