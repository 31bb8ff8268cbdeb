"""Small valid plans, and a hypothesis strategy of all kinds of them."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bakeout.models.plan import (
    AdjustedLayer,
    Canary,
    Coin,
    Cubes,
    Intervention,
    KeySpaceDetection,
    LayerDirection,
    LowRankUpdate,
    ModelIdentity,
    NeuronAdjust,
    Plan,
    Positions,
    Regions,
    ResidualAddition,
    ResidualProjection,
    Role,
    UpdatedVector,
    VectorUpdate,
    WeightUpdate,
    ZeroColumns,
    ZeroedColumns,
)
from bakeout.models.plan.kinds.detection_report import FalseRefusals, KeySpaceDetectionReport
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjustReport
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.plan.kinds.regions.rotated_cube import RotatedCubes
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.zero_columns import ZeroColumnsReport

MODEL = ModelIdentity(architecture="llama", layers=4, width=16, hidden=8, vocabulary=264, digest="ab" * 32)

_JSON = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(-9, 9), st.text(max_size=5), st.lists(st.booleans(), max_size=3))
)


def adjusted_layer(**changes: Any) -> AdjustedLayer:
    """Neurons 1 and 5 of layer 2."""
    values: dict[str, Any] = {
        "layer": 2,
        "neurons": np.array([1, 5]),
        "forget_mean": np.array([0.5, -1.0]),
        "forget_deviation": np.array([1.0, 2.0]),
        "retain_mean": np.array([0.0, -2.0]),
        "retain_deviation": np.array([0.5, 1.5]),
    }
    return AdjustedLayer(**{**values, **changes})


def neuron_adjust(**changes: Any) -> NeuronAdjust:
    """Two neurons of layer 2, threshold coin."""
    values: dict[str, Any] = {
        "coin": "threshold",
        "layers": (adjusted_layer(),),
        "seed": 3,
        "report": NeuronAdjustReport(ratio=0.03),
    }
    return NeuronAdjust(**{**values, **changes})


def key_space_detection(**changes: Any) -> KeySpaceDetection:
    """Three cubes of two skills in the joint key space of layers 1 and 3."""
    values: dict[str, Any] = {
        "layers": (1, 3),
        "regions": Cubes(
            changes.pop("centre", np.arange(3 * 32, dtype=np.float64).reshape(3, 32)),
            changes.pop("deviation", np.full((3, 32), 0.5)),
        ),
        "alpha": np.array([2.0, 2.0, 3.0]),
        "skills": ("math", "math", "code"),
        "refusal": np.array([7, 8, 1]),
        "positions": "query",
        "report": KeySpaceDetectionReport(
            floor=0.1, retain={"names": FalseRefusals(queries=4, refused=1, rate=0.25, interval=(0.0, 0.8))}
        ),
    }
    return KeySpaceDetection(**{**values, **changes})


def zeroed_columns(**changes: Any) -> ZeroedColumns:
    """Columns 0 and 7 of layer 1."""
    return ZeroedColumns(**{"layer": 1, "columns": np.array([0, 7]), **changes})


def zero_columns(**changes: Any) -> ZeroColumns:
    """Two columns of layer 1."""
    return ZeroColumns(**{"layers": (zeroed_columns(),), "report": ZeroColumnsReport(ratio=0.1), **changes})


def weight_update(**changes: Any) -> WeightUpdate:
    """An update of rank 2 of layer 3's ``down``."""
    left = np.arange(16, dtype=np.float32).reshape(8, 2)
    return WeightUpdate(**{"layer": 3, "role": "down", "left": left, "right": np.ones((2, 16), np.float32), **changes})


def low_rank_update(**changes: Any) -> LowRankUpdate:
    """One update, by LUNAR."""
    return LowRankUpdate(
        **{
            "method": "lunar",
            "updates": (weight_update(),),
            "report": RetainReport(details={"residual": 0.5}),
            **changes,
        }
    )


def vector_update(**changes: Any) -> VectorUpdate:
    """A norm's weight of layer 2, and one of no layer."""
    before = np.arange(8, dtype=np.float32)
    vectors = (
        UpdatedVector(2, "model.layers.2.input_layernorm.weight", before, np.full(8, 0.1)),
        UpdatedVector(3, "model.norm.weight", before, np.linspace(-1, 1, 8)),
    )
    return VectorUpdate(**{"method": "checkpoint difference", "vectors": vectors, **changes})


