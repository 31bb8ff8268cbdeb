"""The figures of a choice: queries inside against alpha, separation by depth, and the trials of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bakeout.export.report.figures_file import Depth, Frontier, Inside, Panel, Setting
from bakeout.export.tuning.search import Settings, Trial
from bakeout.export.tuning.search_spaces import Searched
from bakeout.models.methods.key_space_detection.cubes import LayerKeys, cluster, joint_keys
from bakeout.models.methods.key_space_detection.separation import auroc, share_inside
from bakeout.models.methods.key_space_detection.structure import nearest_margins
from bakeout.models.plan import Floats, KeySpaceDetection

# Points of a curve over alpha, and how far beyond alpha it goes.
_POINTS = 81
_BEYOND = 2.5
# Of the single cubes that depth is shown by: a recipe's defaults.
_FLOOR, _EPSILON = 0.1, 0.005


def inside_figures(check: KeySpaceDetection, keys: Mapping[str, LayerKeys], source: str) -> Iterator[Inside]:
    """The paper's Figure 5 for each skill of ``check``: the share of each name's queries inside its own cubes.

    ``keys``: per name and layer the queries' key vectors [queries, F], of the check's layers at least.
    """
    margins = {
        name: check.margins(joint_keys(rows, check.layers, f"queries of {name}").astype(np.float64))
        for name, rows in keys.items()
    }
    for skill in dict.fromkeys(check.skills):
        own = [index for index, name in enumerate(check.skills) if name == skill]
        chosen = float(check.alpha[own[0]])
        alpha = np.linspace(0, _BEYOND * chosen, _POINTS)
        shares = {name: share_inside(rows[:, own].min(axis=1), alpha).tolist() for name, rows in margins.items()}
        yield Inside(
            source=source, skill=skill, layers=list(check.layers), chosen=chosen, alpha=alpha.tolist(), shares=shares
        )


def depth_figure(skill: str, probe: LayerKeys, keys: Mapping[str, LayerKeys], source: str) -> Depth:
    """The paper's Figure 6: one cube around ``skill`` in each layer of ``probe``, and what it tells apart.

    Volume: the cube's half-width as a multiple of the spread of the other names' queries, the geometric mean over
    dimensions; separation: for each other name the AUROC, and the share inside at the alpha that holds 99.5 % of the
    skill's own queries.
    """
    layers = sorted(probe)
    others = [name for name in keys if name != skill]
    volume: list[float] = []
    areas: dict[str, list[float]] = {name: [] for name in others}
    inside: dict[str, list[float]] = {name: [] for name in (skill, *others)}
    for layer in layers:
        cubes = cluster(joint_keys(probe, [layer], skill), skill, layers=1, count=1, seed=0).cubes(_FLOOR)
        margins: dict[str, Floats] = {
            name: nearest_margins(rows[layer].astype(np.float32), cubes) for name, rows in keys.items()
        }
        alpha = float(np.quantile(margins[skill], 1 - _EPSILON, method="higher"))
        around = np.concatenate([keys[name][layer] for name in others]).astype(np.float64).std(axis=0)
        wide = around > 0
        volume.append(float(np.exp(np.log(alpha * cubes.deviation[0][wide] / around[wide]).mean())))
        for name in others:
            areas[name].append(auroc(margins[skill], margins[name]).value)
        for name in inside:
            inside[name].append(float((margins[name] <= alpha).mean()))
    return Depth(
        source=source,
        skill=skill,
        layers=layers,
        panels=[
            Panel(label="volume: half-width, in others' spreads", series={skill: volume}),
            Panel(label="separation: AUROC against", series=areas),
            Panel(label="queries inside, at 99.5 % coverage", series=inside),
        ],
    )


def frontiers(
    trials: Sequence[Trial], chosen: Settings, searched: Searched, method: str, source: str
) -> Iterator[Frontier]:
    """The paper's Figure 7: what the trials left and kept, over the strength.

    A curve for each combination of the other settings that was tried more than once, that of the chosen trial first.
    """
    skill = ", ".join(trials[0].measured.forget)

    def way(settings: Settings) -> tuple[str, ...]:
        return tuple(str(value) for key, value in settings.items() if key != searched.strength)

    curves: dict[tuple[str, ...], dict[float, Setting]] = {way(chosen): {}}
    for trial in trials:
        strength, measured = float(trial.settings[searched.strength]), trial.measured
        point = Setting(setting=strength, forgotten=measured.left, others=dict(measured.retain))
        curves.setdefault(way(trial.settings), {})[strength] = point
    for settings, points in curves.items():
        is_chosen = settings == way(chosen)
        if is_chosen or len(points) > 1:
            yield Frontier(
                source=source,
                method=f"{method} ({', '.join(settings)})" if settings else method,
                skill=skill,
                name=searched.symbol,
                chosen=float(chosen[searched.strength]) if is_chosen else None,
                points=[points[strength] for strength in sorted(points)],
            )
