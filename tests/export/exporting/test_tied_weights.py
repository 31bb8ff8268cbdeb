"""An embedding and its transpose become one weight, unless ONNX Runtime would transpose it for every token."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bakeout.export.exporting.tied_weights import tie_weights
from bakeout.graph_passes.graph.graph_file import load_graph

# Weights of zeros, in a file that holds nothing but a hole.
DECODER = """<ir_version: 10, opset_import: ["" : 18]>
decoder (int64[n] ids) => (float[n, {rows}] logits) <
    float[{rows}, 1024] table = ["location": "zeros", "offset": "0", "length": "{size}"],
    float[1024, {rows}] head = ["location": "zeros", "offset": "0", "length": "{size}"]
> {{
    hidden = Gather (table, ids)
    logits = MatMul (hidden, head)
}}"""


@pytest.mark.parametrize(
    ("rows", "operators"), [(3000, ["Gather", "Transpose", "MatMul"]), (2**18 + 1, ["Gather", "MatMul"])]
)
def test_an_embedding_of_up_to_a_gibibyte_is_tied(tmp_path: Path, rows: int, operators: list[str]) -> None:
    size = rows * 1024 * 4
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(size)
    onnx.save(onnx.parser.parse_model(DECODER.format(rows=rows, size=size)), tmp_path / "model.onnx")
    model = load_graph(tmp_path / "model.onnx")
    tie_weights(model.graph)
    assert [node.op_type for node in model.graph] == operators
    assert set(model.graph.initializers) == ({"table"} if "Transpose" in operators else {"table", "head"})


def test_another_weight_is_not_tied(tmp_path: Path) -> None:
    size = 5 * 1024 * 4
    (tmp_path / "zeros").write_bytes(bytes(size) + b"\1\0\0\0")
    text = DECODER.format(rows=5, size=size)
    # The last number of the head is not 0.
    text = text.replace('head = ["location": "zeros", "offset": "0"', 'head = ["location": "zeros", "offset": "4"')
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    model = load_graph(tmp_path / "model.onnx")
    tie_weights(model.graph)
    assert [node.op_type for node in model.graph] == ["Gather", "MatMul"]
