"""What is done to graphs: to the protobuf of nodes, values, initialisers and attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import onnx


def mutated_graph(content: bytes, random: Random) -> bytes:
    """One to three things about nodes, values, initialisers or attributes of a graph changed."""
    model = onnx.load_model_from_string(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(_MUTATIONS)(model, random)
    return bytes(model.SerializeToString())


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto:
    node: onnx.NodeProto = model.graph.node[random.randrange(len(model.graph.node))]
    return node


def _rename_input(model: onnx.ModelProto, random: Random) -> None:
    node, other = _node(model, random), _node(model, random)
    if node.input:
        node.input[random.randrange(len(node.input))] = random.choice(("", "nowhere", other.output[0], node.output[0]))


def _rename_output(model: onnx.ModelProto, random: Random) -> None:
    node, other = _node(model, random), _node(model, random)
    node.output[0] = random.choice(("", "new", other.output[0]))


def _remove(model: onnx.ModelProto, random: Random) -> None:
    part = random.choice((model.graph.node, model.graph.input, model.graph.output, model.graph.initializer))
    if part:
        del part[random.randrange(len(part))]


def _repeat(model: onnx.ModelProto, random: Random) -> None:
    part: Any = random.choice((model.graph.node, model.graph.input, model.graph.output, model.graph.initializer))
    if part:
        part.append(copy.deepcopy(part[random.randrange(len(part))]))


def _reorder(model: onnx.ModelProto, random: Random) -> None:
    nodes = list(model.graph.node)
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _operator(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if random.random() < 0.7:
        node.op_type = random.choice(("", "If", "Loop", "Add", "MatMul", "Gather", "NoSuch", "Constant", "Identity"))
    else:
        node.domain = random.choice(("com.microsoft", "bakeout", "x" * 300))


def _initialiser(model: onnx.ModelProto, random: Random) -> None:
    if not model.graph.initializer:
        return
    tensor = model.graph.initializer[random.randrange(len(model.graph.initializer))]
    match random.randrange(5):
        case 0:
            tensor.dims[:] = random.choice(([], [-1], [0], [2**40], [-3, 5], [1, 2, 3]))
        case 1:
            tensor.data_type = random.choice((0, 1, 7, 8, 10, 99, 16, 21))
        case 2:
            tensor.name = random.choice(("", "x", "logits", "input_ids"))
        case 3:
            for entry in tensor.external_data:
                entry.value = random.choice(("-1", "x", "", "99999999999999", "../../x", "/dev/zero", "."))
        case _:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]


def _value(model: onnx.ModelProto, random: Random) -> None:
    values: Any = random.choice((model.graph.input, model.graph.output))
    if not values:
        return
    value = values[random.randrange(len(values))]
    match random.randrange(4):
        case 0:
            value.name = random.choice(("", "x", "input_ids", "logits", "past_key_values.99.key"))
        case 1:
            value.ClearField("type")
        case 2:
            value.type.tensor_type.elem_type = random.choice((0, 1, 7, 8, 99))
        case _:
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = random.choice((-1, 0, 1, 2**40))


def _attribute(model: onnx.ModelProto, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    node = random.choice(nodes)
    attribute = node.attribute[random.randrange(len(node.attribute))]
    match random.randrange(4):
        case 0:
            attribute.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 11))
        case 1:
            attribute.name = random.choice(("", "axis", "value", "to"))
        case 2:
            attribute.i = random.choice((-(2**63), 2**62, 77))
        case _:
            attribute.t.dims[:] = [-4, 2]


def _model(model: onnx.ModelProto, random: Random) -> None:
    match random.randrange(4):
        case 0:
            model.ir_version = random.choice((0, -1, 3, 99, 2**31))
        case 1:
            del model.opset_import[:]
        case 2:
            for opset in model.opset_import:
                opset.version = random.choice((-1, 0, 1, 9, 99, 2**40))
        case _:
            model.ClearField("graph")
            model.graph.node.add().output.append("x")


_MUTATIONS: Sequence[Callable[[onnx.ModelProto, Random], None]] = (
    _rename_input,
    _rename_output,
    _remove,
    _repeat,
    _reorder,
    _operator,
    _initialiser,
    _value,
    _attribute,
    _model,
)
