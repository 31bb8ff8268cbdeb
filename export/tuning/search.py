"""The search for a method's strength: candidates proposed by Optuna, and measured."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bakeout.export.tuning.journal import Journal
from bakeout.export.tuning.trials import KEPT, Measured, Trial, choose_trial, described
from bakeout.models.methods.search_space import Among, Axes, Settings, Span

_logger = logging.getLogger(__name__)

# Numbers are tried, and written into recipes, with this many digits; two closer than the tolerance count as equal.
_DIGITS = 3
_CLOSE = 1.1


def search(
    space: Axes,
    starts: Sequence[Settings],
    measure: Callable[[Settings], Measured],
    *,
    trials: int,
    seed: int,
    journal: Path,
    name: str,
) -> list[Trial]:
    """Measure ``trials`` candidates of ``space``, first ``starts``.

    Then, two times in three, one ``near`` the candidate that the rule would choose; otherwise one from Optuna's TPE.

    Three aims (little left, much kept, little divergence), and the rule's bound as a constraint. Trials are kept in
    the text file ``journal`` under ``name``. A search that was cut takes from there what was measured, and goes on with
    the proposals that it would have had. A log message for each trial shows the best one so far and the time left.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    kept = Journal(journal, name)
    before = min(kept.written, trials)
    if before:
        _logger.info(f"going on after {before} trials ({journal})")
    done: list[Trial] = []
    begun = time.monotonic()
    while len(done) < trials:
        # Each trial has its own sampler, so that its draws do not depend on those before it.
        study.sampler = _sampler(seed, len(done))
        if (settled := _settled(done, space, starts)) is not None:
            study.enqueue_trial(dict(settled))
        trial = study.ask()
        settings = {key: _suggested(trial, key, axis) for key, axis in space.items()}
        known = next((earlier.measured for earlier in done if earlier.settings == settings), None)
        measured = kept.measured(len(done), settings) or known or measure(settings)
        # Not above 0 where the rule's bound is kept.
        trial.set_constraint("kept", KEPT - measured.kept)
        study.tell(trial, [measured.left, measured.kept, measured.divergence])
        done.append(Trial(settings, measured))
        if len(done) > kept.written:
            kept.append(done[-1])
        if len(done) > before:
            _show(done, trials, (time.monotonic() - begun) / (len(done) - before))
    return done


def _settled(done: Sequence[Trial], space: Axes, starts: Sequence[Settings]) -> Settings | None:
    """The candidates that do not come from the sampler: the starts, then two times in three one that is ``near``."""
    if len(done) < len(starts):
        return {key: starts[len(done)][key] for key in space}
    return near(done, space) if (len(done) - len(starts)) % 3 < 2 else None


def near(done: Sequence[Trial], space: Axes) -> Settings | None:
    """A strength that may be better than the chosen trial's: the rule takes the strongest trial that keeps enough.

    Among trials that differ only in strength (the one number of ``space``), the strongest that kept enough and the
    weakest stronger one that kept too little bracket the best strength. The widest bracket is halved, on a log scale.
    Brackets whose upper end left more than the chosen trial, and narrow ones, are left out. None if no bracket
    remains, or if nothing is left to forget.
    """
    ((name, axis),) = [(name, axis) for name, axis in space.items() if isinstance(axis, Span)]
    best = choose_trial(done).measured
    brackets: list[tuple[float, Settings]] = []
    for others in {tuple(item for item in trial.settings.items() if item[0] != name): None for trial in done}:
        alike = [trial for trial in done if {**trial.settings, name: None} == {**dict(others), name: None}]
        low = max((trial.settings[name] for trial in alike if trial.measured.kept >= KEPT), default=axis.low)
        failed = [trial for trial in alike if trial.measured.kept < KEPT and trial.settings[name] > low]
        weakest = min(failed, key=lambda trial: float(trial.settings[name]), default=None)
        high = axis.high if weakest is None else float(weakest.settings[name])
        may_be_better = weakest is None or best.kept < KEPT or weakest.measured.left < best.left
        if best.left > 0 and may_be_better and high > _CLOSE * low:
            brackets.append((high / low, {**dict(others), name: _rounded(math.sqrt(low * high))}))
    return max(brackets, key=lambda bracket: bracket[0])[1] if brackets else None


def _sampler(seed: int, number: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=(seed * 100_003 + number) % 2**32, n_startup_trials=1, multivariate=True)


def _suggested(trial: Any, name: str, axis: Span | Among) -> Any:
    if isinstance(axis, Among):
        return trial.suggest_categorical(name, axis.values)
    return _rounded(trial.suggest_float(name, axis.low, axis.high, log=True))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _show(done: Sequence[Trial], trials: int, seconds: float) -> None:
    best = choose_trial(done)
    left = round(seconds * (trials - len(done)))
    _logger.info(f"trial {len(done)} of {trials}: {described(done[-1])}")
    _logger.info(f"    best so far: {described(best)}; {left // 60}:{left % 60:02} left")
