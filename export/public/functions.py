"""What can be done with models, recipes, plans and artifacts: fit, bake, verify, evaluate.

Models are given as paths, hub ids or artifacts, rows as paths or lists of dicts. Progress goes to ``track``, which by
default logs it to the logger ``bakeout``; nothing is printed. What the user can correct is raised as ``BakeoutError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.artifact import Artifact
from bakeout.models.data.row_source import RowsLike, as_source
from bakeout.models.progress import Track, logged

if TYPE_CHECKING:
    from bakeout.export.baking.bake import BakeOptions
    from bakeout.export.evaluation.evaluate import Evaluation
    from bakeout.export.recipes.recipe import Recipe
    from bakeout.export.verification.verify import Check
    from bakeout.models.plan import Plan

PathLike = str | os.PathLike[str]


def fit(recipe: Recipe | PathLike, *, track: Track = logged) -> Plan:
    """Fit a recipe's interventions to its model, each with those before it in force.

    ``recipe``: a ``Recipe``, or the path of a YAML file.

    >>> plan = bakeout.fit(recipe)
    >>> [intervention.kind for intervention in plan.interventions]
    ['neuron_adjust']
    >>> plan.save("plan.safetensors")

    Raises ``BakeoutError`` for what is wrong with the checkpoint, the rows or the options.
    """
    from bakeout.export.fitting.fit import fit as fit_recipe
    from bakeout.export.recipes.recipe import Recipe, load_recipe, require_consistent

    if not isinstance(recipe, Recipe):
        return fit_recipe(load_recipe(Path(recipe)), track)
    require_consistent(recipe)
    return fit_recipe(recipe, track)


def bake(
    model: PathLike,
    plan: Plan | PathLike,
    output: PathLike,
    options: BakeOptions | None = None,
    *,
    track: Track = logged,
) -> Artifact:
    """Apply a plan to the model that it was fitted on, and write the artifact: whole, or not at all.

    ``model``: a checkpoint's directory or hub id, which is exported, or an ONNX directory or file of any exporter.
    ``plan``: a ``Plan``, or the path of its file. ``output``: a directory, which must not exist.

    >>> artifact = bakeout.bake(checkpoint, "plan.safetensors", "unlearned")
    >>> sorted(path.name for path in artifact.directory.glob("model*"))
    ['model.onnx', 'model.onnx.data']

    Raises ``BakeoutError``, and leaves nothing behind, where ``output`` exists, the model is not the one that the plan
    was fitted on (by the digest of a checkpoint's weights; by shapes and the plan's canary for a graph), it cannot be
    exported or edited, or the disk is full.
    """
    from bakeout.export.baking.bake import BakeOptions
    from bakeout.export.baking.bake import bake as bake_plan
    from bakeout.models.plan import Plan
    from bakeout.models.plan.plan_file import load_plan

    loaded = plan if isinstance(plan, Plan) else load_plan(Path(plan))
    baked = bake_plan(os.fspath(model), loaded, Path(output), options or BakeOptions(), track=track)
    return Artifact(baked.directory)


@dataclass(frozen=True)
class Verification:
    """What ``verify`` gives. ``ok``: whether every check is; a check that could not run is not."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check is ok."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(f"{'ok' if check.ok else 'NOT OK':<7} {check.name:<7} {check.detail}" for check in self.checks)


def verify(
    artifact: PathLike,
    *,
    base: PathLike | None = None,
    digest: str | None = None,
    prompts: Sequence[Sequence[int]] = (),
    track: Track = logged,
) -> Verification:
    """Check an artifact: its files, its graph or edited tensors, the plan's canary, parity with the PyTorch reference.

    ``base``: the base model's checkpoint, which parity needs. ``digest``: ``Artifact.digest`` as it was when you
    trusted it. ``prompts``: token ids to compare on beside the canary's.

    >>> verification = bakeout.verify("unlearned", base=checkpoint)
    >>> verification.ok
    True
    >>> [check.name for check in verification.checks]
    ['files', 'graph', 'canary', 'parity']

    Raises ``BakeoutError`` where there is no artifact; what is wrong with one is in the checks.
    """
    from bakeout.export.verification.verify import verify as checks_of

    base = None if base is None else Path(base)
    return Verification(tuple(checks_of(Path(artifact), digest=digest, base=base, prompts=prompts, track=track)))


def evaluate(
    models: PathLike | Iterable[PathLike],
    data: Mapping[str, RowsLike] | Sequence[PathLike],
    *,
    texts: Mapping[str, RowsLike] | Sequence[PathLike] = (),
    base: PathLike | None = None,
    batch_size: int = 32,
    track: Track = logged,
) -> Evaluation:
    """Measure artifacts, or any ONNX directories or checkpoints, beside their base model, greedily.

    ``data``: rows with prompts and responses by name, or paths of files, whose names without the ending are taken. The
    share of right answers (exact match) and of refusals have Wilson's 95 % intervals, changes from the base Newcombe's.
    ``texts``: rows to measure perplexity and divergence on. ``base``: the base model; where it is not given, its
    figures are those that `bakeout build` stored on the same rows, if it did.

    >>> evaluation = bakeout.evaluate("unlearned", {"math": rows}, base=checkpoint)
    >>> [(row.model, row.data, row.prompts) for row in evaluation.rows]
    [('base', 'math', 40), ('unlearned', 'math', 40)]
    >>> evaluation.rows[1].accuracy < evaluation.rows[0].accuracy
    True

    Raises ``BakeoutError`` for what cannot be read or run, and for rows without a prompt or a response.
    """
    from bakeout.export.evaluation.evaluate import evaluate as evaluate_files

    chosen = [models] if isinstance(models, str | os.PathLike) else models
    return evaluate_files(
        [Path(model) for model in chosen],
        _named(data),
        texts=_named(texts),
        base=None if base is None else Path(base),
        batch_size=batch_size,
        track=track,
    )


def _named(data: Mapping[str, RowsLike] | Sequence[PathLike]) -> Any:
    if isinstance(data, Mapping):
        return {name: as_source(rows, name) for name, rows in data.items()}
    return [Path(path) for path in data]
