"""LEARN (arXiv 2408.04140): a task's low-rank matrices, added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.learn import METHOD
from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.unlearn.identification import fit_tasks
from bakeout.models.network.probe_cache import ProbeCache
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import Track, untracked


def fit(options: LearnOptions, fitting: Fitting) -> LowRankUpdate:
    """Fit on the probe data of the tasks to learn, and of the similar ones."""
    names = options.names(fitting.data)
    return fit_learn(
        fitting.model,
        {name: fitting.probe([name]) for name in names["learn"]},
        {name: fitting.probe([name]) for name in names.get("similar", [])},
        options,
        tokenizer=fitting.tokenizer,
        track=fitting.track,
        cache=fitting.cache,
    )


def fit_learn(
    model: PreTrainedModel,
    tasks: Mapping[str, Sequence[Record]],
    similar: Mapping[str, Sequence[Record]],
    options: LearnOptions,
    *,
    tokenizer: Tokenizer | None = None,
    track: Track = untracked,
    cache: ProbeCache | None = None,
) -> LowRankUpdate:
    """Add the matrices of ``tasks``, trained to do them (cross-entropy over the answers and their ends).

    An answer ends with the first token in it that the model's configurations or ``tokenizer`` name as an end, or where
    it has none with the one that they name first.

    The rest is as in ``fit_unlearn``: layer after layer, and apart from the subspaces of the tasks ``similar``. An easy
    batch does not end the training of a layer: it may hold only what the model knows already.
    """
    return fit_tasks(model, METHOD, "certain", tasks, similar, options, None, tokenizer, track, cache)
