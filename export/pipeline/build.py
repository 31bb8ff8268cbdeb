"""The whole way from a recipe to an artifact: fit, export, bake, measure, verify. Whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_names import CARD, RECIPE
from bakeout.export.baking.bake import canary_outcome, completed, opened_base, write_edited, write_record
from bakeout.export.baking.model_card import Form, model_card
from bakeout.export.evaluation.evaluate import as_onnx
from bakeout.export.evaluation.grading import measure
from bakeout.export.evaluation.rows import BASE, Row
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.recipes.recipe_inputs import RecipeInputs, open_inputs
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.data.limits import Limits
from bakeout.models.data.row_source import Source, source_digest
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import new_directory, require_new, scratch_directory
from bakeout.models.plan import Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track, untracked

# How many prompts of each data name the artifact is compared with the PyTorch reference on.
_COMPARED = 8


@dataclass(frozen=True)
class Built:
    """A finished artifact, a receipt for every edit, and the figures of the base model and the artifact."""

    directory: Path
    receipts: tuple[Receipt, ...]
    rows: tuple[Row, ...]


def build(recipe_file: Path, output: Path, *, track: Track = untracked) -> Built:
    """Make the artifact directory ``output`` by the recipe ``recipe_file``.

    Base model and artifact are measured on the recipe's test files, and the artifact is verified, parity with the
    PyTorch reference included. Raises ``BakeoutError``, leaving nothing behind, when anything fails.
    """
    require_new(output)
    recipe = load_recipe(recipe_file)
    options = completed(recipe.export)
    inputs = open_inputs(recipe)
    plan = fit(recipe, track, inputs=inputs)
    with new_directory(output) as directory:
        with opened_base(inputs.checkpoint, plan, options, directory) as base:
            # Its refusals are not counted: the artifact's text is not known yet.
            base_rows = _measured(base.model, BASE, inputs.tests, Refusals(), track)
            edited = write_edited(base, plan, options, directory, track)
        canary = canary_outcome(directory, plan, edited)
        refusals = Refusals.of_artifacts([directory])
        rows = [*base_rows, *_measured(directory, output.name, inputs.tests, refusals, track)]
        shutil.copyfile(recipe_file, directory / RECIPE)
        _write_card(directory, plan, options, rows)
        measured = {"base_figures": _by_content(base_rows, inputs.tests)}
        write_record(directory, plan, options, edited, canary, measured)
        _require_verified(directory, inputs, track)
    return Built(output, edited.receipts, tuple(rows))


def _measured(model: Path, name: str, tests: Mapping[str, Source], refusals: Refusals, track: Track) -> list[Row]:
    """What ``model``, a directory or a graph's file, answers on the test files, as ONNX: exported where it has none."""
    if not tests:
        return []
    with scratch_directory() as scratch:
        runner = Runner(as_onnx(model, scratch))
        return list(measure(runner, name, tests, refusals, track=track))


def _by_content(rows: Sequence[Row], tests: Mapping[str, Source]) -> list[dict[str, Any]]:
    """Figures with the digest of the rows that each was measured on."""
    return [
        {
            "digest": source_digest(tests[row.data]),
            "prompts": row.prompts,
            "accuracy": row.accuracy,
            "refusals": row.refusals,
        }
        for row in rows
    ]


def _write_card(directory: Path, plan: Plan, options: BakeOptions, rows: Sequence[Row]) -> None:
    form: Form = "onnx" if options.to == "onnx" else "checkpoint"
    card = model_card(plan, rows, load_tokenizer(directory), form=form, quantized=options.quantize)
    (directory / CARD).write_text(card, encoding="utf-8")


def _require_verified(directory: Path, inputs: RecipeInputs, track: Track) -> None:
    """Raise ``BakeoutError`` unless the artifact, its files hashed anew, passes every check."""
    tokenizer, limits = load_tokenizer(directory), Limits.of_config(read_json(directory / "config.json"))
    prompts = [
        record.prompt_ids
        for uses in inputs.sources.values()
        for record in read_records(uses.get("test") or next(iter(uses.values())), tokenizer, limits)[:_COMPARED]
        if record.prompt_ids
    ]
    checks = verify(directory, base=inputs.checkpoint, prompts=prompts, track=track)
    if failed := [check for check in checks if not check.ok]:
        raise BakeoutError(
            "The artifact did not pass its verification: "
            f"{'; '.join(f'{check.name}: {check.detail}' for check in failed)}.",
            "This is a bug in Bakeout or in the exporter: please report it with the recipe.",
        )
