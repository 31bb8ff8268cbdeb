"""Neuron Adjust (arXiv 2503.21730, section 3.1) as graph nodes: one ``bakeout::NeuronAdjust`` per touched layer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer
from bakeout.graph_passes.graph.graph_file import graph_digest
from bakeout.graph_passes.graph.mixtures.stacks import apart
from bakeout.models.plan import AdjustedLayer, Coin, NeuronAdjust
from bakeout.models.plan.receipt import Receipt

DOMAIN = "bakeout"
FUNCTION = "NeuronAdjust"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# The constants in the order of the function's inputs.
_CONSTANTS = (
    "retain_mean",
    "retain_precision",
    "forget_mean",
    "forget_precision",
    "log_variance_ratio",
    "retain_deviation",
)
# Only the selected neurons are gathered, computed in float32, and scattered back.
_GATHER = {
    ir.DataType.FLOAT: "v = Gather <axis = -1> (pre_activation, neurons)",
    ir.DataType.FLOAT16: "selected = Gather <axis = -1> (pre_activation, neurons)  v = Cast <to = 1> (selected)",
    ir.DataType.BFLOAT16: "selected = Gather <axis = -1> (pre_activation, neurons)  v = Cast <to = 1> (selected)",
}
# The log-odds q = log p_f(v) - log p_r(v) are above 0 where z_r^2 - z_f^2 is above log(s_f^2 / s_r^2); in z form, since
# multiplied out they would overflow and cancel.
_IS_FORGET = """
    from_retain = Sub(v, retain_mean)    z_retain = Mul(from_retain, retain_precision)
    from_forget = Sub(v, forget_mean)    z_forget = Mul(from_forget, forget_precision)
    difference = Sub(z_retain, z_forget)
    sum = Add(z_retain, z_forget)
    product = Mul(difference, sum)
    forget_is_likelier = Greater(product, log_variance_ratio)
    mirrored = Mul(retain_deviation, z_forget)
    transported = Sub(retain_mean, mirrored)
"""
_ODDS = """
    twice_q = Sub(product, log_variance_ratio)
    half = Constant <value_float = 0.5> ()
    q = Mul(twice_q, half)
    a = Sigmoid(q)
