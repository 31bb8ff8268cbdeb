"""A decoder graph small enough to know every value in it: its pre-activations are its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bakeout.graph_passes.graph.anatomy import read_anatomy

Array = NDArray[Any]


def residual_stack(
    width: int, layers: int = 1, dtype: type[np.floating[Any]] = np.float32, bias: Array | None = None
) -> ir.Model:
    """``layers`` FFLs whose gate is the identity and whose down is zero: every pre-activation is ``x`` plus ``bias``.

    ``x`` is an input, [batch, tokens, width]; ``bias``, [width], is 0 if not given.
    """
    bias = np.zeros(width) if bias is None else bias
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, value = [], "x"
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [value, "identity"], [f"product_{layer}"], name=f"gate_{layer}"),
            helper.make_node("Add", [f"product_{layer}", "bias"], [f"pre_activation_{layer}"]),
            helper.make_node("Relu", [f"pre_activation_{layer}"], [f"key_{layer}"]),
            helper.make_node("MatMul", [f"key_{layer}", "nothing"], [f"down_{layer}"]),
            helper.make_node("Add", [value, f"down_{layer}"], [f"stream_{layer}"]),
        ]
        value = f"stream_{layer}"
    nodes.append(helper.make_node("Identity", [value], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "residual_stack",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("x", kind, ["batch", "tokens", width]),
        ],
        [helper.make_tensor_value_info("logits", kind, ["batch", "tokens", width])],
        [
            numpy_helper.from_array(np.eye(width, dtype=dtype), "identity"),
            numpy_helper.from_array(np.zeros((width, width), dtype), "nothing"),
            numpy_helper.from_array(bias.astype(dtype), "bias"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


class AdjustedStack:
    """A session of an edited stack, whose outputs are the pre-activations as the layers' activations see them."""

    def __init__(self, model: ir.Model) -> None:
        names = []
        for layer in read_anatomy(model).layers:
            value = layer.pre_activation
            value.type = ir.TensorType(layer.dtype)
            model.graph.outputs.append(value)
            names.append(value.name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        proto = ir.to_proto(model).SerializeToString()
        self._session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self._names = names

    def __call__(self, x: Array) -> list[Array]:
        """``x``: [tokens, width], to one array of that shape per layer."""
        ids = np.zeros((1, len(x)), np.int64)
        outputs = self._session.run(self._names, {"input_ids": ids, "attention_mask": ids, "x": x[None]})
        return [np.asarray(output)[0] for output in outputs]
