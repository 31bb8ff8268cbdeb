"""The shapes that can be fitted, in order of preference: where two do equally well, the first is taken.

A cube needs no retained data and promises nothing about what it has not seen; a half-space can hold anything that looks
unlike the retained data.
"""

from __future__ import annotations

from bakeout.models.methods.key_space_detection.options import Region
from bakeout.models.methods.key_space_detection.regions.cube import CUBE
from bakeout.models.methods.key_space_detection.regions.ellipsoid import ELLIPSOID
from bakeout.models.methods.key_space_detection.regions.fitter import Fitter
from bakeout.models.methods.key_space_detection.regions.linear import LINEAR
from bakeout.models.methods.key_space_detection.regions.rotated_cube import ROTATED_CUBE

FITTERS: dict[Region, Fitter] = {fitter.name: fitter for fitter in (CUBE, ROTATED_CUBE, ELLIPSOID, LINEAR)}


def needs_retained(region: str) -> bool:
    """Whether a region, or one of those that `auto` tries, is fitted against retained keys."""
    return any(fitter.needs_retained for name, fitter in FITTERS.items() if region in (name, "auto"))