def residual_addition(**changes: Any) -> ResidualAddition:
    """A direction behind layer 2."""
    return ResidualAddition(
        **{"layers": (LayerDirection(2, np.arange(8, dtype=np.float32)),), "coefficient": -1.5, **changes}
    )


def residual_projection(**changes: Any) -> ResidualProjection:
    """A direction behind layers 0 and 2."""
    unit = np.full(8, 8**-0.5, np.float32)
    return ResidualProjection(**{"layers": (LayerDirection(0, unit), LayerDirection(2, -unit)), **changes})


def plan(*interventions: Intervention, **changes: Any) -> Plan:
    """Neuron Adjust, then Key Space Detection, unless others are given."""
    interventions = interventions or (neuron_adjust(), key_space_detection())
    expected = tuple(
        np.full((2, 2 if isinstance(intervention, NeuronAdjust) else 3), 0.25) for intervention in interventions
    )
    values: dict[str, Any] = {
        "model": MODEL,
        "interventions": interventions,
        "canary": Canary(np.array([[2, 3, 4], [5, 6, 7]]), expected),
        "provenance": {"versions": {"torch": "2"}},
    }
    return Plan(**{**values, **changes})


def _floats(shape: tuple[int, ...], low: float = -1e9, high: float = 1e9) -> st.SearchStrategy[Any]:
    # Filled: a few of the values are drawn one by one, the others are alike. Drawing them all is slow.
    return arrays.arrays(np.float64, shape, elements=st.floats(low, high), fill=st.floats(low, high))


@st.composite
def _adjusted_layers(draw: st.DrawFn, layer: int) -> AdjustedLayer:
    neurons = np.array(sorted(draw(st.sets(st.integers(0, MODEL.width - 1), min_size=1))), dtype=np.int64)
    return AdjustedLayer(
        layer,
        neurons,
        forget_mean=draw(_floats(neurons.shape)),
        forget_deviation=draw(_floats(neurons.shape, 1e-9)),
        retain_mean=draw(_floats(neurons.shape)),
        retain_deviation=draw(_floats(neurons.shape, 1e-9)),
    )


@st.composite
def _neuron_adjusts(draw: st.DrawFn) -> NeuronAdjust:
    layers = sorted(draw(st.sets(st.integers(0, MODEL.layers - 1), min_size=1)))
    return NeuronAdjust(
        coin=draw(st.sampled_from(get_args(Coin))),
        layers=tuple(draw(_adjusted_layers(layer)) for layer in layers),
        seed=draw(st.integers(0, 2**31 - 1)),
        report=NeuronAdjustReport(details=draw(_JSON)),
    )


@st.composite
def _key_space_detections(draw: st.DrawFn) -> KeySpaceDetection:
    layers = tuple(sorted(draw(st.sets(st.integers(0, MODEL.layers - 1), min_size=1))))
    regions = draw(st.integers(1, 3))
    shape = (regions, len(layers) * MODEL.width)
    positions = draw(st.sampled_from(get_args(Positions)))
    start = st.lists(st.integers(0, MODEL.vocabulary - 1), max_size=3).map(tuple)
    return KeySpaceDetection(
        layers=layers,
        regions=draw(_regions(shape)),
        alpha=draw(_floats((regions,), 1e-9)),
        skills=tuple(draw(st.lists(st.text(max_size=4), min_size=regions, max_size=regions))),
        refusal=draw(arrays.arrays(np.int64, st.integers(2, 9), elements=st.integers(0, MODEL.vocabulary - 1))),
        other_ends=draw(st.lists(st.integers(0, MODEL.vocabulary - 1), max_size=3).map(tuple)),
        positions=positions,
        query_start=draw(start) if positions == "mean" else (),
        report=KeySpaceDetectionReport(details=draw(_JSON)),
    )


