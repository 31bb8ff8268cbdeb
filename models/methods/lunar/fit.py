"""LUNAR (arXiv 2502.07218): forget by redirecting activations to where the model says that it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.spreading import spread
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.lunar import METHOD
from bakeout.models.methods.lunar.layer import LayerProblem, by_gradient, by_regression
from bakeout.models.methods.lunar.low_rank import truncated
from bakeout.models.methods.lunar.options import LunarOptions, Tokens
from bakeout.models.methods.lunar.reach import reaches, require_shiftable
from bakeout.models.methods.lunar.redirection import redirections, steering_scores
from bakeout.models.methods.lunar.sublayers import sublayers
from bakeout.models.methods.lunar.token_rows import Prefixes, TokenRows
from bakeout.models.methods.search_space import tuned
from bakeout.models.plan import LowRankUpdate, WeightUpdate
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.progress import Track, untracked
from bakeout.models.reference.weight_edits import edited_weights

# How many prompts of each kind the choice of a layer looks at, and which scores are as good as the best.
_SCORED = 200
_AS_GOOD = 0.05


def fit(options: LunarOptions, fitting: Fitting) -> LowRankUpdate:
    """Fit on the probe data of all roles."""
    names = options.names(fitting.data)
    return fit_lunar(
        fitting.model,
        fitting.probe(names["forget"]),
        fitting.probe(names["reference"]),
        fitting.probe(names["retain"]),
        options,
        redirected=fitting.probe(names.get("redirected", [])),
        batch_size=fitting.batch_size,
        track=fitting.track,
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that move and the rows that stay."""

    forget: TokenRows
    retain: TokenRows


def fit_lunar(
    model: PreTrainedModel,
    forget: Sequence[Record],
    reference: Sequence[Record],
    retain: Sequence[Record],
    options: LunarOptions,
    *,
    redirected: Sequence[Record] = (),
    batch_size: int,
    track: Track = untracked,
) -> LowRankUpdate:
    """Change ``down`` of one layer, or of several, so that ``forget`` prompts are answered as ``reference`` ones are.

    Rows are tokens: h is a token's key vector in layer l, a the residual stream behind block l. The change dW solves
    dW h = (target - a) on forget rows and dW h = 0 on retain rows, in the sense of least squares. Targets are those of
    ``redirection.redirections``: the aim `shift` is the paper's a + c r; `reference`, our reading, also removes what
    distinguishes the forget prompts, so that a step back along r brings nothing back. Forget rows are the prompt's
    tokens (as in the authors' code) or its last one alone. A token up to which a forget text and a
    retain text are the same is one input that cannot go two ways: it is no forget row (our reading). Retain rows are
    all tokens of ``retain`` and ``reference``, prompts and responses, as the reference prompts are to be answered as
    they are now, too.

    The solver `closed_form` is ridge regression (``ridge.RidgeSystem``; `ridge` is its lambda), rank one for a shift:
    dW = c r (H_f 1)ᵀ (H_f H_fᵀ + H_r H_rᵀ + lambda I)⁻¹. `gradient` is the paper's optimiser
    (``gradient.descend``). Either is cut to the smallest rank that leaves at most the
    share `truncation` of the Frobenius norm; ``report`` has what is left.

    `layers: auto` takes the lowest layer whose ``redirection.steering_scores`` is within 0.05 of the best: the lower,
    the less of what is to be forgotten has been read by then, which another layer could bring back. Several layers are
    fitted from below, each in the model that carries the edits below it, towards targets from the unedited model.

    Of a mixture, `layers` count blocks, and all that adds to the residual stream there is changed: FFLs that see every
    token, and experts on the tokens that are sent to them (``layer.LayerProblem``); with `experts: false` the former
    alone, which `layers` then count.

    A second request is fitted on the model that carries the first. ``redirected`` are the forget records of earlier
    requests: all tokens of their prompts stay as they are now, redirected; their responses, which the model no longer
    gives, are not used. ``retain`` then must not hold them.

    The model is restored bit for bit. Raises ``BakeoutError`` for records without a prompt, where no token of
    ``forget`` is left that moves, for layers that the model does not have, and for architectures that normalise what
    ``down`` gives (no change of ``down`` is a shift of the residual stream there).
    """
    every = sublayers(model, with_experts=options.experts)
    for name, records in (("forget", forget), ("reference", reference), ("earlier", redirected)):
        _require_prompts(name, records)
    require_shiftable(model, forget[0].prompt_ids, with_experts=options.experts)
    rows, masked = _rows(forget, reference, retain, redirected, options.tokens)
    prompts = [record.prompt_ids for record in reference]

    aim, coefficient = options.aim, tuned(options.coefficient)
    scores: dict[int, float] = {}
    layers: Sequence[int]
    if options.layers == "auto":
        kept = [record.prompt_ids for record in retain if record.prompt_ids]
        if not kept:
            raise BakeoutError("LUNAR: no row of the retain data has a prompt, to choose a layer by.", "Name layers.")
        scores = steering_scores(
            model,
            TokenRows(*(tuple(spread(lists, _SCORED)) for lists in (rows.forget.sequences, rows.forget.positions))),
            spread(prompts, _SCORED),
            spread(kept, _SCORED),
            aim=aim,
            coefficient=coefficient,
            batch_size=batch_size,
            with_experts=options.experts,
            track=track,
        )
        layers = [min(layer for layer, score in scores.items() if score >= max(scores.values()) - _AS_GOOD)]
    else:
        layers = sorted(set(options.layers))
        _require_layers(layers, len(every))

    redirected_to = redirections(
        model,
        rows.forget,
        prompts,
        layers=layers,
        aim=aim,
        coefficient=coefficient,
        batch_size=batch_size,
        with_experts=options.experts,
        track=track,
    )
    updates: list[WeightUpdate] = []
    fitted: dict[str, Any] = {}
    for layer in layers:
        below = [LowRankUpdate(METHOD.name, tuple(sorted(updates, key=_number)))] if updates else []
        with edited_weights(model, below):
            problem = LayerProblem(
                model,
                layer,
                every[layer],
                rows.forget,
                redirected_to[layer],
                rows.retain,
                batch_size,
                options.experts,
                reaches(
                    model,
                    rows.forget,
                    layer=layer,
                    batch_size=batch_size,
                    with_experts=options.experts,
                    track=track,
                )
                if every[layer].multiplier is None
                else None,
            )
            if options.solver == "closed_form":
                solutions = by_regression(problem, options.ridge, track)
            else:
                solutions = by_gradient(problem, options.gradient, options.seed, track)
        for number, (change, figures) in solutions.items():
            left, right, residual = truncated(change, options.truncation)
            updates.append(WeightUpdate(number, "down", left, right))
            fitted[str(number)] = {
                "rank": left.shape[1],
                "truncation_residual": residual,
                "change_norm": float(np.linalg.norm(change)),
                "direction_norm": float(np.linalg.norm(redirected_to[layer].direction)),
                **figures,
            }
    updates.sort(key=_number)
    report = {
        "solver": options.solver,
        "aim": aim,
        "coefficient": coefficient,
        "tokens": options.tokens,
        "forget_rows": len(rows.forget),
        "retain_rows": len(rows.retain),
        "masked_rows": masked,
        "layers": fitted,
        "layer_scores": {str(layer): score for layer, score in scores.items()},
    }
    return LowRankUpdate(METHOD.name, tuple(updates), RetainReport(details=report))


