"""A kind of intervention answers for itself: everything that files, bakers, checks and pages ask of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from bakeout.models.plan.arrays import Array, Floats, Integers, PlanError
from bakeout.models.plan.kinds.adjustment import Adjustment
from bakeout.models.plan.kinds.check import Check, Positions
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.report import FitReport
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.model_identity import ModelIdentity, Watched

# The array of a plan file with this name (the part behind the intervention's own prefix), which must be of this dtype.
Take = Callable[[str, type], Any]
# Where a stochastic coin is drawn: the block, and the intervention's place in the plan.
CoinPlace = tuple[int, int]
# Where a model computes what: the block of each FFL, and that of what weight edits are seen in.
Blocks = tuple[Sequence[int], int]
# How many values of a layer are the canary of a kind that names none of its own.
CANARY_NEURONS = 64


class Intervention(ABC):
    """One thing that a plan does to a model. Kinds are frozen dataclasses whose last field is ``report``.

    ``kind`` is its name in files, ``schema`` the number of the form in which it is written there: raise it when an
    older version could not read, or would misread, what is written. ``title`` names it to people, ``unit`` what the
    counts of its receipts count. ``at_most_one``: a plan can hold no second.
    ``stands_last``: what it promises is of the model as it was fitted, which whatever follows in a recipe would change.
    ``ties_in_rounding``: its decisions over single values can turn on how a runtime rounds.
    """

    kind: ClassVar[str]
    schema: ClassVar[int] = 1
    title: ClassVar[str]
    unit: ClassVar[str] = "neuron"
    edits_weights: ClassVar[bool] = False
    at_most_one: ClassVar[bool] = False
    stands_last: ClassVar[bool] = False
    ties_in_rounding: ClassVar[bool] = False
    report_type: ClassVar[type[FitReport]] = FitReport
    report: FitReport

    @property
    def watches(self) -> Watched:
        """What its canary looks at."""
        return "pre_activation"

    # In files

    @property
    def schema_written(self) -> int:
        """The number of the form in which this one is written: a kind can write an older one that holds it as well."""
        return self.schema

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All but the arrays and the report, as JSON."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """The arrays by their names in the plan file."""

    @classmethod
    @abstractmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """The intervention that ``settings`` and ``arrays`` were given by; ``report`` is of ``report_type``."""

    def structure(self) -> dict[str, Any]:
        """What another one must share for its constants to stand in for this one's in a graph, by short names.

        All of it, unless a kind says less: then no other can.
        """
        return {"kind": self.kind, **self.settings(), **self.arrays()}

    # In a model

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Layer by layer, or weight by weight, what is edited: baking owes a receipt for each."""

    @abstractmethod
    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has the layers, neurons and weights that are named here."""

    def weight_changes(self) -> tuple[WeightChange, ...]:
        """What becomes of weights, in the order in which it is done; nothing where a graph is edited."""
        return ()

    @property
    def adjustment(self) -> Adjustment | None:
        """The adjustment of pre-activations that this is, if it is one."""
        return None

    @property
    def check(self) -> Check | None:
        """The check that this is, if it is one."""
        return None

    def with_data(self, names: Mapping[str, Sequence[str]]) -> Self:
        """The same intervention, its report naming the data of every role (``FitReport.with_data``)."""
        kind: Any = self
        named: Self = replace(kind, report=self.report.with_data(names))
        return named

    def hidden(self, name: Callable[[str], str], refusal: Integers | None) -> Self:
        """The same intervention without its report, whose figures tell of the data.

        A check calls its skills by ``name``, and says ``refusal`` if one is given (int64, the end-of-text token last).
        """
        kind: Any = self
        nameless: Self = replace(kind, report=self.report_type())
        return nameless

    def must_join(self, other: Intervention) -> bool:
        """Whether no plan holds both as they are: they are of one kind, of which there is at most one."""
        return self.at_most_one and type(self) is type(other)

    def joined(self, other: Self) -> Self:
        """One that does what both do, of a kind that a plan holds once. Raises ``PlanError`` where there is none."""
        raise PlanError(f"The plans hold {self.title} twice.", "Fit one that does what both do.")

    def at_positions(self, positions: Positions) -> Self:
        """The same intervention, checking other positions; itself where it checks none."""
        return self

    # Chance

    @property
    def is_stochastic(self) -> bool:
        """Whether it draws, in each of its layers: then two runs give different tokens."""
        return False

    def with_coins_decided(self) -> Self:
        """The same intervention where nothing is drawn: it does what it does where every draw is 0."""
        return self

    # The canary

    def watched(self, layer: int) -> Integers | slice:
        """Which of a layer's F values (of the kind ``watches``) the canary looks at: the first ``CANARY_NEURONS``."""
        return slice(CANARY_NEURONS)

    def canary_tokens(self, tokens: Sequence[int]) -> slice:
        """Which of a sequence's ``tokens`` the canary's values are of, as a mean: the last, unless a kind says more."""
        return slice(len(tokens) - 1, None)

    def at_canary_tokens(self, watched: NDArray[Any], input_ids: Integers) -> Floats:
        """What was ``watched`` [sequences, tokens, n] at each sequence's canary tokens: float64 [sequences, n]."""
        rows = zip(watched, input_ids.tolist(), strict=True)
        return np.stack([values[self.canary_tokens(tokens)].mean(axis=0, dtype=np.float64) for values, tokens in rows])

    def canary_values(self, seen: Floats) -> Floats:
        """The canary's values from what was watched, part after part: float64 [sequences, n] to [sequences, values]."""
        return seen

    def canary_unit(self, expected: Floats) -> Floats:
        """The unit in which distances from ``expected`` [sequences, values] are measured: what broadcasts to it.

        By default the root mean square of the expected values.
        """
        is_known = bool(np.isfinite(expected).any())
        return np.full_like(expected, np.sqrt(np.nanmean(expected**2)) if is_known else np.nan)

    @abstractmethod
    def is_behind(self, coin: CoinPlace, place: int, blocks: Blocks) -> NDArray[np.bool_] | bool:
        """Which canary values a coin has a part in, bool [values] or one for all; ``place`` is one's own in the plan.

        A coin has a part in every later block, and in its own in whatever comes after it: the interventions that
        follow in the plan, and the key vector.
        """

    @property
    def contradiction(self) -> str:
        """In what the report contradicts the arrays or itself; empty for nothing, which does not prove the report."""
        return ""

    # For people

    @property
    def forgets(self) -> tuple[str, ...]:
        """The names of the data that it was fitted to forget."""
        return tuple(self.report.forget or ())

    @property
    def learns(self) -> tuple[str, ...]:
        """The names of the data that it was fitted to teach."""
        return tuple(self.report.learn or ())

    @abstractmethod
    def describe(self, decode: Decode | None = None) -> Description:
        """What it is. ``decode`` writes token ids as text; without, they are shown as they are."""

    @classmethod
    def count_text(cls, count: int) -> str:
        """The count of a receipt in words."""
        return counted(count, cls.unit)
