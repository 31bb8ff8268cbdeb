"""The plan: interventions as inert arrays, and the model they were fitted on. NumPy alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Coin = Literal["stochastic", "threshold", "expected"]
Positions = Literal["query", "step", "every"]
# The linear layers of an FFL. "gate" makes the pre-activation, in an ungated FFL too; "up" only gated FFLs have.
Role = Literal["gate", "up", "down"]

# How many neurons of the last layer are a weight edit's canary.
CANARY_NEURONS = 64
# The latch stores how much of the refusal has been said in eight bits.
LONGEST_REFUSAL = 255


class PlanError(BakeoutError):
    """A plan that contradicts itself, or does not fit what it is applied to."""

    def __init__(self, cause: str, remedy: str = "Fit the plan again.") -> None:
        super().__init__(cause, remedy)


@dataclass(frozen=True)
class ModelIdentity:
    """What a plan knows of the model it was fitted on.

    ``width`` is F, the number of neurons of one FFL; ``digest`` the SHA-256 of the checkpoint's weights
    (``models.checkpoint.checkpoint_files.weights_digest``).
    """

    architecture: str
    layers: int
    width: int
    hidden: int
    vocabulary: int
    digest: str

    def require_shape(self, *, layers: int, width: int, hidden: int) -> None:
        """Raise ``PlanError`` unless a model of these dimensions can be the one the plan was fitted on."""
        expected = (self.layers, self.width, self.hidden)
        if (layers, width, hidden) != expected:
            raise PlanError(
                f"The plan was fitted on a model of {self.layers} layers, FFL width {self.width} and hidden size "
                f"{self.hidden}; this one has {layers}, {width} and {hidden}.",
                "Bake the plan into the model it was fitted on, or fit one for this model.",
            )


@dataclass(frozen=True, eq=False)
class AdjustedLayer:
    """The selected neurons of one layer and the Gaussians of their pre-activations.

    ``neurons``: int64 [n], ascending. The four others: float64 [n], in the unit of the pre-activation; the
    deviations are positive.
    """

    layer: int
    neurons: Integers
    forget_mean: Floats
    forget_deviation: Floats
    retain_mean: Floats
    retain_deviation: Floats

    def __post_init__(self) -> None:
        where = f"Neuron Adjust, layer {self.layer}"
        _require_layer(self.layer, where)
        if self.neurons.ndim != 1 or len(self.neurons) == 0:
            raise PlanError(f"{where}: no neurons are named.")
        if self.neurons[0] < 0 or bool(np.any(np.diff(self.neurons) <= 0)):
            raise PlanError(f"{where}: the neuron indices are not ascending from 0.")
        for name in ("forget_mean", "forget_deviation", "retain_mean", "retain_deviation"):
            values = getattr(self, name)
            if values.shape != self.neurons.shape:
                raise PlanError(f"{where}: {name} has shape {values.shape}, not {self.neurons.shape}.")
            _require_finite(values, f"{where}: {name}")
        if bool(np.any(self.forget_deviation <= 0)) or bool(np.any(self.retain_deviation <= 0)):
            raise PlanError(f"{where}: a standard deviation is not positive, so the neuron has no density.")


@dataclass(frozen=True, eq=False)
class NeuronAdjust:
    """Neuron Adjust (arXiv 2503.21730, section 3.1): shift pre-activations that look like the forget set's.

    Per selected neuron and token, with z = (v - mean) / deviation of either Gaussian: where
    q(v) = (z_r - z_f)(z_r + z_f) / 2 + log(deviation_r / deviation_f) is positive, v becomes
    mean_r - deviation_r * z_f with probability sigmoid(q) (``stochastic``), always (``threshold``), or in
    expectation (``expected``: v + sigmoid(q) (v' - v)). The two deterministic coins are our reading.

    ``seed`` (0 to 2**31 - 1) is used by the stochastic coin alone. ``report`` is JSON about the fit.
    """

    kind: ClassVar[str] = "neuron_adjust"
    coin: Coin
    layers: tuple[AdjustedLayer, ...]
    seed: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.coin not in get_args(Coin):
            raise PlanError(f"Neuron Adjust: no coin is called {self.coin!r}.")
        if not 0 <= self.seed < 2**31:
            raise PlanError(f"Neuron Adjust: the seed {self.seed} is not between 0 and 2**31 - 1.")
        numbers = [layer.layer for layer in self.layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise PlanError("Neuron Adjust: the layers are not ascending, or there is none.")


@dataclass(frozen=True, eq=False)
class KeySpaceDetection:
    """Key Space Detection (arXiv 2503.21730, section 3.2): refuse queries whose key vector lies in a cube.

    ``layers``: ascending; a key is the concatenation of these layers' key vectors, D = len(layers) * F numbers.
    ``centre`` and ``deviation``: float64 [cubes, D]; ``alpha``: float64 [cubes]; ``skills``: a name per cube.
    A key is inside cube c when its margin max_j |key_j - centre_cj| / deviation_cj is at most alpha_c.
    ``refusal``: int64 [tokens], what a refused row says, the end-of-text token last. ``positions``: ``query``
    tests the last real token of each run that has no past or more than one new token, ``step`` the last real
    token of every run, ``every`` all new tokens. ``report`` is JSON about the fit.
    """

    kind: ClassVar[str] = "key_space_detection"
    layers: tuple[int, ...]
    centre: Floats
    deviation: Floats
    alpha: Floats
    skills: tuple[str, ...]
    refusal: Integers
    positions: Positions = "query"
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = "Key Space Detection"
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise PlanError(f"{where}: the layers are not ascending, or there is none.")
        if self.positions not in get_args(Positions):
            raise PlanError(f"{where}: no positions are called {self.positions!r}.")
        if self.centre.ndim != 2 or 0 in self.centre.shape or self.centre.shape[1] % len(self.layers):
            raise PlanError(f"{where}: the cubes' centres have shape {self.centre.shape}, not [cubes, layers x F].")
        if self.deviation.shape != self.centre.shape:
            raise PlanError(f"{where}: centre and deviation have different shapes.")
        cubes = len(self.centre)
        if self.alpha.shape != (cubes,) or len(self.skills) != cubes:
            raise PlanError(f"{where}: {cubes} cubes need as many alphas and skill names.")
        _require_finite(self.centre, f"{where}: centre")
        _require_finite(self.deviation, f"{where}: deviation")
        _require_finite(self.alpha, f"{where}: alpha")
        if bool(np.any(self.deviation <= 0)) or bool(np.any(self.alpha <= 0)):
            raise PlanError(f"{where}: a deviation or an alpha is not positive.")
        if self.refusal.ndim != 1 or not 2 <= len(self.refusal) <= LONGEST_REFUSAL or bool(np.any(self.refusal < 0)):
            raise PlanError(
                f"{where}: the refusal must have 1 to {LONGEST_REFUSAL - 1} tokens and the end-of-text token.",
                "Choose another refusal text.",
            )

    def margins(self, keys: Floats) -> Floats:
        """The margin to every cube: keys float [n, D] to float64 [n, cubes]."""
        keys = np.asarray(keys, dtype=np.float64)
        return np.stack(
            [np.abs((keys - c) / d).max(axis=1) for c, d in zip(self.centre, self.deviation, strict=True)], axis=1
        )


@dataclass(frozen=True, eq=False)
class ZeroedColumns:
    """The columns of one layer's ``down`` that become 0: int64 [n], ascending neuron indices."""

    layer: int
    columns: Integers

    def __post_init__(self) -> None:
        where = f"Zeroed columns, layer {self.layer}"
        _require_layer(self.layer, where)
        if self.columns.ndim != 1 or len(self.columns) == 0:
            raise PlanError(f"{where}: no columns are named.")
        if self.columns[0] < 0 or bool(np.any(np.diff(self.columns) <= 0)):
            raise PlanError(f"{where}: the column indices are not ascending from 0.")


@dataclass(frozen=True, eq=False)
class ZeroColumns:
    """Selective Pruning (the baseline of arXiv 2503.21730): neurons removed by zeroing their columns of ``down``.

    Shapes stay, so that every loader takes the result. ``report`` is JSON about the fit.
    """

    kind: ClassVar[str] = "zero_columns"
    layers: tuple[ZeroedColumns, ...]
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [layer.layer for layer in self.layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise PlanError("Zeroed columns: the layers are not ascending, or there is none.")


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """What is added to one weight W [out, in] (``y = W x``): ``left`` [out, rank] @ ``right`` [rank, in], float32."""

    layer: int
    role: Role
    left: Floats32
    right: Floats32

    def __post_init__(self) -> None:
        where = f"Low-rank update, layer {self.layer}, {self.role}"
        _require_layer(self.layer, where)
        if self.role not in get_args(Role):
            raise PlanError(f"{where}: no weight of an FFL is called so.")
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise PlanError(f"{where}: factors of shapes {self.left.shape} and {self.right.shape} have no product.")
        if 0 in self.left.shape or 0 in self.right.shape:
            raise PlanError(f"{where}: the factors are empty.")
        _require_finite(self.left, f"{where}: left")
        _require_finite(self.right, f"{where}: right")


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """Weights of FFLs changed by low-rank matrices, as LUNAR, UNLEARN, LEARN and Reveal-and-Release end in.

    ``method`` names the one that fitted it. ``updates``: ascending by layer, then by role, each weight once.
    ``report`` is JSON about the fit.
    """

    kind: ClassVar[str] = "low_rank_update"
    method: str
    updates: tuple[WeightUpdate, ...]
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = [(update.layer, update.role) for update in self.updates]
        if not weights or weights != sorted(set(weights)):
            raise PlanError("Low-rank update: the weights are not in ascending order, each once, or there is none.")


Intervention = NeuronAdjust | KeySpaceDetection | ZeroColumns | LowRankUpdate
WeightEdit = ZeroColumns | LowRankUpdate


@dataclass(frozen=True, eq=False)
class Canary:
    """A few token sequences and what the model computes on them, to tell a same-shaped wrong model.

    ``input_ids``: int64 [sequences, tokens], no padding. ``expected``: per intervention float64 [sequences, values],
    with all interventions in force: for Neuron Adjust the pre-activations, before the adjustment, of every selected
    neuron at the last token, layer after layer; for Key Space Detection the margins at the last token; for edited
    weights the pre-activations of the first ``CANARY_NEURONS`` neurons of the last layer at the last token. Values
    downstream of a stochastic coin are NaN and are not compared.
    """

    input_ids: Integers
    expected: tuple[Floats, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Interventions in order, the model they were fitted on, a canary, and where the data came from.

    Each intervention was fitted with those before it applied; a model that carries the plan applies all of them
    at once. ``provenance`` is JSON: digests of the data and the versions that fitted the plan.

    >>> plan = bakeout.load_plan("plan.safetensors")
    >>> plan.model.architecture, plan.model.layers
    ('llama', 6)
    >>> [intervention.kind for intervention in plan.interventions]
    ['neuron_adjust']
    """

    model: ModelIdentity
    interventions: tuple[Intervention, ...]
    canary: Canary
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.interventions:
            raise PlanError("The plan holds no intervention.")
        if len(self.canary.expected) != len(self.interventions):
            raise PlanError("The canary does not have one entry per intervention.")
        checks = [i for i in self.interventions if isinstance(i, KeySpaceDetection)]
        if len(checks) > 1:
            raise PlanError(
                "The plan holds two Key Space Detections.", "Put their skills into one: a check can hold many cubes."
            )
        for intervention in self.interventions:
            self._require_within_model(intervention)
        ids = self.canary.input_ids
        if ids.ndim != 2 or 0 in ids.shape or bool(np.any(ids < 0)) or bool(np.any(ids >= self.model.vocabulary)):
            raise PlanError("The canary's tokens are not in the model's vocabulary.")
        for values in self.canary.expected:
            if values.ndim != 2 or len(values) != len(ids) or bool(np.any(np.isinf(values))):
                raise PlanError("The canary's expected values are malformed.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one safetensors file: arrays and JSON, no code. ``load_plan`` reads it."""
        from bakeout.models.plan.plan_file import save_plan

        save_plan(self, Path(path))

    def _require_within_model(self, intervention: Intervention) -> None:
        if isinstance(intervention, NeuronAdjust):
            last = intervention.layers[-1].layer
            for layer in intervention.layers:
                if layer.neurons[-1] >= self.model.width:
                    raise PlanError(f"Neuron Adjust names neuron {layer.neurons[-1]} of {self.model.width}.")
        elif isinstance(intervention, ZeroColumns):
            last = intervention.layers[-1].layer
            for zeroed in intervention.layers:
                if zeroed.columns[-1] >= self.model.width:
                    raise PlanError(f"Zeroed columns name neuron {zeroed.columns[-1]} of {self.model.width}.")
        elif isinstance(intervention, LowRankUpdate):
            last = intervention.updates[-1].layer
            for update in intervention.updates:
                self._require_shape(update)
        else:
            last = intervention.layers[-1]
            if intervention.centre.shape[1] != len(intervention.layers) * self.model.width:
                raise PlanError(f"The cubes' dimension is not {len(intervention.layers)} x {self.model.width}.")
            if intervention.refusal.max() >= self.model.vocabulary:
                raise PlanError("The refusal's tokens are not in the model's vocabulary.")
        if last >= self.model.layers:
            raise PlanError(f"The plan names layer {last} of a model with {self.model.layers}.")

    def _require_shape(self, update: WeightUpdate) -> None:
        shape = (len(update.left), update.right.shape[1])
        inner, outer = self.model.width, self.model.hidden
        if shape != ((outer, inner) if update.role == "down" else (inner, outer)):
            raise PlanError(f"The update of layer {update.layer}, {update.role}, has shape {shape}.")


def _require_layer(layer: int, where: str) -> None:
    if not isinstance(layer, int) or layer < 0:
        raise PlanError(f"{where}: layers are counted from 0.")


def _require_finite(values: Floats | Floats32, what: str) -> None:
    if not bool(np.all(np.isfinite(values))):
        raise PlanError(f"{what} holds NaN or infinite values.", "Probe again, in float32, and look for overflow.")