"""
_COINS: dict[Coin, str] = {
    "threshold": "after = Where(forget_is_likelier, transported, v)",
    "expected": f"""
        {_ODDS}
        shift = Sub(transported, v)
        expected_shift = Mul(a, shift)
        moved = Add(v, expected_shift)
        after = Where(forget_is_likelier, moved, v)
    """,
    "stochastic": f"""
        {_ODDS}
        draw = RandomUniformLike <dtype = 1, seed: float = @seed> (v)
        coin = Less(draw, a)
        shifted = And(forget_is_likelier, coin)
        after = Where(shifted, transported, v)
    """,
}
_SCATTER = {
    ir.DataType.FLOAT: "adjusted = ScatterElements <axis = -1> (pre_activation, positions, after)",
    ir.DataType.FLOAT16: """
        rounded = Cast <to = 10> (after)
        adjusted = ScatterElements <axis = -1> (pre_activation, positions, rounded)
    """,
    ir.DataType.BFLOAT16: """
        rounded = Cast <to = 16> (after)
        adjusted = ScatterElements <axis = -1> (pre_activation, positions, rounded)
    """,
}


def name_prefix(index: int, layer: int) -> str:
    """What the names of all that intervention ``index`` puts into a layer begin with."""
    return f"{DOMAIN}.neuron_adjust_{index}.layers.{layer}"


def adjusted_value(receipt: Receipt) -> str:
    """The name of the value that an adjusted pre-activation is read by instead."""
    return f"{name_prefix(receipt.intervention, receipt.layer)}.adjusted"


class NeuronAdjustPass(ir.passes.InPlacePass):
    """Put a plan's Neuron Adjust behind the gate linears of a decoder graph.

    Per touched layer one node ``NeuronAdjust`` of the model-local domain ``bakeout`` (its overload is the coin) reads
    the pre-activation, and all that read the pre-activation read the node instead. Its other inputs are initialisers,
    ``neurons`` int64 [n] and float32 [n]: mean and precision (1 / deviation) of both Gaussians, the log of the
    ratio of the variances, and the retain deviation. Only the named neurons change; a value whose log-odds are NaN
    stays as it is. ``inline`` writes standard operators alone.

    ``index`` is the intervention's place in the plan, ``receipts`` one per layer, once the pass has run. Raises
    ``GraphError`` where the graph lacks a layer or neuron, or a constant leaves the range of float32.
    """

    def __init__(self, intervention: NeuronAdjust, index: int, *, inline: bool = False) -> None:
        super().__init__()
        self.intervention = intervention
        self.index = index
        self.inline = inline
        self.receipts: list[Receipt] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        anatomy = read_anatomy(model)
        layers = [anatomy.feed_forward(adjusted.layer) for adjusted in self.intervention.layers]
        constants = [
            self._constants(adjusted, layer) for adjusted, layer in zip(self.intervention.layers, layers, strict=True)
        ]
        before = graph_digest(model)
        layers = self._apart(model.graph, layers)
        for layer, arrays in zip(layers, constants, strict=True):
            self._insert(model, layer, arrays)
        self._declare_function(model, layers[0].dtype)
        if self.inline:
            InlinePass(criteria=_is_neuron_adjust)(model)
            model.opset_imports.pop(DOMAIN)
        after = graph_digest(model)
        self.receipts = [
            Receipt(
                intervention=self.index,
                kind=self.intervention.kind,
                layer=adjusted.layer,
                node=layer.gate.name or "",
                tensor=layer.pre_activation.name or "",
                count=len(adjusted.neurons),
                before=before,
                after=after,
                detail={
                    "coin": self.intervention.coin,
                    # Which tokens the values of an expert are of.
                    **({} if layer.tokens is None else {"tokens": layer.tokens.name}),
                },
            )
            for adjusted, layer in zip(self.intervention.layers, layers, strict=True)
        ]
        return ir.passes.PassResult(model, modified=True)

    def _apart(self, graph: ir.Graph, layers: Sequence[FeedForwardLayer]) -> list[FeedForwardLayer]:
        """The layers, those that are experts of one stack with a pre-activation of their own."""
        stacks: dict[ir.Value, list[FeedForwardLayer]] = {}
        for layer in layers:
            if layer.slot is not None:
                stacks.setdefault(layer.pre_activation, []).append(layer)
        alone = {
            layer.index: layer
            for experts in stacks.values()
            for layer in apart(graph, experts, name_prefix(self.index, experts[0].index))
        }
        return [alone.get(layer.index, layer) for layer in layers]

    def _constants(
        self, adjusted: AdjustedLayer, layer: FeedForwardLayer
    ) -> dict[str, NDArray[np.int64] | NDArray[np.float32]]:
        if adjusted.neurons[-1] >= layer.width:
            raise GraphError(
                f"Neuron Adjust names neuron {adjusted.neurons[-1]} of {layer.width} in layer {adjusted.layer}.",
                "Bake the plan into the model it was fitted on.",
            )
        if layer.dtype not in _FLOATS:
            raise GraphError(f"The pre-activations are {layer.dtype}, not float32, float16 or bfloat16.")
        return _constants(adjusted)

    def _insert(
        self, model: ir.Model, layer: FeedForwardLayer, arrays: dict[str, NDArray[np.int64] | NDArray[np.float32]]
    ) -> None:
        prefix = name_prefix(self.index, layer.index)
        inputs = [layer.pre_activation]
        for name, array in arrays.items():
            value = ir.Value(
                name=f"{prefix}.{name}",
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                shape=ir.Shape(array.shape),
                const_value=ir.tensor(array, name=f"{prefix}.{name}"),
            )
            model.graph.register_initializer(value)
            inputs.append(value)
        node = ir.Node(
            DOMAIN,
            FUNCTION,
            inputs,
            [ir.AttrFloat32("seed", self._seed(layer.index))] if self.intervention.coin == "stochastic" else [],
            overload=self.intervention.coin,
            name=prefix,
        )
        (adjusted,) = node.outputs
        adjusted.name = f"{prefix}.adjusted"
        adjusted.type, adjusted.shape = layer.pre_activation.type, layer.pre_activation.shape
        readers = tuple(layer.pre_activation.uses())
        gate_end = layer.pre_activation.producer()
        assert gate_end is not None, "a pre-activation is computed by the graph"
        model.graph.insert_after(gate_end, node)
        for reader, position in readers:
            if reader is not node:
                reader.replace_input_with(position, adjusted)

    def _seed(self, layer: int) -> float:
        """A seed of the layer's own, exact in float32; a small one would make the runtime's first draw near 0."""
        text = f"bakeout neuron_adjust {self.intervention.seed} {self.index} {layer}"
        return float(2**23 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**23)

    def _declare_function(self, model: ir.Model, dtype: ir.DataType) -> None:
        coin = self.intervention.coin
        opset = model.opset_imports[""]
        text = f"""
            <domain: "{DOMAIN}", opset_import: ["": {opset}]>
            {FUNCTION} {"<seed>" if coin == "stochastic" else ""} (pre_activation, neurons, {", ".join(_CONSTANTS)})
            => (adjusted)
            {{
                {_GATHER[dtype]}
                {_IS_FORGET}
                {_COINS[coin]}
                shape = Shape(v)
                positions = Expand(neurons, shape)
                {_SCATTER[dtype]}
            }}
        """
        proto = onnx.parser.parse_function(text)
        proto.overload = coin
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1


def adjustment_constants(intervention: NeuronAdjust, index: int, dtype: ir.DataType) -> dict[str, NDArray[Any]]:
    """The constants of every layer by their names in a graph, of whatever ``dtype`` its activations are."""
    return {
        f"{name_prefix(index, adjusted.layer)}.{name}": array
        for adjusted in intervention.layers
        for name, array in _constants(adjusted).items()
    }


def _constants(adjusted: AdjustedLayer) -> dict[str, NDArray[np.int64] | NDArray[np.float32]]:
    """One layer's neurons and float32 constants. Raises ``GraphError`` where one leaves the range of float32."""
    with np.errstate(over="ignore", under="ignore"):
        exact = {
            "retain_mean": adjusted.retain_mean,
            "retain_precision": 1 / adjusted.retain_deviation,
            "forget_mean": adjusted.forget_mean,
            "forget_precision": 1 / adjusted.forget_deviation,
            "log_variance_ratio": 2 * (np.log(adjusted.forget_deviation) - np.log(adjusted.retain_deviation)),
            "retain_deviation": adjusted.retain_deviation,
        }
        single = {name: values.astype(np.float32) for name, values in exact.items()}
    for name, values in single.items():
        if not np.all(np.isfinite(values)) or (name.endswith("precision") and not np.all(values > 0)):
            raise GraphError(
                f"Neuron Adjust, layer {adjusted.layer}: {name} leaves the range of float32.",
                "Fit the plan on data in which the selected neurons vary.",
            )
    return {"neurons": adjusted.neurons.astype(np.int64), **single}


def _is_neuron_adjust(function: ir.Function) -> bool:
    return (function.domain, function.name) == (DOMAIN, FUNCTION)
