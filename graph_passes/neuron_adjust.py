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
_CONSTANTS = ("boundary", "slope", "bend", "gain", "offset")
# Only the selected neurons are gathered, computed in float32, and scattered back.
_GATHER = {
    ir.DataType.FLOAT: "v = Gather <axis = -1> (pre_activation, neurons)",
    ir.DataType.FLOAT16: "selected = Gather <axis = -1> (pre_activation, neurons)  v = Cast <to = 1> (selected)",
    ir.DataType.BFLOAT16: "selected = Gather <axis = -1> (pre_activation, neurons)  v = Cast <to = 1> (selected)",
}
# The log-odds are q = log p_f(v) - log p_r(v) = x (slope - bend x), where x is the distance from a root. Divided by x^2
# they have the same sign, and take two nodes instead of four: on so few values a node costs no more than its launch.
_IS_FORGET = """
    x = Sub(v, boundary)
    steepness = Div(slope, x)
    forget_is_likelier = Greater(steepness, bend)
    mirrored = Mul(v, gain)
    transported = Add(mirrored, offset)
"""
_ODDS = """
    curved = Mul(x, bend)
    secant = Sub(slope, curved)
    q = Mul(x, secant)
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
    ``neurons`` int64 [n] and float32 [n]: ``boundary``, ``slope`` and ``bend`` of the log-odds, which are
    x (slope - bend x) at a distance x from the boundary; ``gain`` and ``offset`` of the value that v is mirrored to.
    Only the named neurons change; a value whose log-odds are NaN stays as it is. ``inline`` writes standard operators
    alone.

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
                positions = Where(forget_is_likelier, neurons, neurons)
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
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        constants = {name: values.astype(np.float32) for name, values in _exact_constants(adjusted).items()}
        smallest = np.finfo(np.float32).tiny
        for name in ("forget_deviation", "retain_deviation"):
            precision = (getattr(adjusted, name) ** -2.0).astype(np.float32)
            if not np.all(np.isfinite(precision) & (precision >= smallest)):
                raise _out_of_range(adjusted.layer, name)
    for name, values in constants.items():
        if not np.all(np.isfinite(values)):
            raise _out_of_range(adjusted.layer, name)
    return {"neurons": adjusted.neurons.astype(np.int64), **constants}


def _exact_constants(adjusted: AdjustedLayer) -> dict[str, NDArray[np.float64]]:
    """The constants in float64.

    The log-odds are a parabola, or a line where the deviations are equal. At a distance y from the forget mean they are
    -bend y^2 + linear y + height, and ``boundary`` is the root that is the nearer to the forget mean; their derivative
    there is the root of the discriminant, which no choice of Gaussians makes negative.
    """
    forget, retain = adjusted.forget_deviation, adjusted.retain_deviation
    distance = adjusted.forget_mean - adjusted.retain_mean
    log_ratio = np.log(forget) - np.log(retain)
    linear = distance / retain**2
    height = (distance / retain) ** 2 / 2 - log_ratio
    discriminant = distance**2 + 2 * (forget - retain) * (forget + retain) * log_ratio
    slope = np.copysign(np.sqrt(discriminant) / (forget * retain), linear)
    # Equal Gaussians: the log-odds are 0 everywhere.
    from_forget = np.divide(-2 * height, linear + slope, out=np.zeros_like(slope), where=slope != 0)
    return {
        "boundary": adjusted.forget_mean + from_forget,
        "slope": slope,
        "bend": (forget**-2.0 - retain**-2.0) / 2,
        "gain": -retain / forget,
        "offset": adjusted.retain_mean + retain / forget * adjusted.forget_mean,
    }


def _out_of_range(layer: int, name: str) -> GraphError:
    return GraphError(
        f"Neuron Adjust, layer {layer}: {name} leaves the range of float32.",
        "Fit the plan on data in which the selected neurons vary.",
    )


def _is_neuron_adjust(function: ir.Function) -> bool:
    return (function.domain, function.name) == (DOMAIN, FUNCTION)
