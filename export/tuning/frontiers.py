"""The shares that a search's trials left and kept, over the strength, as figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bakeout.export.report.figures_file import Frontier, Setting
from bakeout.export.tuning.trials import Trial
from bakeout.models.methods.search_space import SearchSpace, Settings


def frontiers(
    trials: Sequence[Trial], chosen: Settings, space: SearchSpace, method: str, source: str
) -> Iterator[Frontier]:
    """The paper's Figure 7: the shares that the trials left and kept, over the strength.

    A curve for each combination of the other settings that was tried more than once, that of the chosen trial first.
    """
    skill = ", ".join(trials[0].measured.forget)

    def way(settings: Settings) -> tuple[str, ...]:
        return tuple(str(value) for key, value in settings.items() if key != space.strength)

    curves: dict[tuple[str, ...], dict[float, Setting]] = {way(chosen): {}}
    for trial in trials:
        strength, measured = float(trial.settings[space.strength]), trial.measured
        point = Setting(setting=strength, forgotten=measured.left, others=dict(measured.retain))
        curves.setdefault(way(trial.settings), {})[strength] = point
    for settings, points in curves.items():
        is_chosen = settings == way(chosen)
        if is_chosen or len(points) > 1:
            yield Frontier(
                source=source,
                method=f"{method} ({', '.join(settings)})" if settings else method,
                skill=skill,
                name=space.symbol,
                chosen=float(chosen[space.strength]) if is_chosen else None,
                points=[points[strength] for strength in sorted(points)],
            )
