"""The trials of a search: what each candidate did, and the stated rule that chooses among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeout.models.methods.search_space import Settings

# The rule: of the candidates that keep this share of every retained accuracy, the one that forgets most.
KEPT = 0.95


@dataclass(frozen=True)
class Measured:
    """The effect of a candidate.

    ``forget`` and ``retain``: per name the accuracy as a share of the base model's; ``divergence``: how far
    the answers' first tokens diverge from the base model's on retain prompts, in nats.
    """

    forget: Mapping[str, float]
    retain: Mapping[str, float]
    divergence: float

    @property
    def left(self) -> float:
        """The largest share that is left of a forgotten name."""
        return max(self.forget.values())

    @property
    def kept(self) -> float:
        """The smallest share that is kept of a retained name."""
        return min(self.retain.values())

    def as_json(self) -> dict[str, Any]:
        """As in the table of trials."""
        return {"forget": dict(self.forget), "retain": dict(self.retain), "divergence": self.divergence}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measured:
        """From a row of the table of trials."""
        return cls(row["forget"], row["retain"], row["divergence"])


@dataclass(frozen=True)
class Trial:
    """One candidate."""

    settings: Settings
    measured: Measured

    def as_json(self) -> dict[str, Any]:
        """A row of the table of trials."""
        return {"settings": dict(self.settings), **self.measured.as_json()}


def choose_trial(trials: Sequence[Trial]) -> Trial:
    """The stated rule: the smallest forget accuracy among those that keep 95 % of the worst retained name's.

    Among equals, the one with the smallest divergence, then the earlier one. If no trial keeps 95 %, the knee of the
    trade-off: the trial nearest to nothing left and everything kept.
    """
    kept = [trial for trial in trials if trial.measured.kept >= KEPT]
    if kept:
        return min(kept, key=lambda trial: (trial.measured.left, trial.measured.divergence))
    return min(trials, key=lambda trial: math.hypot(trial.measured.left, 1 - trial.measured.kept))


def described(trial: Trial) -> str:
    """A trial in a line."""
    settings = ", ".join(f"{key} {value}" for key, value in trial.settings.items())
    forget = ", ".join(f"{name} {share:.0%}" for name, share in trial.measured.forget.items())
    worst = min(trial.measured.retain, key=lambda name: trial.measured.retain[name])
    return (
        f"{settings}: of base, {forget} left, all others at least {trial.measured.kept:.0%} ({worst}), "
        f"divergence {trial.measured.divergence:.3f}"
    )
