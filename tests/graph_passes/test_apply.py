from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import graph_digest, load_graph
from bakeout.graph_passes.neuron_adjust import NeuronAdjustPass
from bakeout.models.plan import Canary, Intervention, ModelIdentity, Plan, PlanError
from bakeout.models.plan.receipt import Receipt

from tests.graph_passes.residual_stack import residual_stack
from tests.plan_examples import adjusted_layer, key_space_detection, neuron_adjust

LLAMA = ModelIdentity(architecture="llama", layers=4, width=96, hidden=32, vocabulary=264, digest="ab" * 32)
CENTRE = np.zeros((1, 2 * 96))
DETECTION = key_space_detection(
    centre=CENTRE, deviation=CENTRE + 1, alpha=np.ones(1), skills=("math",), layers=(1, 3), refusal=np.array([7, 1])
)


def plan(*interventions: Intervention, model: ModelIdentity = LLAMA) -> Plan:
    expected = tuple(np.zeros((1, 1)) for _ in interventions)
    return Plan(model, interventions, Canary(np.array([[5]]), expected))


@pytest.fixture
def llama(llama_onnx: Path) -> ir.Model:
    return load_graph(llama_onnx / "model.onnx")


def places(receipts: list[Receipt]) -> list[tuple[int, str, int]]:
    return [(receipt.intervention, receipt.kind, receipt.layer) for receipt in receipts]


@pytest.mark.parametrize("inline", [False, True])
def test_a_baked_graph_is_valid_and_loads_without_a_word(
    llama: ir.Model, inline: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    apply_plan(llama, plan(neuron_adjust(), DETECTION), inline=inline, monitor=True)
    proto = ir.to_proto(llama)
    assert proto.ir_version == 10
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()][-2:] == ["refused", "margin"]
    assert capfd.readouterr().err == ""
    assert all(value.uses() for value in llama.graph.initializers.values())
    assert bool(llama.functions) is not inline


def test_receipts_are_in_the_plans_order_whatever_the_graphs(llama: ir.Model) -> None:
    before = graph_digest(llama)
    interventions = (DETECTION, neuron_adjust(layers=(adjusted_layer(layer=0), adjusted_layer(layer=2))))
    receipts = apply_plan(llama, plan(*interventions))
    assert places(receipts) == [
        (0, "key_space_detection", 1),
        (0, "key_space_detection", 3),
        (1, "neuron_adjust", 0),
        (1, "neuron_adjust", 2),
    ]
    # Neuron Adjust needs the flat graph: it was there first.
    assert receipts[2].before == before
    assert receipts[0].before == receipts[2].after


def test_the_same_plan_gives_the_same_graph(llama_onnx: Path) -> None:
    models = [load_graph(llama_onnx / "model.onnx") for _ in range(2)]
    for model in models:
        apply_plan(model, plan(neuron_adjust(coin="stochastic"), DETECTION))
    assert graph_digest(models[0]) == graph_digest(models[1])


@pytest.mark.parametrize("changes", [{"layers": 5}, {"width": 104}, {"hidden": 40}])
def test_a_plan_for_a_model_of_another_shape_is_refused(llama: ir.Model, changes: dict[str, int]) -> None:
    other = ModelIdentity(**{**vars(LLAMA), **changes})
    before = graph_digest(llama)
    with pytest.raises(PlanError, match="this one has 4, 96 and 32"):
        apply_plan(llama, plan(neuron_adjust(), model=other))
    assert graph_digest(llama) == before


def test_an_edit_that_matches_less_than_the_plan_names_is_an_error(
    llama: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = NeuronAdjustPass.call

    def forgetful(self: NeuronAdjustPass, model: ir.Model) -> ir.passes.PassResult:
        result = edit(self, model)
        self.receipts.pop()
        return result

    monkeypatch.setattr(NeuronAdjustPass, "call", forgetful)
    with pytest.raises(GraphError, match=r"Intervention 0 \(neuron_adjust\) did not match once in layers \[2\]"):
        apply_plan(llama, plan(neuron_adjust()))


def test_an_old_opset_is_refused() -> None:
    model = residual_stack(16)
    model.opset_imports[""] = 17
    with pytest.raises(GraphError, match="opset 17"):
        apply_plan(model, plan(neuron_adjust()))


def test_a_cache_is_needed_for_a_refusal_alone() -> None:
    shape = ModelIdentity(architecture="stack", layers=3, width=16, hidden=16, vocabulary=264, digest="ab" * 32)
    assert len(apply_plan(residual_stack(16, layers=3), plan(neuron_adjust(), model=shape))) == 1
    centre = np.zeros((1, 16))
    detection = key_space_detection(
        centre=centre, deviation=centre + 1, alpha=np.ones(1), skills=("math",), layers=(1,)
    )
    with pytest.raises(GraphError, match="no KV cache"):
        apply_plan(residual_stack(16, layers=3), plan(detection, model=shape))
