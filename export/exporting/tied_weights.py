"""An embedding that is also the weight of the head, stored once.

Exporters that fold constants store it twice: as it is for ``Gather``, and transposed for the head's ``MatMul``. optimum
ties the two again, but fails past 2 GB.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

# ONNX Runtime computes a larger transpose for every token, instead of once when it loads the graph.
_LARGEST_FOLDED = 2**30
# Rows of the embedding that are compared at a time: 16 MB of 4096 float32.
_ROWS = 1024


def tie_weights(graph: ir.Graph) -> None:
    """Let products with the transpose of an embedding read the embedding itself, through a ``Transpose``.

    Embeddings of more than 1 GiB stay stored twice: file size is given for speed.
    """
    embeddings = [value for value in graph.initializers.values() if _is_read_by(value, "Gather")]
    weights = [value for value in graph.initializers.values() if _is_read_by(value, "MatMul")]
    for weight in weights:
        tied = (each for each in embeddings if _can_be_tied(each.const_value, weight.const_value))
        if embedding := next(tied, None):
            _tie(graph, embedding, weight)


def _is_read_by(value: ir.Value, operator: str) -> bool:
    return {node.op_type for node in value.consumers()} == {operator}


def _can_be_tied(embedding: ir.TensorProtocol | None, weight: ir.TensorProtocol | None) -> bool:
    if embedding is None or weight is None or embedding.dtype != weight.dtype or embedding.nbytes > _LARGEST_FOLDED:
        return False
    shape = embedding.shape.numpy()
    if len(shape) != 2 or shape[::-1] != weight.shape.numpy():
        return False
    rows, columns = embedding.numpy(), weight.numpy().T
    starts = range(0, len(rows), _ROWS)
    return all(np.array_equal(rows[start : start + _ROWS], columns[start : start + _ROWS]) for start in starts)


def _tie(graph: ir.Graph, embedding: ir.Value, weight: ir.Value) -> None:
    transpose = ir.node("Transpose", [embedding], name=f"Transpose_{len(graph) + 1}")
    (transposed,) = transpose.outputs
    transposed.name = f"{embedding.name}_transposed"
    readers = weight.consumers()
    graph.insert_before(next(node for node in graph if node in readers), transpose)
    ir.convenience.replace_all_uses_with(weight, transposed)
    del graph.initializers[str(weight.name)]