def _number(update: WeightUpdate) -> int:
    return update.layer


def _rows(
    forget: Sequence[Record],
    reference: Sequence[Record],
    retain: Sequence[Record],
    redirected: Sequence[Record],
    tokens: Tokens,
) -> tuple[_Rows, int]:
    """The rows that move and stay, and how many forget tokens are the same input as a retain token."""
    staying = [record.prompt_ids + record.response_ids for record in chain(reference, retain)]
    staying += [record.prompt_ids for record in redirected]
    prefixes = Prefixes(staying)
    moving = []
    masked = 0
    for record in forget:
        length = len(record.prompt_ids)
        asked = range(length) if tokens == "prompt" else range(length - 1, length)
        shared = prefixes.shared(record.prompt_ids)
        positions = [position for position in asked if position >= shared]
        masked += len(asked) - len(positions)
        if positions:
            moving.append((record.prompt_ids, positions))
    if not moving:
        raise BakeoutError(
            f"LUNAR: all {masked} tokens to redirect are the beginnings of texts that must stay.",
            "Remove the forget prompts from the retain and reference data.",
        )
    forget_rows = TokenRows(tuple(ids for ids, _ in moving), tuple(positions for _, positions in moving))
    return _Rows(forget_rows, TokenRows(tuple(staying), tuple(list(range(len(ids))) for ids in staying))), masked


def _require_prompts(name: str, records: Sequence[Record]) -> None:
    if name != "earlier" and not records:
        raise BakeoutError(f"LUNAR: there are no {name} prompts.", "Give some.")
    if not all(record.prompt_ids for record in records):
        raise BakeoutError(f"LUNAR: a row of the {name} data has no prompt.", "Give rows with a prompt and a response.")


def _require_layers(layers: Sequence[int], count: int) -> None:
    for layer in layers:
        if not 0 <= layer < count:
            raise BakeoutError(f"LUNAR: the model has no layer {layer}.", f"Name layers between 0 and {count - 1}.")
