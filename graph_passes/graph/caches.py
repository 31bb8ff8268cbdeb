"""What a decoder graph keeps from run to run: the caches of attention layers, and other layers' states.

They are independent of the feed-forward layers: a layer may have a cache, a recurrent or convolutional state, or share
another layer's cache and have nothing of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.exporter_names import CacheName, past_name, present_name


@dataclass(frozen=True, eq=False)
class KeyValues:
    """One attention layer's cache, [batch, heads, slots, head size] each. ``layer``: the number in its names."""

    layer: int
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value


@dataclass(frozen=True, eq=False)
class State:
    """Another state, of any shape, that one run hands to the next."""

    past: ir.Value
    present: ir.Value


@dataclass(frozen=True, eq=False)
class Caches:
    """All that a graph keeps: ``attention`` in the layers' order, ``states`` in the outputs'."""

    attention: tuple[KeyValues, ...]
    states: tuple[State, ...]


def read_caches(inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> Caches:
    """Pair past inputs with present outputs by their names.

    Raises ``GraphError`` where a layer's cache lacks one of its four parts. Inputs called past that nothing comes back
    for are no states (a number of past tokens, for instance).
    """
    past = {name: value for value in inputs if (name := past_name(value.name)) is not None}
    present = {name: value for value in outputs if (name := present_name(value.name)) is not None}
    layers = sorted({name.layer for name in (*past, *present) if name.is_key_or_value})
    attention = [
        KeyValues(
            layer,
            _part(past, layer, "key", "past"),
            _part(past, layer, "value", "past"),
            _part(present, layer, "key", "present"),
            _part(present, layer, "value", "present"),
        )
        for layer in layers
    ]
    states = [State(past[name], value) for name, value in present.items() if not name.is_key_or_value and name in past]
    return Caches(tuple(attention), tuple(states))


def _part(values: dict[CacheName, ir.Value], layer: int, kind: str, side: str) -> ir.Value:
    value = values.get(CacheName(layer, kind))
    if value is None:
        there = sorted(str(part.name) for name, part in values.items() if name.is_key_or_value)
        raise GraphError(f"The graph's KV cache has no {side} {kind} of layer {layer}, but {there}.")
    return value
