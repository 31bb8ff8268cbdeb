"""UNLEARN (arXiv 2408.04140): a task's low-rank matrices, subtracted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.search_space import Settings
from bakeout.models.methods.unlearn import METHOD
from bakeout.models.methods.unlearn.identification import fit_tasks
from bakeout.models.methods.unlearn.options import UnlearnOptions
from bakeout.models.network.probe_cache import ProbeCache
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import Track, untracked


def fit(options: UnlearnOptions, fitting: Fitting) -> LowRankUpdate:
    """Fit on the probe data of the tasks to forget, and of the similar ones."""
    names = options.names(fitting.data)
    return fit_unlearn(
        fitting.model,
        {name: fitting.probe([name]) for name in names["forget"]},
        {name: fitting.probe([name]) for name in names.get("similar", [])},
        options,
        tokenizer=fitting.tokenizer,
        track=fitting.track,
        cache=fitting.cache,
    )


def fitter(options: UnlearnOptions, fitting: Fitting) -> Callable[[Settings], LowRankUpdate]:
    """Fits of other scales: an update at one scale is the update at another times their ratio."""
    fitted: list[LowRankUpdate] = []

    def fit_settings(settings: Settings) -> LowRankUpdate:
        if not fitted:
            fitted.append(fit(options.model_copy(update={"scale": 1.0}), fitting))
        return fitted[0].scaled(float(settings["scale"]))

    return fit_settings


def fit_unlearn(
    model: PreTrainedModel,
    targets: Mapping[str, Sequence[Record]],
    similar: Mapping[str, Sequence[Record]],
    options: UnlearnOptions,
    *,
    tokenizer: Tokenizer | None = None,
    track: Track = untracked,
    cache: ProbeCache | None = None,
) -> LowRankUpdate:
    """Take the matrices T of the tasks ``targets`` away from the FFL weights: W - scale T.

    Identification goes layer after layer, as in the paper: the layer's T = B A is unfrozen, trained on the task and
    frozen again. The paper trains T to do the task. A model that does it already has no gradient left for that, so we
    train T by what its removal does (our reading): with W - T in force, the answers' tokens y become improbable,

        loss = - mean over answer tokens of log(1 - p(y)),

    which is bounded: what has become improbable is not pushed any further. The token that ends an answer, as the
    model's configurations or ``tokenizer`` name it, is none of y: all answers end with it, those that must stay too.

    Discrimination: T (I - Q Qᵀ), where Q is the least subspace that holds the share ``options.energy`` of what flows
    into the weight on the tasks ``similar``, all of them together. That is our reading of the paper's subspaces, which
    are the tasks' own matrices': these hold what was trained, and not all that the weights read. It is applied at every
    step, so that T is one of the matrices that leave the similar tasks alone. Without ``similar`` it is not applied.
    Several targets are identified one after the other, each with the earlier ones subtracted whole: ``options.scale``
    multiplies the sum of all, and changes none of them.

    ``cache`` keeps every layer that is trained: an interrupted fit goes on behind the last of them, and one that
    differs in ``options.scale`` alone trains nothing.

    The model is given back bit for bit. Raises ``BakeoutError`` for targets without responses or forgotten already,
    and for similar tasks that leave no direction free.
    """
    return fit_tasks(model, METHOD, "improbable", targets, similar, options, options.until, tokenizer, track, cache)
