from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy, read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph, save_graph
from bakeout.models.network.families import feed_forward_layers

from tests.tiny_models import FAMILIES, tiny_checkpoint

# One family of every layout, the rest in the slow run: gated, fused, Gemm between Reshapes, Gemm on two dimensions.
QUICK = ("llama", "phi3", "gpt2", "opt")
TOKENS = np.array([[5, 9, 200, 31, 77], [40, 41, 8, 100, 3]])


def feed(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    """Two rows of five tokens, no past."""
    shapes = {value.name: value for value in session.get_inputs()}
    inputs: dict[str, np.ndarray] = {
        "input_ids": TOKENS,
        "attention_mask": np.ones_like(TOKENS),
        "position_ids": np.broadcast_to(np.arange(5), TOKENS.shape),
    }
    for name, value in shapes.items():
        if name.startswith("past_key_values"):
            _, heads, _, size = value.shape
            dtype = np.float16 if "float16" in value.type else np.float32
            inputs[name] = np.zeros((2, heads, 0, size), dtype)
    return {name: array for name, array in inputs.items() if name in shapes}


def activations(model: ir.Model, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per layer what the graph computes as pre-activation and key vector, [10, F] each. ``path``: where to write."""
    anatomy = read_anatomy(model)
    names = []
    for layer in anatomy.layers:
        for value in (layer.pre_activation, layer.key_vector):
            value.type = ir.TensorType(layer.dtype)
            model.graph.outputs.append(value)
            names.append(value.name)
    save_graph(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    flat = [array.reshape(-1, anatomy.widths[0]) for array in session.run(names, feed(session))]
    return list(zip(flat[::2], flat[1::2], strict=True))


def torch_activations(checkpoint: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    seen: dict[tuple[int, str], np.ndarray] = {}
    for layer in feed_forward_layers(model):

        def keep_pre_activation(_module, _inputs, output, layer=layer):  # type: ignore[no-untyped-def]
            seen[layer.layer, "pre"] = layer.pre_activation(output).reshape(-1, layer.width).numpy()

        def keep_key(_module, inputs, layer=layer):  # type: ignore[no-untyped-def]
            seen[layer.layer, "key"] = inputs[0].reshape(-1, layer.width).numpy()

        layer.gate.register_forward_hook(keep_pre_activation)
        layer.down.register_forward_pre_hook(keep_key)
    with torch.no_grad():
        model(torch.tensor(TOKENS), attention_mask=torch.ones(TOKENS.shape, dtype=torch.long))
    return [(seen[i, "pre"], seen[i, "key"]) for i in range(len(seen) // 2)]


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES],
)
def test_pre_activations_and_keys_are_torchs(
    family: str, checkpoint_of: Callable[[str], Path], onnx_of: Callable[[str], Path], tmp_path: Path
) -> None:
    found = activations(load_and_link(onnx_of(family), tmp_path), tmp_path / "probe.onnx")
    expected = torch_activations(checkpoint_of(family))
    assert len(found) == len(expected) == 4
    for (pre_activation, key), (torch_pre_activation, torch_key) in zip(found, expected, strict=True):
        np.testing.assert_allclose(pre_activation, torch_pre_activation, atol=1e-4)
        np.testing.assert_allclose(key, torch_key, atol=1e-4)


def load_and_link(directory: Path, beside: Path) -> ir.Model:
    """The graph of an export, its data files linked into ``beside`` so that an edited graph can be saved there."""
    for file in directory.glob("model.onnx*"):
        if file.name != "model.onnx":
            (beside / file.name).symlink_to(file)
    return load_graph(directory / "model.onnx")


def test_the_interface_of_an_optimum_export(llama_onnx: Path) -> None:
    anatomy = read_anatomy(load_graph(llama_onnx / "model.onnx"))
    assert (anatomy.widths, anatomy.hidden, anatomy.dtype) == ((96,) * 4, 32, ir.DataType.FLOAT)
    assert [layer.index for layer in anatomy.layers] == [0, 1, 2, 3]
    assert anatomy.position_ids is not None
    assert [cache.past_value.name for cache in anatomy.caches] == [f"past_key_values.{i}.value" for i in range(4)]
    assert [cache.present_key.name for cache in anatomy.caches] == [f"present.{i}.key" for i in range(4)]


def test_names_are_not_looked_at(llama_onnx: Path) -> None:
    model = load_graph(llama_onnx / "model.onnx")
    before = [layer.gate for layer in read_anatomy(model).layers]
    interface = {*model.graph.inputs, *model.graph.outputs}
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        for position, output in enumerate(node.outputs):
            if output not in interface:
                output.name = f"v{number}_{position}"
    assert [layer.gate for layer in read_anatomy(model).layers] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision"), [("llama", "fp32"), ("llama", "int4"), ("qwen2", "fp32"), ("gemma", "fp32")]
)
def test_a_graph_of_the_genai_builder(family: str, precision: str, tmp_path: Path) -> None:
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    # GroupQueryAttention wants heads of a multiple of 16.
    checkpoint = tiny_checkpoint(family, tmp_path / "checkpoint", hidden=64)
    builder.create_model(None, str(checkpoint), str(tmp_path), precision, "cpu", str(tmp_path / "cache"))
    model = load_graph(tmp_path / "model.onnx")
    assert (read_anatomy(model).widths, len(read_anatomy(model).caches)) == ((96,) * 4, 4)
    found = activations(model, tmp_path / "probe.onnx")
    # Four bits are coarse: that the right values were found must show nonetheless.
    tolerance = 0.5 if precision == "int4" else 1e-4
    for (pre_activation, _), (expected, _) in zip(found, torch_activations(checkpoint), strict=True):
        assert np.abs(pre_activation - expected).mean() <= tolerance * np.abs(expected).mean()


@pytest.mark.slow
def test_a_graph_of_torchs_dynamo_exporter(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    class WithoutCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(checkpoint_of("llama")).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
            return logits

    tokens = torch.tensor(TOKENS)
    torch.onnx.export(
        WithoutCache().eval(), (tokens, torch.ones_like(tokens)), tmp_path / "model.onnx", dynamo=True,
        opset_version=20, input_names=["input_ids", "attention_mask"], output_names=["logits"], external_data=False,
    )  # fmt: skip
    model = load_graph(tmp_path / "model.onnx")
    assert read_anatomy(model).caches == ()
    model.ir_version = 10
    found = activations(model, tmp_path / "probe.onnx")
    for (pre_activation, key), expected in zip(found, torch_activations(checkpoint_of("llama")), strict=True):
        np.testing.assert_allclose(pre_activation, expected[0], atol=1e-4)
        np.testing.assert_allclose(key, expected[1], atol=1e-4)


# Small graphs, to say what is an FFL and what is not. Weights: up to hidden 4, F 6.
HEAD = '<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>'
INTERFACE = "int64[B, W] input_ids, int64[B, P] attention_mask, float[B, W, 4] x"
WEIGHT_SHAPES = {
    "gate": (4, 6), "up": (4, 6), "down": (6, 4), "bias": (6,), "fused": (4, 12), "odd": (4, 9),
    "gate_transposed": (6, 4), "gate_8bit": (4, 6), "scale": (), "fused_down": (12, 4),
}  # fmt: skip


def small_graph(body: str, interface: str = INTERFACE, outputs: str = "float[B, W, 4] logits") -> ir.Model:
    proto = onnx.parser.parse_model(f"{HEAD} g ({interface}) => ({outputs}) {{ {body} }}")
    for name, shape in WEIGHT_SHAPES.items():
        array = np.zeros(shape, np.int8 if name == "gate_8bit" else np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def only_layer(body: str) -> tuple[str | None, str | None]:
    """The names of the pre-activation and the key vector of a graph of one FFL."""
    anatomy: Anatomy = read_anatomy(small_graph(body))
    (layer,) = anatomy.layers
    assert (layer.width, layer.hidden) == (6, 4)
    return layer.pre_activation.name, layer.key_vector.name


@pytest.mark.parametrize(
    "key",
    [
        "v = MatMul(x, gate) key = Relu(v)",
        "p = MatMul(x, gate) v = Add(bias, p) key = Tanh(v)",
        "v = MatMul(x, gate) s = Sigmoid(v) a = Mul(v, s) u = MatMul(x, up) key = Mul(u, a)",
        "g = MatMul(x, fused) u, v = Split <axis = -1, num_outputs = 2> (g) a = Relu(v) key = Mul(u, a)",
        "w = Transpose <perm = [1, 0]> (gate_transposed) v = MatMul(x, w) key = Relu(v)",
        "w = DequantizeLinear(gate_8bit, scale) v = MatMul(x, w) key = Relu(v)",
        "v = MatMul(x, gate) key = com.microsoft.QuickGelu(v)",
        # What an earlier intervention has put behind the gate.
        "p = MatMul(x, gate) some = Shape(p) v = ScatterElements <axis = -1> (p, some, p) key = Relu(v)",
    ],
)
def test_what_a_feed_forward_layer_is(key: str) -> None:
    assert only_layer(f"{key} logits = MatMul(key, down)") == ("v", "key")


@pytest.mark.parametrize(
    "body",
    [
        # no activation
        "v = MatMul(x, gate) logits = MatMul(v, down)",
        # two activations of different linears
        "v = MatMul(x, gate) a = Relu(v) w = MatMul(x, up) b = Relu(w) key = Mul(a, b) logits = MatMul(key, down)",
        # something else than linears goes into the product
        "v = MatMul(x, gate) a = Relu(v) m = ReduceMean(v) key = Mul(a, m) logits = MatMul(key, down)",
        # the weights do not lead from hidden to F and back
        "v = MatMul(x, odd) s = Slice(v, v, v) a = Relu(s) key = Mul(a, a) logits = MatMul(key, down)",
        # a product of two activations is attention, not a linear
        "v = MatMul(x, gate) a = Relu(v) logits = MatMul(a, a)",
    ],
)
def test_what_it_is_not(body: str) -> None:
    with pytest.raises(GraphError, match="No feed-forward layer was found"):
        read_anatomy(small_graph(body))


@pytest.mark.parametrize("operator", ["MoE", "QMoE"])
def test_a_mixture_of_experts_in_one_operator_is_refused_with_the_reason(operator: str) -> None:
    body = f"v = MatMul(x, gate) key = com.microsoft.{operator}(v) logits = MatMul(key, down)"
    with pytest.raises(GraphError, match="mixtures of experts, inside 1 operators that hide their neurons"):
        read_anatomy(small_graph(body))


# Of 4 numbers a token to 6 scores; the second as the genai builder writes it for lfm2_moe, a sigmoid spelled out.
SCORES = {
    "handed over": "scores = Identity(r)",
    "chosen in the graph": "n = Neg(r) e = Exp(n) a = Add(e, e) p = Reciprocal(a) b = Add(p, bias) "
    "t, i = TopK(b, scale) g = GatherElements(p, i) l = Log(g) z = ConstantOfShape(scale) "
    "scores = ScatterElements(z, i, l)",
}


@pytest.mark.parametrize("operator", ["MoE", "QMoE"])
@pytest.mark.parametrize("scores", SCORES)
def test_the_router_of_an_operator_that_holds_experts(operator: str, scores: str) -> None:
    body = f"r = MatMul(x, gate) {SCORES[scores]} logits = com.microsoft.{operator}(x, scores)"
    anatomy = read_anatomy(small_graph(body))
    assert [(router.logits.name, router.experts, router.hidden) for router in anatomy.routers] == [("r", 6, 4)]
    assert [held.router for held in anatomy.held] == [0]


ONE_LAYER = "v = MatMul(x, gate) key = Relu(v) logits = MatMul(key, down)"


def test_a_graph_may_take_no_mask() -> None:
    assert read_anatomy(small_graph(ONE_LAYER, INTERFACE.replace("attention_mask", "other"))).attention_mask is None


@pytest.mark.parametrize("missing", ["input_ids", "logits"])
def test_a_missing_input_or_output_is_told(missing: str) -> None:
    interface, outputs = INTERFACE.replace(missing, "other"), "float[B, W, 4] logits".replace(missing, "other")
    with pytest.raises(GraphError, match=f"no '{missing}'"):
        read_anatomy(small_graph(ONE_LAYER.replace(missing, "other"), interface, outputs))


def with_cache(model: ir.Model, layers: tuple[int, ...], forgotten: tuple[str, ...] = ()) -> ir.Model:
    """Give a graph caches that it only hands on, without the inputs and outputs that are ``forgotten``."""
    for layer in layers:
        for part in ("key", "value"):
            _hand_on(model, f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", forgotten)
    return model


def _hand_on(model: ir.Model, past: str, present: str, forgotten: tuple[str, ...] = ()) -> None:
    given = ir.Value(name=past, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "Identity", [given])
    node.outputs[0].name = present
    model.graph.append(node)
    if past not in forgotten:
        model.graph.inputs.append(given)
    if present not in forgotten:
        model.graph.outputs.append(node.outputs[0])


@pytest.mark.parametrize("layers", [(), (0,), (0, 1), (3, 7)])
def test_there_are_as_many_caches_as_there_are(layers: tuple[int, ...]) -> None:
    """One FFL, whatever has a cache: layers may share one, and those of other kinds have none."""
    anatomy = read_anatomy(with_cache(small_graph(ONE_LAYER), layers))
    assert (len(anatomy.layers), [cache.layer for cache in anatomy.caches]) == (1, list(layers))


@pytest.mark.parametrize(
    ("forgotten", "says"),
    [("past_key_values.0.key", "no past key of layer 0"), ("present.0.value", "no present value")],
)
def test_half_a_cache_is_told(forgotten: str, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        read_anatomy(with_cache(small_graph(ONE_LAYER), (0,), (forgotten,)))


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.2.conv_state", "present.2.conv_state"),
        ("past_key_values.2.recurrent_state", "present.2.recurrent_state"),
        ("past_conv.0", "present_conv.0"),
        ("input.cache.layers.1.conv_states", "output.cache.layers.1.conv_states"),
    ],
)
def test_states_of_other_layers(past: str, present: str) -> None:
    model = with_cache(small_graph(ONE_LAYER), (5,))
    _hand_on(model, past, present)
    anatomy = read_anatomy(model)
    assert [(state.past.name, state.present.name) for state in anatomy.states] == [(past, present)]
    assert [cache.layer for cache in anatomy.caches] == [5]


def test_a_number_of_past_tokens_is_no_state() -> None:
    model = small_graph(ONE_LAYER, INTERFACE + ", int64 past_sequence_length")
    assert read_anatomy(model).states == ()


def test_layers_of_several_widths() -> None:
    wider = """
        w = MatMul(y, fused)
        other_key = Relu(w)
        logits = MatMul(other_key, fused_down)
    """
    model = small_graph("v = MatMul(x, gate) key = Relu(v) y = MatMul(key, down)" + wider)
    assert read_anatomy(model).widths == (6, 12)
