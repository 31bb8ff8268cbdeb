"""Forget Direction: W becomes W - strength (W u) uᵀ, u being the mean key vector of the forget data, scaled to 1."""

from __future__ import annotations

import numpy as np

from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.search_space import tuned
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import LowRankUpdate, WeightUpdate
from bakeout.models.reference.weight_edits import weight_of

from .options import ForgetDirectionOptions


def fit(options: ForgetDirectionOptions, fitting: Fitting) -> LowRankUpdate:
    """Probe the forget prompts, and project their mean key vector out of ``down``."""
    prompts = [record.prompt_ids for record in fitting.probe(options.forget)]
    keys = probe_keys(fitting.model, prompts, layers=[options.layer], batch_size=fitting.batch_size)[options.layer]
    mean = keys.mean(axis=0)
    direction = (mean / np.linalg.norm(mean))[:, None].astype(np.float32)
    down = weight_of(feed_forward_layers(fitting.model)[options.layer], "down").detach().float().cpu().numpy()
    left = -np.float32(tuned(options.strength)) * (down @ direction)
    update = WeightUpdate(options.layer, "down", left, np.ascontiguousarray(direction.T))
    return LowRankUpdate("forget_direction", (update,))
