"""The anatomy of a decoder graph: its feed-forward layers, its caches and its interface.

Feed-forward layers are found by structure (``feed_forward``), caches by their names (``cache_names``); how many there
are of the one says nothing of the other. Inputs and outputs have the names that optimum's exporter and the genai
builder give them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.caches import KeyValues, State, read_caches
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer, feed_forward_layers
from bakeout.graph_passes.graph.input_names import LOGITS_TO_KEEP, MERGED
from bakeout.graph_passes.graph.linear import as_linear

_MIXTURES = frozenset((("com.microsoft", "MoE"), ("com.microsoft", "QMoE")))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What a decoder graph is made of.

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

    @property
    def widths(self) -> tuple[int, ...]:
        """F of every layer."""
        return tuple(layer.width for layer in self.layers)

    @property
    def hidden(self) -> int:
        """The width of the residual stream."""
        return self.layers[0].hidden

    @property
    def dtype(self) -> ir.DataType:
        """The type of the activations in the FFLs (the logits and the cache may have another)."""
        return self.layers[0].dtype


def read_anatomy(model: ir.Model) -> Anatomy:
    """Find the FFLs, in topological order, the caches and the interface of a decoder graph.

    No weight is read, only shapes. Raises ``GraphError`` where no FFL is found, where experts are inside an operator,
    where the FFLs differ in the residual stream's width or in type, where a layer's cache lacks a part, and where
    ``input_ids`` or ``logits`` is missing, or a mask that grouped-query attention counts its tokens by.
    """
    graph = model.graph
    if any(value.name == MERGED for value in graph.inputs):
        raise GraphError(
            f"It is a merged decoder (its input {MERGED} chooses between two graphs), which is not read.",
            "Use `decoder_with_past_model.onnx` or `model.onnx` of the same export.",
        )
    if mixtures := sum((node.domain, node.op_type) in _MIXTURES for node in graph):
        raise GraphError(
            f"The feed-forward layers are mixtures of experts, inside {mixtures} operators that hide their neurons.",
            "Bake a decoder with dense feed-forward layers.",
        )
    linears = [linear for node in graph if (linear := as_linear(node)) is not None]
    layers = feed_forward_layers(linears)
    if not layers:
        raise GraphError(
            f"No feed-forward layer was found among the graph's {len(linears)} products with a constant weight.",
            "Bake a decoder whose feed-forward layers are plain matrix products (no mixture of experts).",
        )
    shapes = {(layer.hidden, layer.dtype.name) for layer in layers}
    if len(shapes) > 1:
        raise GraphError(f"The feed-forward layers differ in hidden size or type: {sorted(shapes)}.")
    caches = read_caches(graph.inputs, graph.outputs)
    return Anatomy(
        layers=layers,
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


def _named(values: Iterable[ir.Value], name: str) -> ir.Value:
    for value in values:
        if value.name == name:
            return value
    raise GraphError(
        f"The graph has no {name!r} among its inputs and outputs.",
        "Export it with the names that optimum and the genai builder use.",
    )
