"""Regions of every shape around given keys, for tests that ask more of regions than a fit of the paper's cubes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bakeout.models.methods.key_space_detection.cubes import Clusters
from bakeout.models.methods.key_space_detection.regions.fitter import Probed
from bakeout.models.methods.key_space_detection.regions.registry import FITTERS
from bakeout.models.plan import Floats, KeySpaceDetection, Regions
from bakeout.models.plan.kinds.regions.cube import Cubes
from bakeout.models.plan.kinds.regions.registry import REGIONS

SHAPES = tuple(REGIONS)


def fitted_regions(name: str, clusters: Sequence[Floats], retained: Floats) -> Regions:
    """A region for each of ``clusters`` of one skill's keys, [n, D] each."""
    keys = np.concatenate(clusters)
    ends = np.cumsum([len(cluster) for cluster in clusters])
    members = tuple(np.split(np.arange(len(keys)), ends[:-1]))
    # A ReLU neuron may be dead: its deviation is 0.
    overall, dead = keys.std(axis=0, ddof=1), np.full(keys.shape[1], 0.05)
    centre = np.stack([cluster.mean(axis=0) for cluster in clusters])
    measured = np.stack([cluster.std(axis=0, ddof=1) for cluster in clusters])
    fitter = next(fitter for fitter in FITTERS.values() if fitter.name == name)
    return fitter.fit(Probed(keys, Clusters(members, centre, measured, overall, dead), retained), 0.1)


def cubes_of(check: KeySpaceDetection) -> Cubes:
    """The regions of a check, which are cubes."""
    assert isinstance(check.regions, Cubes)
    return check.regions
