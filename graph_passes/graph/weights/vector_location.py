"""Norms' weights and biases in a decoder graph, found by what they hold: exporters rename, fold and pack them.

A vector of one value throughout, as an untrained norm's ones, tells nothing of whose it is: that one goes by its name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import tensor_values
from bakeout.graph_passes.graph.weights.weight_location import EDITABLE, WeightLocation, require_one_reader
from bakeout.models.plan import UpdatedVector
from bakeout.models.plan.attention_modules import in_block

# What exporters add to a norm's weight that counts from 0, as Gemma's does.
_OFFSETS = (0.0, 1.0)
_REMEDY = "Bake the checkpoint (`to: safetensors`), and export that."


class Vectors:
    """All initialisers of a graph that are vectors, or several one behind another. They are read once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._values: dict[ir.Value, NDArray[np.float64]] = {}
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in EDITABLE and len(tensor.shape) == 1 and value.uses():
                self._values[value] = tensor_values(tensor).astype(np.float64)

    def locate(self, vector: UpdatedVector) -> WeightLocation:
        """Where the values that ``vector`` has before its change lie, rounded to the initialiser's type.

        Raises ``GraphError`` where they lie nowhere, where neither they nor a name tells which of several places is
        it, and where more than one node reads it.
        """
        where = f"Layer {vector.layer}, {vector.parameter}"
        places = [place for value in self._values for place in self._places(value, vector)]
        named = [place for place in places if _is_called(place[0], vector.parameter)]
        if len(places) > 1 or np.ptp(vector.before) == 0:
            places = named
        if not places:
            raise GraphError(f"{where}: the graph holds no vector of its values that is told from others.", _REMEDY)
        if len(places) > 1:
            raise GraphError(f"{where}: the graph holds it in {len(places)} places.", _REMEDY)
        ((value, rows),) = places
        require_one_reader(value, where)
        return WeightLocation(next(iter(value.uses())).node, value, False, rows, (len(vector.before), 1))

    def _places(self, value: ir.Value, vector: UpdatedVector) -> list[tuple[ir.Value, slice]]:
        own, size = self._values[value], len(vector.before)
        assert value.dtype is not None, "an initialiser has a type"
        places = []
        for offset in _OFFSETS:
            with np.errstate(over="ignore"):
                before = (vector.before + np.float32(offset)).astype(value.dtype.numpy()).astype(np.float64)
            starts = np.flatnonzero(own[: max(len(own) - size + 1, 0)] == before[0]).tolist()
            places += [start for start in starts if np.array_equal(own[start : start + size], before)]
        return [(value, slice(start, start + size)) for start in places]


def _is_called(value: ir.Value, parameter: str) -> bool:
    """Whether an initialiser has a parameter's name, from the list of blocks on at least."""
    own = in_block(parameter)
    return value.name is not None and (value.name == parameter or (own != parameter and value.name.endswith(f".{own}")))
