"""Assumptions: gaps and overlaps are what numbers say, and what drifts is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.network.probing import probe_neurons
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.reference.assumptions import conversation_drift, gaussian_gap, gaussian_overlap, neuron_shapes
from bakeout.models.reference.hooks import Hooks

from tests.baked_parity import neuron_adjust_of_experts
from tests.recipe_files import rows
from tests.tiny_models import byte_tokenizer, random_prompts, tiny_model


def _records(subject: str, use: str = "probe") -> list[Record]:
    tokenizer = byte_tokenizer()
    return [
        Record(row["prompt"], row["response"], tokenizer.encode(row["prompt"]), tokenizer.encode(row["response"]))
        for row in rows(subject, use)
    ]


@given(st.floats(-3, 3), st.floats(0.1, 4), st.floats(-3, 3), st.floats(0.1, 4))
def test_the_overlap_of_two_gaussians_is_the_area_under_both(
    mean: float, deviation: float, other_mean: float, other_deviation: float
) -> None:
    points = np.linspace(-30, 30, 12_001)
    lower = np.minimum(norm.pdf(points, mean, deviation), norm.pdf(points, other_mean, other_deviation))
    area = float(lower.sum() * (points[1] - points[0]))
    assert gaussian_overlap(mean, deviation, other_mean, other_deviation) == pytest.approx(area, abs=2e-3)


def test_the_gap_is_kolmogorov_s_and_smirnov_s() -> None:
    values = np.random.default_rng(0).exponential(size=200)
    assert gaussian_gap(values, 1, 1) == pytest.approx(kstest(values, "norm", args=(1, 1)).statistic)


@pytest.fixture(scope="module")
def adjust(llama_checkpoint: Path) -> NeuronAdjust:
    model = load_model(llama_checkpoint)
    forget, retain = (probe_neurons(model, _records(subject)) for subject in ("sums", "names"))
    return fit_neuron_adjust(forget, retain, NeuronAdjustOptions(forget=["forget"], ratio=0.1))


def test_every_selected_neuron_is_looked_at(llama_checkpoint: Path, adjust: NeuronAdjust) -> None:
    model = load_model(llama_checkpoint)
    shapes = neuron_shapes(model, adjust, _records("sums"), _records("names"))
    selected = [(layer.layer, int(neuron)) for layer in adjust.layers for neuron in layer.neurons]
    assert [(one.layer, one.neuron) for one in shapes.neurons] == selected
    assert all(0 <= one.forget_gap <= 1 and 0 <= one.overlap <= 1 for one in shapes.neurons)
    # They were selected for lying higher on the forget set.
    assert np.mean([one.shifted_forget - one.shifted_retain for one in shapes.neurons]) > 0.2


def test_neurons_of_experts_are_looked_at_on_the_tokens_that_are_sent_to_them() -> None:
    """A mixture computes its layers in another order than plans number them in."""
    model, prompts = tiny_model("deepseek_v3"), random_prompts(12, seed=3)
    adjust = neuron_adjust_of_experts(model, "threshold", prompts)
    records = [Record("", "", prompt[:1], prompt[1:]) for prompt in prompts]
    with torch.no_grad(), Hooks(model, [adjust]) as hooks:
        seen = []
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
            seen.append(hooks.seen[0].numpy())
    # The adjustments are in force here; up to the first one's block they change nothing.
    first = adjust.layers[0]
    values = np.concatenate(seen)
    shapes = neuron_shapes(model, adjust, records, records, scope="all")
    by_neuron = {(shape.layer, shape.neuron): shape for shape in shapes.neurons}
    for column, neuron in enumerate(first.neurons):
        gap = gaussian_gap(values[:, column], first.forget_mean[column], first.forget_deviation[column])
        # Prompts that are run together are rounded otherwise; one token more or less changes it far more.
        assert by_neuron[first.layer, int(neuron)].forget_gap == pytest.approx(gap, abs=1e-5)
    # Their Gaussians are of the same tokens, so that none is far off, whichever layer it lies in.
    assert max(shape.forget_gap for shape in shapes.neurons) < 0.5
    assert len(shapes.neurons) == sum(len(layer.neurons) for layer in adjust.layers)
    few = neuron_shapes(model, adjust, records[:1], records[:1], scope="all")
    assert 0 < len(few.neurons) < len(shapes.neurons)
    assert "are of experts that these tokens are not sent to" in few.warnings[0]
    drift = conversation_drift(model, adjust, {"a": records[:4]}, records, forget=["a"], lengths=[20])
    assert drift.rows[0].shift == 0
    assert drift.rows[1].shift is not None and 0 < drift.rows[1].shift < 10


def test_neurons_that_look_the_same_on_both_sets_are_warned_of(llama_checkpoint: Path) -> None:
    model = load_model(llama_checkpoint)
    forget, retain = (probe_neurons(model, _records("names", use)) for use in ("probe", "calibration"))
    alike = fit_neuron_adjust(forget, retain, NeuronAdjustOptions(forget=["forget"], ratio=0.1))
    shapes = neuron_shapes(model, alike, _records("names"), _records("names", "calibration"))
    assert any("look much the same on both sets" in warning for warning in shapes.warnings)


def test_the_same_batching_or_another_gives_the_same_drift(
    llama_checkpoint: Path, tiny_plan: Plan, adjust: NeuronAdjust
) -> None:
    model = load_model(llama_checkpoint)
    detection = next(one for one in tiny_plan.interventions if isinstance(one, KeySpaceDetection))
    queries = {name: _records(name, "test") for name in ("sums", "names")}
    conversation = [*_records("sums", "calibration"), *_records("names", "calibration")]
    for intervention in (detection, adjust):
        found = [
            conversation_drift(
                model, intervention, queries, conversation, forget=["sums"], lengths=[60, 200], batch_size=size
            )
            for size in (1, 5)
        ]
        assert len(found[0].rows) == 6
        for one, other in zip(found[0].rows, found[1].rows, strict=True):
            assert (one.name, one.first, one.last, one.refused) == (other.name, other.first, other.last, other.refused)
            assert one.shift == pytest.approx(other.shift, abs=1e-6)
        alone, *behind = (row for row in found[0].rows if row.name == "sums")
        assert alone.last <= 12
        assert [row.first >= length for row, length in zip(behind, (60, 200), strict=True)] == [True, True]
        assert alone.shift in (None, 0.0)


def test_a_conversation_that_hides_the_query_is_warned_of(llama_checkpoint: Path, tiny_plan: Plan) -> None:
    """A random model's last layers see mostly the context."""
    model = load_model(llama_checkpoint)
    detection = next(one for one in tiny_plan.interventions if isinstance(one, KeySpaceDetection))
    drift = conversation_drift(
        model,
        detection,
        {"sums": _records("sums", "calibration")},
        _records("names", "calibration"),
        forget=["sums"],
        lengths=[300],
    )
    alone, behind = drift.rows
    assert alone.refused is not None
    assert behind.refused is not None
    assert bool(drift.warnings) == (behind.refused < alone.refused - 0.05)
    with pytest.raises(BakeoutError, match="rows with tokens"):
        conversation_drift(model, detection, {"sums": _records("sums")}, [], forget=["sums"], lengths=[10])
