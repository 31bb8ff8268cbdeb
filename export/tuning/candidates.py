"""Candidates of a search, measured beside the model as it was before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bakeout.export.tuning.trials import Measured
from bakeout.models.data.rows import Record
from bakeout.models.data.spreading import spread
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting
from bakeout.models.plan import Intervention

if TYPE_CHECKING:
    from bakeout.models.network.teacher_forcing import Answers

_BATCH = 32


class Meter:
    """Measures candidates beside the model that carries the earlier interventions alone."""

    def __init__(self, fitting: Fitting, forget: Sequence[str], retain: Sequence[str], prompts: int) -> None:
        from bakeout.models.network.generation import end_tokens

        self._fitting = fitting
        self._forget, self._retain = list(forget), list(retain)
        self._end = end_tokens(fitting.model, fitting.tokenizer)
        self._records = {name: _measured_rows(fitting, name, prompts) for name in (*forget, *retain)}
        self._base: dict[str, Answers] = self._answers(())

    @property
    def baseline(self) -> dict[str, float]:
        """The accuracy per name before the candidate."""
        return {name: _accuracy(answered, answered) for name, answered in self._base.items()}

    def measure(self, candidate: Intervention) -> Measured:
        """The effect of the candidate, with the earlier interventions applied."""
        answered = self._answers((candidate,))
        shares = {name: _share(answered[name], self._base[name]) for name in answered}
        divergence = np.concatenate([answered[name].divergence(self._base[name]) for name in self._retain])
        return Measured(
            {name: shares[name] for name in self._forget},
            {name: shares[name] for name in self._retain},
            float(divergence.mean()),
        )

    def _answers(self, candidate: Sequence[Intervention]) -> dict[str, Answers]:
        from bakeout.models.network.teacher_forcing import answers
        from bakeout.models.reference.hooks import Hooks
        from bakeout.models.reference.weight_edits import edited_weights

        fitting = self._fitting
        base = self._base if candidate else {}
        by_name = {}
        with edited_weights(fitting.model, candidate), Hooks(fitting.model, (*fitting.earlier, *candidate)):
            for name, records in self._records.items():
                by_name[name] = answers(
                    fitting.model, records, end=self._end, base=base.get(name), batch_size=_BATCH, track=fitting.track
                )
        return by_name


def _measured_rows(fitting: Fitting, name: str, prompts: int) -> list[Record]:
    records = fitting.rows[name].get("selection")
    if not records:
        raise BakeoutError(
            f"{name} has nothing to measure candidates on.",
            f"Give {name} a `selection:` file, or one file for everything.",
        )
    return spread(records, prompts)


def _share(answered: Answers, base: Answers) -> float:
    """Accuracy as a share of the base model's."""
    theirs = _accuracy(base, base)
    return _accuracy(answered, base) / theirs if theirs > 0 else 1.0


def _accuracy(answered: Answers, base: Answers) -> float:
    """The share of correct answers, or of correct tokens if the base model gives few exactly correct answers."""
    from bakeout.models.network.teacher_forcing import FEW_CORRECT

    exact = float(base.correct.mean()) >= FEW_CORRECT
    return float(answered.correct.mean() if exact else answered.tokens.mean())
