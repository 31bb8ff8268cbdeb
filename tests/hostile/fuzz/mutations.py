"""What is done to good input: to its bytes, to its JSON, to a plan's header, to a graph's protobuf."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import onnx

DEEP = 100_000

# What stands in the place of a value.
ODD: Sequence[Any] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    -(2**64),
    10**30,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x" * 300,
    "\x1b[31mred\x1b[0m\nsecond line\r",
    "\ud800",
    "../../etc/passwd",
    "/dev/zero",
    "2024-13-45",
    "{{ 7 * 7 }}",
    "<script>alert(1)</script>",
    "=1+1",
    "\u202e\u0000",
    [],
    {},
    [[]],
    [None],
    [1, "two", 3.0],
    {"": None},
    {"kind": "neuron_adjust"},
)


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Cut, flipped, repeated, or with something in between."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0:
                del data[place:]
            case 1 if place < len(data):
                data[place] ^= 1 << random.randrange(8)
            case 2 if place < len(data):
                data[place] = random.randrange(256)
            case 3:
                del data[place : place + random.choice((1, 4, 32))]
            case 4:
                data[place:place] = data[max(0, place - random.choice((1, 16, 64))) : place]
            case 5:
                data[place:place] = random.choice(
                    (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"9" * 5000)
                )
            case _:
                data[place:place] = random.choice((b"[", b"{", b'{"a":')) * random.choice((2, DEEP))
    return bytes(data)


def mutated_json(content: bytes, random: Random) -> bytes:
    """One to three values of a JSON document replaced, removed, renamed, repeated or exchanged."""
    document = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _mutated_value(document, random)
    return json.dumps(document).encode()


def mutated_lines(content: bytes, random: Random) -> bytes:
    """One of the JSON lines mutated."""
    lines = content.splitlines()
    index = random.randrange(len(lines))
    lines[index] = mutated_json(lines[index], random)
    return b"\n".join(lines) + b"\n"


def mutated_plan(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file mutated, or the JSON that it holds as a plan."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if random.random() < 0.8 and "__metadata__" in header:
        text = header["__metadata__"]["bakeout"]
        header["__metadata__"]["bakeout"] = mutated_json(text.encode(), random).decode()
    else:
        header = json.loads(mutated_json(json.dumps(header).encode(), random))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def mutated_graph(content: bytes, random: Random) -> bytes:
    """One to three things about nodes, values, initialisers or attributes of a graph changed."""
    model = onnx.load_model_from_string(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(_GRAPH)(model, random)
    return bytes(model.SerializeToString())


def _mutated_value(document: Any, random: Random) -> Any:
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return random.choice(ODD)
    parent, key = random.choice(places)
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[random.choice(("x", "", "kind", "\x1b[2J", "é" * 200))] = parent.pop(key)
        case 2:
            other, there = random.choice(places)
            parent[key] = copy.deepcopy(other[there])
        case 3 if isinstance(parent, list):
            parent *= random.choice((2, 20))
        case 4 if isinstance(parent[key], int | float):
            parent[key] = random.choice((-1, 2, 0.5, 10**6)) * parent[key]
        case 5 if isinstance(parent[key], str):
            parent[key] += random.choice(("x", "\n", "\x07", "\ud801", " " * 300))
        case _:
            parent[key] = random.choice(ODD)
    return document


def _places(document: Any, depth: int = 0) -> Any:
    """Where values stand: (list or dict, key); of long lists, the first few alone."""
    if isinstance(document, dict):
        keys: Any = list(document)
    elif isinstance(document, list):
        keys = range(min(len(document), 5))
    else:
        return
    for key in keys:
        yield document, key
        if depth < 6:
            yield from _places(document[key], depth + 1)


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
            attribute.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 99))
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


_GRAPH: Sequence[Callable[[onnx.ModelProto, Random], None]] = (
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
