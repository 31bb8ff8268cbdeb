"""Which adapters a graph's slots take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bakeout.export.running.adapter_file import read_adapter
from bakeout.models.errors import BakeoutError


@pytest.fixture
def session() -> onnxruntime.InferenceSession:
    """A graph that adds the slot, float32 [2], to what it is given."""
    x, slot, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "slot", "y"))
    default = helper.make_tensor("slot", TensorProto.FLOAT, [2], [0, 0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "slot"], ["y"])], "graph", [x, slot], [y], [default])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _adapter(path: Path, **constants: NDArray[Any]) -> Path:
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in constants.items()}
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))
    return path


def test_a_constant_of_the_slots_type_and_shape_is_read(session: onnxruntime.InferenceSession, tmp_path: Path) -> None:
    constants = read_adapter(_adapter(tmp_path / "own", slot=np.ones(2, np.float32)), session)
    assert session.run(None, {"x": np.ones(2, np.float32), **{k: v.numpy() for k, v in constants.items()}})[0][1] == 2


@pytest.mark.parametrize(
    "constants",
    [{"slot": np.ones(2, np.float16)}, {"slot": np.ones(3, np.float32)}, {"other": np.ones(2, np.float32)}],
    ids=["type", "shape", "name"],
)
def test_another_is_refused(
    session: onnxruntime.InferenceSession, tmp_path: Path, constants: dict[str, NDArray[Any]]
) -> None:
    with pytest.raises(BakeoutError, match="no slot of its type and shape"):
        read_adapter(_adapter(tmp_path / "other", **constants), session)