@st.composite
def _regions(draw: st.DrawFn, shape: tuple[int, int]) -> Regions:
    half_spaces = st.builds(HalfSpaces, _floats(shape), _floats(shape[:1]))
    # Columns of the identity are orthonormal.
    directions = np.broadcast_to(np.eye(shape[1])[:, :2], (*shape, 2)).copy()
    low_rank = (_floats(shape), _floats(shape, 1e-9), st.just(directions), _floats((shape[0], 2), 1e-9))
    return draw(
        st.one_of(
            st.builds(Cubes, _floats(shape), _floats(shape, 1e-9)),
            half_spaces,
            st.builds(RotatedCubes, *low_rank),
            st.builds(Ellipsoids, *low_rank, _floats(shape[:1], 1e-9)),
        )
    )


@st.composite
def _zero_columns(draw: st.DrawFn) -> ZeroColumns:
    layers = sorted(draw(st.sets(st.integers(0, MODEL.layers - 1), min_size=1)))
    columns = st.sets(st.integers(0, MODEL.width - 1), min_size=1)
    return ZeroColumns(
        tuple(ZeroedColumns(layer, np.array(sorted(draw(columns)), dtype=np.int64)) for layer in layers),
        ZeroColumnsReport(details=draw(_JSON)),
    )


@st.composite
def _low_rank_updates(draw: st.DrawFn) -> LowRankUpdate:
    layers, roles = st.integers(0, MODEL.layers - 1), st.sampled_from(get_args(Role))
    updates = []
    for layer, role in sorted(draw(st.sets(st.tuples(layers, roles), min_size=1, max_size=3))):
        outputs, inputs = (MODEL.hidden, MODEL.width) if role == "down" else (MODEL.width, MODEL.hidden)
        rank = draw(st.integers(1, 3))
        left, right = draw(_floats((outputs, rank))), draw(_floats((rank, inputs)))
        updates.append(WeightUpdate(layer, role, left.astype(np.float32), right.astype(np.float32)))
    return LowRankUpdate(draw(st.text(max_size=5)), tuple(updates), RetainReport(details=draw(_JSON)))


@st.composite
def _vector_updates(draw: st.DrawFn) -> VectorUpdate:
    names = draw(st.sets(st.text("ab._", min_size=1, max_size=5), min_size=1, max_size=3))
    vectors = []
    for layer, name in sorted((draw(st.integers(0, MODEL.layers - 1)), name) for name in sorted(names)):
        size = draw(st.integers(1, 9))
        vectors.append(UpdatedVector(layer, name, draw(_floats((size,))).astype(np.float32), draw(_floats((size,)))))
    return VectorUpdate(draw(st.text(max_size=5)), tuple(vectors), RetainReport(details=draw(_JSON)))


@st.composite
def _residual_edits(draw: st.DrawFn) -> ResidualAddition | ResidualProjection:
    layers = sorted(draw(st.sets(st.integers(0, MODEL.layers - 1), min_size=1)))
    report = RetainReport(details=draw(_JSON))
    if draw(st.booleans()):
        unit = np.eye(MODEL.hidden, dtype=np.float32)
        chosen = draw(st.lists(st.integers(0, MODEL.hidden - 1), min_size=len(layers), max_size=len(layers)))
        return ResidualProjection(tuple(map(LayerDirection, layers, unit[chosen])), report)
    directions = [draw(_floats((MODEL.hidden,), 1e-3)).astype(np.float32) for _ in layers]
    coefficient = draw(st.floats(-100, 100).filter(bool))
    return ResidualAddition(tuple(map(LayerDirection, layers, directions)), coefficient, draw(st.booleans()), report)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of one to four interventions, at most one of them a Key Space Detection, in any order."""
    others = st.one_of(_neuron_adjusts(), _zero_columns(), _low_rank_updates(), _vector_updates(), _residual_edits())
    interventions: list[Intervention] = draw(st.lists(others, max_size=3))
    if not interventions or draw(st.booleans()):
        interventions.insert(draw(st.integers(0, len(interventions))), draw(_key_space_detections()))
    sequences = draw(st.integers(1, 3))
    ids = draw(arrays.arrays(np.int64, (sequences, 4), elements=st.integers(0, MODEL.vocabulary - 1)))
    expected = tuple(draw(_floats((sequences, 2))) for _ in interventions)
    return Plan(MODEL, tuple(interventions), Canary(ids, expected), draw(_JSON))
