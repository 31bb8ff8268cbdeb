"""Where in a decoder graph the ends of a model lie: the embedding that tokens are looked up in, and the head."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy
from bakeout.graph_passes.graph.linear import Linear
from bakeout.graph_passes.graph.weights.attention import nearest_linears
from bakeout.graph_passes.graph.weights.weight_location import (
    EDITABLE,
    WeightLocation,
    locate_in_linear,
    require_one_reader,
)
from bakeout.models.plan import EndRole

_PASSES_TOKENS_ON = frozenset(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
_REMEDY = "Bake the checkpoint (`to: safetensors`), and export that."


def locate_ends(anatomy: Anatomy, role: EndRole) -> tuple[WeightLocation, ...]:
    """Where the weights [vocabulary, hidden] of ``role`` lie: of tied ones in one initialiser, or in two.

    Raises ``GraphError`` where one is not found, is quantised, or is also read by something else.
    """
    places = []
    if role != "head":
        places.append(_embedding(anatomy, also=() if role == "embedding" else _weight_readers(_head(anatomy))))
    if role != "embedding":
        head, readers = _head(anatomy), [place.linear for place in places]
        places.append(locate_in_linear(head, "The head", also=readers))
    alone = {place.initialiser: place for place in reversed(places)}
    return tuple(reversed(alone.values()))


def _embedding(anatomy: Anatomy, also: Collection[ir.Node]) -> WeightLocation:
    gathers = list(_lookups(anatomy.input_ids))
    if len(gathers) != 1:
        raise GraphError(f"The graph looks its tokens up in {len(gathers)} embeddings that are plain.", _REMEDY)
    (gather,) = gathers
    value = gather.inputs[0]
    tensor = None if value is None else value.const_value
    if value is None or tensor is None or tensor.dtype not in EDITABLE or len(tensor.shape) != 2:
        raise GraphError("The embedding of the graph is computed, or of a type that is not edited.", _REMEDY)
    require_one_reader(value, "The embedding", also)
    rows, columns = tensor.shape.numpy()
    return WeightLocation(gather, value, False, None, (rows, columns))


def _lookups(tokens: ir.Value) -> Iterator[ir.Node]:
    """The nodes that look ``tokens`` up."""
    for node, position in tokens.uses():
        if node.op_type == "Gather" and position == 1:
            yield node
        elif node.op_type in _PASSES_TOKENS_ON and position == 0:
            yield from _lookups(node.outputs[0])


def _head(anatomy: Anatomy) -> Linear:
    linears = nearest_linears(anatomy.logits)
    if len(linears) != 1:
        raise GraphError(f"The graph's logits come from {len(linears)} linear layers.", _REMEDY)
    return linears[0]


def _weight_readers(linear: Linear) -> tuple[ir.Node, ...]:
    """The linear's node, and those that rearrange its weight: whoever reads the initialiser is one of them."""
    readers, value = [linear.node], linear.node.inputs[1]
    while value is not None and (node := value.producer()) is not None:
        readers.append(node)
        value = node.inputs[0]
    return tuple(readers)
