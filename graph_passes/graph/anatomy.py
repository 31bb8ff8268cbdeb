"""The anatomy of a decoder graph: its feed-forward layers, its caches and its interface.

Feed-forward layers are found by structure (``feed_forward``), caches by their names (``exporter_names``); how many
there are of the one says nothing of the other. Inputs and outputs have the names that optimum's exporter and the genai
builder give them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.caches import KeyValues, State, read_caches
from bakeout.graph_passes.graph.exporter_names import LOGITS_TO_KEEP, MERGED
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer, feed_forward_layers
from bakeout.graph_passes.graph.linear import as_linear
from bakeout.graph_passes.graph.mixtures.experts import (
    GraphRouter,
    Held,
    find_routers,
    held_experts,
    is_expert,
    tokens_of,
)
from bakeout.graph_passes.graph.mixtures.stacks import stacked_experts
from bakeout.models.plan import Keys


@dataclass(frozen=True, eq=False)
class Key:
    """What a check can look at: ``value``, [batch, tokens, width] or [batch * tokens, width], and the node it is of."""

    node: ir.Node
    value: ir.Value
    width: int


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What a decoder graph is made of.

    ``layers``: the FFLs that see every token. Of a mixture ``routers``, ``experts``, in topological order and counted
    on from the layers, and ``held``, those inside of operators.
    ``caches`` (of attention layers) and ``states`` (of others) are empty where the graph has none. ``logits_to_keep``:
    the input that says of how many last tokens it gives logits (0: of all), where it has one. Without an
    ``attention_mask`` all tokens are real, and every slot of the past holds one.
    """

    layers: tuple[FeedForwardLayer, ...]
    input_ids: ir.Value
    attention_mask: ir.Value | None
    position_ids: ir.Value | None
    caches: tuple[KeyValues, ...]
    states: tuple[State, ...]
    logits: ir.Value
    logits_to_keep: ir.Value | None = None
    routers: tuple[GraphRouter, ...] = ()
    experts: tuple[FeedForwardLayer, ...] = ()
    held: tuple[Held, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """F of every layer."""
        return tuple(layer.width for layer in self.layers)

    @property
    def hidden(self) -> int:
        """The width of the residual stream."""
        return (self.layers or self.routers)[0].hidden

    @property
    def dtype(self) -> ir.DataType:
        """The type of the activations in the FFLs (the logits and the cache may have another)."""
        return (self.layers or self.routers)[0].dtype

    def feed_forward(self, number: int) -> FeedForwardLayer:
        """The FFL that plans give this number: experts follow the layers that see every token.

        Raises ``GraphError`` where there is none, or its neurons are hidden.
        """
        every = (*self.layers, *self.experts)
        if number < len(self.layers) or (number < len(every) and self._has_all_experts):
            return every[number]
        if self.held:
            operator = self.held[0].node.op_type
            others = "with `experts: false`" if self.layers else "a check with `keys: router_input`"
            raise GraphError(
                f"The plan names an expert, and this graph's are inside of {operator}, which hides their neurons.",
                f"Bake into a graph with visible experts, as `build` exports them, or fit {others}.",
            )
        if self.routers and number >= len(self.layers):
            raise GraphError(
                f"The plan names an expert, and of the graph's {sum(router.experts for router in self.routers)} "
                f"{len(self.experts)} were found.",
                "Bake into a graph that `build` exports, or fit with `experts: false`.",
            )
        raise GraphError(
            f"The plan names layer {number}, but the graph has {len(self.layers)} feed-forward layers.",
            "Bake the plan into the model it was fitted on.",
        )

    @property
    def _has_all_experts(self) -> bool:
        return len(self.experts) == sum(router.experts for router in self.routers)

    def keys(self, keys: Keys) -> tuple[Key, ...]:
        """What a check can look at, by the kind of keys."""
        if keys == "key_vector":
            return tuple(Key(layer.down, layer.key_vector, layer.width) for layer in self.layers)
        if keys == "router_input":
            return tuple(Key(router.node, router.inputs, router.hidden) for router in self.routers)
        return tuple(Key(router.node, router.logits, router.experts) for router in self.routers)


def read_anatomy(model: ir.Model) -> Anatomy:
    """Find the FFLs, in topological order, the caches and the interface of a decoder graph.

    No weight is read, only shapes. Raises ``GraphError`` where neither an FFL nor a router is found,
    where the FFLs differ in the residual stream's width or in type, where a layer's cache lacks a part, and where
    ``input_ids`` or ``logits`` is missing, or a mask that grouped-query attention counts its tokens by.
    """
    graph = model.graph
    if any(value.name == MERGED for value in graph.inputs):
        raise GraphError(
            f"It is a merged decoder (its input {MERGED} chooses between two graphs), which is not read.",
            "Use `decoder_with_past_model.onnx` or `model.onnx` of the same export.",
        )
    linears = [linear for node in graph if (linear := as_linear(node)) is not None]
    routers = find_routers(graph, linears)
    layers, experts = _without_experts(feed_forward_layers(linears), routers)
    if routers and not experts:
        experts = stacked_experts(graph)
    experts = tuple(replace(expert, index=len(layers) + place) for place, expert in enumerate(experts))
    held = held_experts(graph, routers)
    if held and not layers and not routers:
        raise GraphError(
            f"The feed-forward layers are mixtures of experts, inside {len(held)} operators that hide their neurons, "
            "and no router of theirs is a single matrix.",
            "Bake a decoder whose experts are routed by one linear layer.",
        )
    if not layers and not routers:
        raise GraphError(
            f"No feed-forward layer was found among the graph's {len(linears)} products with a constant weight.",
            "Bake a decoder whose feed-forward layers are plain matrix products.",
        )
    shapes = {(layer.hidden, layer.dtype.name) for layer in layers}
    if len(shapes) > 1:
        raise GraphError(f"The feed-forward layers differ in hidden size or type: {sorted(shapes)}.")
    caches = read_caches(graph.inputs, graph.outputs)
    return Anatomy(
        layers=layers,
        routers=routers,
        experts=experts,
        held=held,
        input_ids=_named(graph.inputs, "input_ids"),
        attention_mask=_attention_mask(graph),
        position_ids=next((value for value in graph.inputs if value.name == "position_ids"), None),
        caches=caches.attention,
        states=caches.states,
        logits=_named(graph.outputs, "logits"),
        logits_to_keep=next((value for value in graph.inputs if value.name in LOGITS_TO_KEEP), None),
    )


def _attention_mask(graph: ir.Graph) -> ir.Value | None:
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    counts = any((node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention") for node in graph)
    return _named(graph.inputs, "attention_mask") if mask is None and counts else mask


def _without_experts(
    layers: Sequence[FeedForwardLayer], routers: Sequence[GraphRouter]
) -> tuple[tuple[FeedForwardLayer, ...], tuple[FeedForwardLayer, ...]]:
    """The FFLs that see every token, counted anew, and the experts."""
    routed = [bool(routers) and is_expert(layer) for layer in layers]
    seeing = [layer for layer, is_routed in zip(layers, routed, strict=True) if not is_routed]
    experts = [layer for layer, is_routed in zip(layers, routed, strict=True) if is_routed]
    return (
        tuple(replace(layer, index=index) for index, layer in enumerate(seeing)),
        tuple(replace(layer, tokens=tokens_of(layer)) for layer in experts),
    )


def _named(values: Iterable[ir.Value], name: str) -> ir.Value:
    for value in values:
        if value.name == name:
            return value
    raise GraphError(
        f"The graph has no {name!r} among its inputs and outputs.",
        "Export it with the names that optimum and the genai builder use.",
    )
