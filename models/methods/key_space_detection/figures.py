"""The figures of a choice: queries inside the cubes against alpha, and separation by depth (arXiv 2503.21730)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bakeout.models.data.rows import Record
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.choosing.structure import layer_sets
from bakeout.models.methods.key_space_detection.cubes import LayerKeys, cluster, joint_keys
from bakeout.models.methods.key_space_detection.detection import margins_of_keys
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.queries import counted_once, least_margins, query_keys, retained_queries
from bakeout.models.methods.key_space_detection.regions.cube import nearest_margins
from bakeout.models.methods.key_space_detection.regions.registry import needs_retained
from bakeout.models.methods.key_space_detection.separation import auroc, share_inside
from bakeout.models.methods.key_space_detection.served import as_served, retained_names
from bakeout.models.network.key_sites import key_sites
from bakeout.models.plan import Floats, KeySpaceDetection

# Points of a curve over alpha, and how far beyond alpha it goes.
_POINTS = 81
_BEYOND = 2.5
# The floor and epsilon of the single cubes in the figure of depth: a recipe's defaults.
_FLOOR, _EPSILON = 0.1, 0.005


def figures(
    options: KeySpaceDetectionOptions, fitting: Fitting, fitted: KeySpaceDetection
) -> Iterator[Mapping[str, Any]]:
    """The figures of a fit for a report: the paper's Figures 5 and 6, on queries that were not used for fitting.

    There is no figure by depth of a skill beside which there are no others.
    """
    fitting, _ = as_served(options, counted_once(fitting))
    forget = options.names(fitting.data)["forget"]
    depths = {layer for layers in layer_sets(len(key_sites(fitting.model, fitted.keys))) for layer in layers}
    layers = sorted({*depths, *fitted.layers})
    fits = needs_retained(options.region)
    fresh = {name: list(retained_queries(fitting, name, fits=fits).fresh) for name in retained_names(options, fitting)}
    fresh |= {name: list(fitting.rows[name].get("selection") or fitting.rows[name]["probe"]) for name in forget}

    def keys_of(name: str, queries: Sequence[Record]) -> LayerKeys:
        start = fitted.query_start if fitted.positions == "mean" else None
        return query_keys(fitting, name, queries, layers, fitted.keys, start)

    probe = {name: keys_of(name, fitting.rows[name]["probe"]) for name in forget}
    selection = {name: keys_of(name, rows) for name, rows in fresh.items() if rows}
    if fitted.positions == "every":
        margins = {name: least_margins(fitting, fresh[name], fitted) for name in selection}
    else:
        margins = {name: margins_of_keys(fitted, keys, f"queries of {name}") for name, keys in selection.items()}
    yield from inside_figures(fitted, margins)
    for skill, keys in probe.items():
        if selection.keys() - {skill}:
            yield depth_figure(skill, keys, selection)


def inside_figures(check: KeySpaceDetection, margins: Mapping[str, Floats]) -> Iterator[Mapping[str, Any]]:
    """The paper's Figure 5 for each skill of ``check``: the share of each name's queries inside its own regions.

    ``margins``: by name those of its queries to every region, [queries, regions].
    """
    for skill in dict.fromkeys(check.skills):
        own = [index for index, name in enumerate(check.skills) if name == skill]
        chosen = float(check.alpha[own[0]])
        # Margins to a half-space can be negative.
        lowest = min([0.0, chosen, *(float(rows[:, own].min()) for rows in margins.values())])
        alpha = np.linspace(lowest, chosen + (_BEYOND - 1) * (chosen - lowest), _POINTS)
        shares = {name: share_inside(rows[:, own].min(axis=1), alpha).tolist() for name, rows in margins.items()}
        yield {
            "kind": "inside",
            "skill": skill,
            "layers": list(check.layers),
            "chosen": chosen,
            "alpha": alpha.tolist(),
            "shares": shares,
        }


def depth_figure(skill: str, probe: LayerKeys, keys: Mapping[str, LayerKeys]) -> Mapping[str, Any]:
    """The paper's Figure 6: one cube around ``skill`` in each layer of ``probe``, and how well it separates.

    Volume: the cube's half-width as a multiple of the spread of the other names' queries, the geometric mean over
    dimensions; separation: for each other name the AUROC, and the share inside at the alpha that holds 99.5 % of the
    skill's own queries. ``keys`` are those of the skill and of at least one other name.
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
        if wide.any():
            volume.append(float(np.exp(np.log(alpha * cubes.deviation[0][wide] / around[wide]).mean())))
        for name in others:
            areas[name].append(auroc(margins[skill], margins[name]).value)
        for name in inside:
            inside[name].append(float((margins[name] <= alpha).mean()))
    # A single query of the others has no spread.
    volumes = [{"label": "volume: half-width, in others' spreads", "series": {skill: volume}}]
    return {
        "kind": "depth",
        "skill": skill,
        "layers": layers,
        "panels": [
            *(volumes if len(volume) == len(layers) else []),
            {"label": "separation: AUROC against", "series": areas},
            {"label": "queries inside, at 99.5 % coverage", "series": inside},
        ],
    }
