"""Weight edits in the initialisers of a decoder graph: the graph stays, some of its numbers change.

A plan names weights by layer and role; where they lie is found by structure. An initialiser in the graph's own file is
edited there. One in a data file is read, edited and dropped again, the graph from then on showing it as edited, and
``write_edited_tensors`` puts it into a copy of the data file: no other weight is ever read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy, read_anatomy
from bakeout.graph_passes.graph.dependence import nodes_behind
from bakeout.graph_passes.graph.graph_file import DataTensor, data_tensors, tensor_values
from bakeout.graph_passes.graph.weights.attention import AttentionLayer, attention_layers
from bakeout.graph_passes.graph.weights.ends import locate_ends
from bakeout.graph_passes.graph.weights.vector_location import Vectors
from bakeout.graph_passes.graph.weights.weight_location import WeightLocation, locate_weight
from bakeout.models.checkpoint.weight_arithmetic import (
    PlannedChange,
    change_weight,
    change_with_receipt,
    one_blas_thread,
    planned_changes,
)
from bakeout.models.plan import Intervention, ModelIdentity, UpdatedVector, WeightChange, is_of_an_end, is_of_attention
from bakeout.models.plan.receipt import Receipt


@dataclass(frozen=True, eq=False)
class _Edit:
    """One change of one weight, and where that lies."""

    planned: PlannedChange
    location: WeightLocation

    def make(self, values: NDArray[Any]) -> None:
        """Change the weight in ``values``, the whole tensor that it lies in."""
        change_weight(self.location.weight_in(values), self.planned)

    def make_with_receipt(self, values: NDArray[Any], observed: str) -> Receipt:
        """``make``, and the receipt for it."""
        return change_with_receipt(
            self.location.weight_in(values),
            self.planned,
            stored=values,
            node=self.location.linear.name or "",
            tensor=self.location.initialiser.name or "",
            observed=observed,
        )


class WeightEditsPass(ir.passes.InPlacePass):
    """Make all the weight edits of a plan, in its order, to a decoder graph that no other intervention is in yet.

    ``names``: the plan's model, by which errors call experts. ``receipts``, once the pass has run: one for every weight
    of every edit (``weight_arithmetic``), its ``node`` and ``tensor`` the linear and the initialiser. ``observed`` in
    their ``detail`` is the value that the canary compares: the pre-activation of the last layer that sees every token,
    or the last router's logits where that comes after it.

    Raises ``BakeoutError``, before anything is changed, where a weight is absent, of another shape, quantised, or also
    read by something else; and while it runs where a change rounds away (the graph is then to be discarded).
    """

    def __init__(self, interventions: Iterable[Intervention], names: ModelIdentity | None = None) -> None:
        super().__init__()
        self._names = names
        self.changes = planned_changes(interventions)
        self.receipts: list[Receipt] = []
        self._attention: Sequence[AttentionLayer] | None = None
        self._vectors: Vectors | None = None

    @one_blas_thread()
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        anatomy = read_anatomy(model)
        edits: dict[ir.Value, list[_Edit]] = {}
        for planned in self.changes:
            for location in self._locate(model.graph, anatomy, planned.change):
                planned.require_shape(location.shape)
                edits.setdefault(location.initialiser, []).append(_Edit(planned, location))
        _require_ranges_of_their_own(model, edits)
        observed = _deepest(model.graph, anatomy).name or ""
        self.receipts = [
            receipt for initialiser, own in edits.items() for receipt in _edit_initialiser(initialiser, own, observed)
        ]
        return ir.passes.PassResult(model, modified=bool(edits))

    def _locate(self, graph: ir.Graph, anatomy: Anatomy, change: WeightChange) -> Sequence[WeightLocation]:
        """Where the weight lies: in one place, or where it is an embedding and a head, in as many as two."""
        if is_of_an_end(change.role):
            return locate_ends(anatomy, change.role)
        return [self._locate_one(graph, anatomy, change)]

    def _locate_one(self, graph: ir.Graph, anatomy: Anatomy, change: WeightChange) -> WeightLocation:
        if isinstance(change, UpdatedVector):
            self._vectors = self._vectors or Vectors(graph)
            return self._vectors.locate(change)
        assert change.role != "vector" and not is_of_an_end(change.role), "these are located by themselves"
        if not is_of_attention(change.role):
            name = self._names.name_of(change.layer) if self._names else None
            return locate_weight(anatomy.feed_forward(change.layer), change.role, name)
        if self._attention is None:
            self._attention = attention_layers(graph, anatomy)
        if change.layer >= len(self._attention):
            raise GraphError(
                f"The plan edits attention of block {change.layer}, and the graph has {len(self._attention)}."
            )
        return self._attention[change.layer].locate(change.role)


def _deepest(graph: ir.Graph, anatomy: Anatomy) -> ir.Value:
    """What the canary of weight edits compares. A router beside a layer, of the same input, does not come after it."""
    if not anatomy.routers:
        return anatomy.layers[-1].pre_activation
    router = anatomy.routers[-1]
    if anatomy.layers and router.node not in nodes_behind(graph, anatomy.layers[-1].down.outputs[0]):
        return anatomy.layers[-1].pre_activation
    return router.logits


class EditedTensor(DataTensor):
    """A tensor in a data file as it is after its edits, which are made again whenever it is read."""

    awaits_writing = True
    edits: list[_Edit]

    def numpy(self) -> NDArray[Any]:
        """The edited values."""
        return self.edited(Path(self.location))

    def edited(self, data: Path) -> NDArray[Any]:
        """The edited values of the tensor that lies in ``data``, a copy of its data file."""
        values = tensor_values(self, data)
        for edit in self.edits:
            edit.make(values)
        return values

    def __array__(self, dtype: Any = None) -> NDArray[Any]:
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        """The edited values as they lie in a data file."""
        return self.numpy().tobytes()

    def tofile(self, file: BinaryIO) -> None:
        """Write ``tobytes``."""
        file.write(self.tobytes())


@one_blas_thread()
def write_edited_tensors(model: ir.Model, directory: Path) -> None:
    """Put the edited tensors of ``model`` into the copies of its data files that lie in ``directory``.

    One tensor is in memory at a time, and only its bytes are overwritten. The original data files may be gone.
    """
    for tensor in data_tensors(model):
        if isinstance(tensor, EditedTensor):
            copy = directory / tensor.name_in_graph
            values = tensor.edited(copy)
            with copy.open("r+b") as file:
                file.seek(tensor.offset or 0)
                file.write(values.tobytes())


def _edit_initialiser(initialiser: ir.Value, edits: list[_Edit], observed: str) -> list[Receipt]:
    tensor = initialiser.const_value
    assert tensor is not None, "an initialiser has a value"
    values = tensor_values(tensor)
    receipts = [edit.make_with_receipt(values, observed) for edit in edits]
    if isinstance(tensor, DataTensor):
        initialiser.const_value = _edited(tensor, edits)
    else:
        initialiser.const_value = ir.tensor(values, dtype=tensor.dtype, name=tensor.name)
    return receipts


def _edited(tensor: DataTensor, edits: list[_Edit]) -> EditedTensor:
    edited = EditedTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name
    )
    edited.name_in_graph = tensor.name_in_graph
    edited.edits = edits
    return edited


def _require_ranges_of_their_own(model: ir.Model, edited: Iterable[ir.Value]) -> None:
    """Raise ``GraphError`` where another initialiser lies in the bytes of an edited one."""
    ranges = sorted(
        (str(tensor.location), tensor.offset or 0, (tensor.offset or 0) + tensor.nbytes, tensor.name or "")
        for tensor in data_tensors(model)
    )
    names = {value.name for value in edited}
    furthest = ranges[:1]
    for entry in ranges[1:]:
        (before,) = furthest
        if entry[0] == before[0] and entry[1] < before[2] and (entry[3] in names or before[3] in names):
            raise GraphError(
                f"The initialisers {before[3]} and {entry[3]} share bytes of their data file, and the plan edits one.",
                "Export the model with a copy of each weight.",
            )
        if entry[0] != before[0] or entry[2] > before[2]:
            furthest = [entry]
