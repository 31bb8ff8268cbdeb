"""The model that a plan was fitted on, as far as the plan knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.feed_forward_modules import ExpertModules, FeedForwardModules, Role
from bakeout.models.plan.kinds.report import Figures

# The keys of Key Space Detection: key vectors of FFLs that see every token, or what routers of experts read or give.
Keys = Literal["key_vector", "router_input", "router_logits"]
# What an intervention looks at in a layer: what the gate linear gives, or keys.
Watched = Literal["pre_activation"] | Keys


@dataclass(frozen=True)
class Routing(Figures):
    """The routers of a mixture of experts: of how many ``experts`` each sends a token to ``chosen``, layer by layer.

    ``width``: F of an expert, ``modules``: where they are; None where the experts are of a form that is not read.
    """

    experts: tuple[int, ...]
    chosen: int
    width: int | None = None
    modules: ExpertModules | None = None

    def __post_init__(self) -> None:
        if self.modules is not None and len(self.modules.paths) != len(self.experts):
            raise PlanError(f"The plan says where {len(self.modules.paths)} of {len(self.experts)} mixtures are.")


@dataclass(frozen=True)
class ModelIdentity(Figures):
    """What a plan knows of the model it was fitted on.

    ``width`` is F, the number of neurons of one FFL; where the FFLs differ it is the widest's, and ``widths`` has each
    layer's. Counted are FFLs that see every token: of a mixture of experts the shared ones and the dense layers, not
    the experts, and of some there are none. ``routing`` is a mixture's. ``modules``: where the model keeps its FFLs,
    unless ``models.checkpoint.architectures`` knows it. ``digest`` is the SHA-256 of the weights
    (``models.checkpoint.checkpoint_files.weights_digest``).

    Experts are FFLs too, whose numbers follow: with 4 layers and 2 routers of 8 experts, 4 is the first router's first
    expert, and 19 the second's last.
    """

    architecture: str
    layers: int
    width: int
    hidden: int
    vocabulary: int
    digest: str
    widths: tuple[int, ...] | None = None
    routing: Routing | None = None
    modules: tuple[FeedForwardModules, ...] | None = None

    def __post_init__(self) -> None:
        if self.widths is not None and (len(self.widths) != self.layers or max(self.widths) != self.width):
            raise PlanError(f"The widths {list(self.widths)} are not those of {self.layers} layers up to {self.width}.")
        if self.modules is not None and len(self.modules) != self.layers:
            raise PlanError(f"The plan names the modules of {len(self.modules)} of {self.layers} feed-forward layers.")

    @property
    def shape(self) -> str:
        """Layers, widths and experts in words."""
        dense = f"{self.layers} layers, FFL width {_told(self.widths or [self.width])}"
        if self.routing is None:
            return dense
        experts = self.routing.experts
        routed = f"{len(experts)} mixtures of {_told(experts)} experts, {self.routing.chosen} for each token"
        return f"{routed}; beside the experts {dense if self.layers else 'no feed-forward layer'}"

    @property
    def feed_forwards(self) -> int:
        """How many FFLs there are, the experts among them."""
        return self.layers + (sum(self.routing.experts) if self.routing and self.routing.width else 0)

    def expert_of(self, layer: int) -> tuple[int, int] | None:
        """The router and the number of the expert that a layer is; None of one that sees every token."""
        expert = layer - self.layers
        if expert < 0 or self.routing is None:
            return None
        for router, experts in enumerate(self.routing.experts):
            if expert < experts:
                return router, expert
            expert -= experts
        raise PlanError(f"The plan names layer {layer} of a model with {self.feed_forwards}.")

    def name_of(self, layer: int, watched: Watched = "pre_activation") -> str:
        """What people call a layer, or the router of this number."""
        if watched in ("router_input", "router_logits"):
            return f"router {layer}"
        expert = self.expert_of(layer)
        return f"layer {layer}" if expert is None else f"router {expert[0]}, expert {expert[1]}"

    def width_of(self, layer: int) -> int:
        """F of one layer."""
        if layer >= self.layers and self.routing is not None and self.routing.width is not None:
            return self.routing.width
        return self.width if self.widths is None else self.widths[layer]

    def watched_width(self, watched: Watched, layer: int) -> int:
        """How many numbers a layer has of what is looked at. Raises ``PlanError`` where the model has none there."""
        if watched in ("pre_activation", "key_vector"):
            self.require_layer(layer, experts=watched == "pre_activation")
            return self.width_of(layer)
        experts = () if self.routing is None else self.routing.experts
        if layer >= len(experts):
            raise PlanError(f"The plan names router {layer} of a model with {len(experts)}.")
        return self.hidden if watched == "router_input" else experts[layer]

    def weight_shape(self, role: Role, layer: int | None = None) -> tuple[int, int]:
        """The shape [out, in] of a weight of an FFL; without ``layer``, of the widest."""
        width = self.width if layer is None else self.width_of(layer)
        return (self.hidden, width) if role == "down" else (width, self.hidden)

    def require_shape(self, *, widths: Sequence[int], hidden: int, experts: Sequence[int] = ()) -> None:
        """Raise ``PlanError`` unless a model with FFLs of these widths, and routers of so many ``experts`` each, can be
        the one the plan was fitted on.
        """
        routed = () if self.routing is None else self.routing.experts
        if tuple(experts) != tuple(routed):
            raise PlanError(
                f"The plan was fitted on a model with {len(routed)} routers of experts; this one has {len(experts)}"
                f"{', of other numbers of experts' if len(experts) == len(routed) else ''}.",
                "Bake the plan into the model it was fitted on, or fit one for this model.",
            )
        expected = [self.width_of(layer) for layer in range(self.layers)]
        if (list(widths), hidden) != (expected, self.hidden):
            raise PlanError(
                f"The plan was fitted on a model of {self.layers} layers, FFL width {_told(expected)} and hidden size "
                f"{self.hidden}; this one has {len(widths)}, {_told(widths)} and {hidden}.",
                "Bake the plan into the model it was fitted on, or fit one for this model.",
            )

    def require_layer(self, layer: int, *, experts: bool = True) -> None:
        """Raise ``PlanError`` unless the model has layer ``layer``; without ``experts``, one that sees every token."""
        available = self.feed_forwards if experts else self.layers
        if layer >= available:
            raise PlanError(f"The plan names layer {layer} of a model with {available}.")

    def require_block(self, block: int) -> None:
        """Raise ``PlanError`` where the model has no block of this number: a block has an FFL, or a router, or both."""
        most = self.layers + (0 if self.routing is None else len(self.routing.experts))
        if block >= most:
            raise PlanError(f"The plan names block {block} of a model with {most} at most.")


def _told(widths: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(set(widths))))
