"""LEARN (arXiv 2408.04140): a task's low-rank matrices, added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.unlearn.identification import IdentificationOptions, fit_tasks
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import Track, untracked


def fit(options: LearnOptions, fitting: Fitting) -> LowRankUpdate:
    """Fit on the probe data of the tasks to learn, and of the similar ones."""
    names = options.names(fitting.data)
    return fit_learn(
        fitting.model,
        {name: fitting.probe([name]) for name in names["learn"]},
        {name: fitting.probe([name]) for name in names.get("similar", [])},
        energy=options.energy,
        scale=options.scale,
        options=IdentificationOptions(rank=options.rank, steps=options.steps, learning_rate=options.learning_rate),
        seed=options.seed,
        track=fitting.track,
    )


def fit_learn(
    model: PreTrainedModel,
    tasks: Mapping[str, Sequence[Record]],
    similar: Mapping[str, Sequence[Record]],
    *,
    energy: float = 0.9,
    scale: float = 1.0,
    options: IdentificationOptions = IdentificationOptions(steps=150, learning_rate=5e-3),  # noqa: B008 - frozen
    seed: int = 0,
    track: Track = untracked,
) -> LowRankUpdate:
    """Add the matrices of ``tasks``, trained to do them (cross-entropy over the answers and the end-of-text token).

    The rest as of ``fit_unlearn``: layer after layer, and apart from the subspaces of the tasks ``similar``.
    """
    return fit_tasks(model, "LEARN", tasks, similar, energy, scale, options, seed, track)
