"""The whole way from a recipe to an artifact: probe, fit, export, bake, measure, verify. Whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.export.baking.bake import BakeOptions, bake
from bakeout.export.baking.model_card import Form, model_card
from bakeout.export.evaluation.evaluate import as_onnx
from bakeout.export.evaluation.grading import measure
from bakeout.export.evaluation.rows import BASE, Row
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.data_files import by_use
from bakeout.export.recipes.recipe import Recipe, load_recipe
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import resolve_checkpoint
from bakeout.models.data.row_source import Source, source_digest
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenization import load_tokenizer
from bakeout.models.data.uses import Use
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import new_directory, require_new
from bakeout.models.plan import Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track, untracked

# How many prompts of each data name the artifact is held against the PyTorch reference on.
_COMPARED = 8


@dataclass(frozen=True)
class Built:
    """A finished artifact, a receipt for every edit, and the figures of the base model and the artifact."""

    directory: Path
    receipts: tuple[Receipt, ...]
    rows: tuple[Row, ...]


def build(recipe_file: Path, output: Path, *, track: Track = untracked) -> Built:
    """Make the artifact directory ``output`` as ``recipe_file`` says.

    Base model and artifact are measured on the recipe's test files, and the artifact is verified, parity with the
    PyTorch reference included. Raises ``BakeoutError``, leaving nothing behind, when anything fails.
    """
    require_new(output)
    recipe = load_recipe(recipe_file)
    plan = fit(recipe, track)
    checkpoint = resolve_checkpoint(recipe.model)
    with new_directory(output) as whole:
        files = by_use(recipe.data)
        figures = _Figures({name: uses["test"] for name, uses in files.items() if "test" in uses}, track)

        def add_files(directory: Path, receipts: Sequence[Receipt]) -> Mapping[str, Any]:
            figures.of_artifact(directory, output.name)
            shutil.copyfile(recipe_file, directory / "recipe.yaml")
            form: Form = "onnx" if recipe.export.to == "onnx" else "checkpoint"
            tokenizer = load_tokenizer(directory)
            card = model_card(plan, figures.rows, tokenizer, form=form, quantized=recipe.export.quantize)
            (directory / "README.md").write_text(card, encoding="utf-8")
            return {"base_figures": figures.of_base_by_content()}

        # Verified under a name of its own, so that what fails is never at the output's.
        baked = bake(
            checkpoint,
            plan,
            whole / "artifact",
            _options(recipe),
            see_base=figures.of_base,
            add_files=add_files,
            track=track,
        )
        _require_verified(baked.directory, plan, checkpoint, files, track)
        for path in baked.directory.iterdir():
            path.rename(whole / path.name)
        baked.directory.rmdir()
    return Built(output, baked.receipts, tuple(figures.rows))


class _Figures:
    """What base model and artifact answer on the test files."""

    def __init__(self, data: Mapping[str, Source], track: Track) -> None:
        self.rows: list[Row] = []
        self._data = data
        self._track = track

    def of_base(self, directory: Path) -> None:
        """Measure the base model. Its refusals are counted with the artifact's text once that is known."""
        self._measure(directory, BASE, Refusals())

    def of_artifact(self, directory: Path, name: str) -> None:
        """Measure the artifact."""
        self._measure(directory, name, Refusals.of_artifacts([directory]))

    def of_base_by_content(self) -> list[dict[str, Any]]:
        """The base model's figures with the digest of the file that each was measured on."""
        return [
            {
                "digest": source_digest(self._data[row.data]),
                "prompts": row.prompts,
                "accuracy": row.accuracy,
                "refusals": row.refusals,
            }
            for row in self.rows
            if row.model == BASE
        ]

    def _measure(self, directory: Path, name: str, refusals: Refusals) -> None:
        if self._data:
            with tempfile.TemporaryDirectory(prefix="bakeout-") as scratch:
                runner = Runner(as_onnx(directory, Path(scratch)))
                self.rows += measure(runner, name, self._data, refusals, track=self._track)


def _options(recipe: Recipe) -> BakeOptions:
    export = recipe.export
    return BakeOptions(
        to=export.to,
        dtype=export.dtype,
        inline=export.inline,
        early_exit=export.early_exit,
        monitor=export.monitor,
        canary=True,
        runtimes=tuple(export.runtimes),
        quantize=export.quantize,
    )


def _require_verified(
    directory: Path, plan: Plan, checkpoint: Path, files: Mapping[str, Mapping[Use, Source]], track: Track
) -> None:
    tokenizer = load_tokenizer(directory)
    prompts = [
        record.prompt_ids
        for uses in files.values()
        for record in read_records(uses["test"] if "test" in uses else next(iter(uses.values())), tokenizer)[:_COMPARED]
        if record.prompt_ids
    ]
    failed = [check for check in verify(directory, base=checkpoint, prompts=prompts, track=track) if not check.ok]
    if failed:
        raise BakeoutError(
            f"The artifact did not pass its verification: {'; '.join(f'{one.name}: {one.detail}' for one in failed)}.",
            "This is a fault in Bakeout or in the exporter: please report it with the recipe.",
        )
