"""Neuron Adjust: pre-activations that look like the forget set's are shifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from bakeout.models.plan.arrays import Array, Floats, Integers, PlanError
from bakeout.models.plan.kinds.adjustment import AdjustedLayer, Adjustment, Coin, Tokens
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.intervention import Blocks, CoinPlace, Intervention, Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.model_identity import ModelIdentity

_ARRAYS = ("neurons", "forget_mean", "forget_deviation", "retain_mean", "retain_deviation")


@dataclass(frozen=True, kw_only=True)
class NeuronAdjustReport(RetainReport):
    """``ratio`` of all neurons are selected; ``dead_neurons`` do not vary on one of the sets and are none of them, nor
    are those of ``rare_experts``, which saw too few tokens. ``tokens``: which the Gaussians are of, None for answers'.
    """

    ratio: float | None = None
    selection: str | None = None
    coin: str | None = None
    neurons: int | None = None
    neurons_per_layer: Mapping[str, int] | None = None
    dead_neurons: int | None = None
    rare_experts: int | None = None
    tokens: Tokens | None = None
    forget_tokens: int | None = None
    retain_tokens: int | None = None

    def facts(self) -> list[tuple[str, str]]:
        """How the neurons were selected."""
        facts = super().facts()
        if self.ratio is not None:
            facts.append(("ratio", f"{100 * self.ratio:.3g} % of all neurons"))
        if self.selection is not None:
            facts.append(("selection", self.selection))
        if self.tokens is not None:
            facts.append(("tokens", self.tokens))
        if self.dead_neurons is not None:
            facts.append(("dead", f"{counted(self.dead_neurons, 'neuron')}, left alone"))
        if self.rare_experts:
            facts.append(("rare", f"{counted(self.rare_experts, 'expert')}, sent too few tokens, left alone"))
        if self.forget_tokens is not None and self.retain_tokens is not None:
            facts.append(("probed", f"{self.forget_tokens} tokens to forget, {self.retain_tokens} to retain"))
        return facts


@dataclass(frozen=True, eq=False)
class NeuronAdjust(Intervention, Adjustment):
    """Neuron Adjust (arXiv 2503.21730, section 3.1): shift pre-activations that look like the forget set's.

    Per selected neuron and token, with z = (v - mean) / deviation of either Gaussian: where
    q(v) = (z_r - z_f)(z_r + z_f) / 2 + log(deviation_r / deviation_f) is positive, v becomes
    mean_r - deviation_r * z_f with probability sigmoid(q) (``stochastic``), always (``threshold``), or in
    expectation (``expected``: v + sigmoid(q) (v' - v)). The two deterministic coins are our reading.

    ``seed`` (0 to 2**31 - 1) is used by the stochastic coin alone. The canary is the pre-activations, before the
    adjustment, of every selected neuron at the last token, layer after layer; NaN, which is not compared, of experts
    that this token is not sent to.
    """

    kind = "neuron_adjust"
    title = "Neuron Adjust"
    ties_in_rounding = True
    report_type = NeuronAdjustReport
    coin: Coin
    layers: tuple[AdjustedLayer, ...]
    seed: int = 0
    report: NeuronAdjustReport = field(default_factory=NeuronAdjustReport)

    def __post_init__(self) -> None:
        if self.coin not in get_args(Coin):
            raise PlanError(f"Neuron Adjust: no coin is called {self.coin!r}.")
        if not 0 <= self.seed < 2**31:
            raise PlanError(f"Neuron Adjust: the seed {self.seed} is not between 0 and 2**31 - 1.")
        numbers = [layer.layer for layer in self.layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise PlanError("Neuron Adjust: the layers are not ascending, or there is none.")

    def settings(self) -> dict[str, Any]:
        """Coin, seed and layers."""
        return {"coin": self.coin, "seed": self.seed, "layers": [adjusted.layer for adjusted in self.layers]}

    def structure(self) -> dict[str, Any]:
        """All but neurons and Gaussians."""
        return {"kind": self.kind, **self.settings()}

    def arrays(self) -> dict[str, Array]:
        """Neurons and Gaussians of every layer."""
        return {
            f"layers.{adjusted.layer}.{name}": getattr(adjusted, name) for adjusted in self.layers for name in _ARRAYS
        }

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From coin, seed, layers and their arrays."""

        def adjusted(layer: int) -> AdjustedLayer:
            dtypes = {name: np.int64 if name == "neurons" else np.float64 for name in _ARRAYS}
            return AdjustedLayer(layer, **{name: take(f"layers.{layer}.{name}", dtypes[name]) for name in _ARRAYS})

        layers = tuple(adjusted(layer) for layer in settings["layers"])
        return cls(coin=settings["coin"], layers=layers, seed=settings["seed"], report=report)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Layer by layer."""
        return tuple(
            Part(adjusted.layer, len(adjusted.neurons), self.count_text(len(adjusted.neurons)))
            for adjusted in self.layers
        )

    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has these layers and neurons."""
        for adjusted in self.layers:
            model.require_layer(adjusted.layer)
            if adjusted.neurons[-1] >= (width := model.width_of(adjusted.layer)):
                raise PlanError(f"Neuron Adjust names neuron {adjusted.neurons[-1]} of {width}.")

    @property
    def adjustment(self) -> Adjustment:
        """Itself."""
        return self

    @property
    def tokens(self) -> Tokens:
        """Those that the report names, or else the answers'."""
        return self.report.tokens or "answer"

    @property
    def is_stochastic(self) -> bool:
        """Where the coin is stochastic."""
        return self.coin == "stochastic"

    def with_coins_decided(self) -> Self:
        """With the coin ``threshold``: a stochastic one that always draws 0 decides alike."""
        return replace(self, coin="threshold") if self.is_stochastic else self

    def watched(self, layer: int) -> Integers | slice:
        """The selected neurons."""
        return next(adjusted.neurons for adjusted in self.layers if adjusted.layer == layer)

    def canary_unit(self, expected: Floats) -> Floats:
        """The retain set's standard deviations."""
        return np.concatenate([adjusted.retain_deviation for adjusted in self.layers])

    def is_behind(self, coin: CoinPlace, place: int, blocks: Blocks) -> NDArray[np.bool_]:
        """Neurons of later blocks, and of the coin's own where its intervention comes first in the plan."""
        return np.concatenate(
            [np.full(len(adjusted.neurons), (blocks[0][adjusted.layer], place) > coin) for adjusted in self.layers]
        )

    def describe(self, decode: Decode | None = None) -> Description:
        """Layer by layer."""
        neurons = sum(len(adjusted.neurons) for adjusted in self.layers)
        seed = f", seed {self.seed}" if self.is_stochastic else ""
        return Description(
            kind=self.kind,
            title=self.title,
            summary=f"{counted(neurons, 'neuron')}, {self.coin} coin{seed}, in {counted(len(self.layers), 'layer')}",
            explanation=(
                "Neurons are adjusted at every token: where a pre-activation looks more like those of the forget set "
                "than those of the retain set, it is shifted to the retain set's distribution and mirrored there."
            ),
            parts=self.parts,
            facts=tuple(self.report.facts()),
            details=self.report.details,
            json={
                "kind": self.kind,
                "coin": self.coin,
                "seed": self.seed,
                "neurons": neurons,
                "layers": [{"layer": part.layer, "neurons": part.count} for part in self.parts],
                "report": self.report.as_json(),
            },
        )
