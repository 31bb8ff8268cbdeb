"""The whole way from a recipe to an artifact: fit, export, bake, measure, verify. Whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.file_names import CARD, RECIPE
from bakeout.export.baking.bake import canary_outcome, completed, opened_base, write_edited, write_record
from bakeout.export.baking.model_card import Form, model_card
from bakeout.export.evaluation.answering.questions import read_questions
from bakeout.export.evaluation.evaluate import stored_figure
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.evaluation.graders.registry import make_grader
from bakeout.export.evaluation.grading import EXACT_GRADER, Graded, grade_each
from bakeout.export.evaluation.harness import require_tasks, run_tasks
from bakeout.export.evaluation.opening import opened, require_runtime
from bakeout.export.evaluation.rows import BASE, Row, TaskRow
from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions, ExporterName
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.recipes.recipe import Recipe, parse_recipe, read_recipe
from bakeout.export.recipes.recipe_inputs import RecipeInputs, open_inputs
from bakeout.export.recipes.shared_rows import SeenRows
from bakeout.export.running.genai_runner import showing_logits
from bakeout.export.running.refusals import Refusals
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import read_config
from bakeout.models.checkpoint.placement import REFERENCE, Placement
from bakeout.models.data.limits import UNLIMITED, Limits
from bakeout.models.data.row_source import Source
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions
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
    tasks: tuple[TaskRow, ...] = ()


@dataclass(frozen=True)
class _Measured:
    """What one model answers: graded answers by the data's name, and the harness's tasks."""

    graded: Mapping[str, Graded]
    tasks: tuple[TaskRow, ...]


def build(
    recipe_file: Path,
    output: Path,
    *,
    placed: Mapping[str, Any] = MappingProxyType({}),
    cache: Path | None = None,
    track: Track = untracked,
) -> Built:
    """Make the artifact directory ``output`` by the recipe ``recipe_file``.

    ``placed``: options of ``PlacementOptions`` in place of the recipe's. ``cache``: the directory that keeps what is
    probed. Base model and artifact are measured on the recipe's test files, as its `evaluate` says, and the artifact is
    verified, parity with the PyTorch reference included. Raises ``BakeoutError``, leaving nothing behind, when anything
    fails.
    """
    require_new(output)
    written = read_recipe(recipe_file)
    recipe = parse_recipe(written, recipe_file).placed(**placed)
    options = completed(recipe.export)
    inputs = open_inputs(recipe)
    if options.to == "onnx" or inputs.tests or recipe.evaluate.tasks is not None:
        choose_exporter(options.exporter, str(read_config(inputs.checkpoint.directory).get("model_type")))
    measuring = _Measuring.of(recipe, inputs, options.exporter)
    plan = fit(recipe, track, inputs=inputs, cache=cache)
    with new_directory(output) as directory:
        with opened_base(inputs.checkpoint, plan, options, directory) as base:
            # Its refusals are not counted: the artifact's text is not known yet.
            before = measuring.run(base.model, BASE, Refusals(), track, recipe.chat_template)
            edited = write_edited(base, plan, options, directory, track)
        canary = canary_outcome(directory, plan, edited)
        after = measuring.run(directory, output.name, Refusals.of_artifacts([directory]), track)
        base_rows = {name: graded_rows.row(BASE, name) for name, graded_rows in before.graded.items()}
        rows = [
            *base_rows.values(),
            *(
                replace(graded_rows.row(output.name, name), score=graded_rows.beside(before.graded[name]))
                for name, graded_rows in after.graded.items()
            ),
        ]
        tasks = (*before.tasks, *after.tasks)
        (directory / RECIPE).write_bytes(written)
        _write_card(directory, plan, options, rows, tasks, inputs.seen)
        figures = [stored_figure(before.graded[name], row) for name, row in base_rows.items()]
        seen = {"seen_rows": [asdict(repetition) for repetition in inputs.seen]} if inputs.seen else {}
        write_record(directory, plan, options, edited, canary, {"base_figures": figures, **seen})
        _require_verified(directory, inputs, REFERENCE.changed(device_map=recipe.device_map), track)
    return Built(output, edited.receipts, tuple(rows), tasks)


@dataclass(frozen=True)
class _Measuring:
    """What a recipe measures: its test rows, each by its grader, and tasks."""

    tests: Mapping[str, Source]
    graders: Mapping[str, Grader]
    options: EvaluateOptions
    exporter: ExporterName

    @classmethod
    def of(cls, recipe: Recipe, inputs: RecipeInputs, exporter: ExporterName) -> _Measuring:
        """Raises ``BakeoutError``, before anything is fitted, for graders and tasks that cannot work here, and for rows
        of no use.
        """
        tests = inputs.tests
        grades = {name: recipe.data[name].grade for name in tests}
        graders = {name: make_grader(grade) for name, grade in grades.items() if grade is not None}
        require_runtime(recipe.evaluate, graders.values())
        if recipe.evaluate.tasks is not None:
            require_tasks(recipe.evaluate.tasks)
        tokenizer = recipe.chat_template.applied_to(load_tokenizer(inputs.checkpoint.directory))
        for name, source in tests.items():
            read_questions(source, graders.get(name, EXACT_GRADER), tokenizer, UNLIMITED)
        return cls(tests, graders, recipe.evaluate, exporter)

    @property
    def anything(self) -> bool:
        return bool(self.tests) or self.options.tasks is not None

    def run(
        self,
        model: Path,
        name: str,
        refusals: Refusals,
        track: Track,
        chat_template: ChatTemplateOptions | None = None,
    ) -> _Measured:
        """What ``model``, a directory or a graph's file, answers, as ONNX: exported where it has none."""
        tasks = self.options.tasks
        if not self.anything:
            return _Measured({}, ())
        with scratch_directory() as scratch:
            runner = opened(model, scratch, self.exporter, self.options, chat_template)
            graded = grade_each(
                runner, name, self.tests, refusals, grades=self.graders, options=self.options, track=track
            )
            done: Sequence[TaskRow] = ()
            if tasks:
                shown = showing_logits(runner, "a task")
                done = run_tasks(shown, name, tasks, batch_size=self.options.batch_size, track=track)
            return _Measured(graded, tuple(done))


def _write_card(
    directory: Path,
    plan: Plan,
    options: BakeOptions,
    rows: Sequence[Row],
    tasks: Sequence[TaskRow],
    seen: Sequence[SeenRows],
) -> None:
    form: Form = "onnx" if options.to == "onnx" else "checkpoint"
    card = model_card(
        plan,
        rows,
        load_tokenizer(directory),
        form=form,
        quantized=options.quantize,
        tasks=tasks,
        runtimes=options.runtimes,
        warnings=[str(repetition) for repetition in seen],
    )
    (directory / CARD).write_text(card, encoding="utf-8")


def _require_verified(directory: Path, inputs: RecipeInputs, placement: Placement, track: Track) -> None:
    """Raise ``BakeoutError`` unless the artifact, its files hashed anew, passes every check.

    ``placement``: of the reference, in float32; a model that was probed from the disk is not loaded whole either.
    """
    tokenizer, limits = load_tokenizer(directory), Limits.of_config(read_json(directory / "config.json"))
    prompts = [
        record.prompt_ids
        for uses in inputs.sources.values()
        for record in read_records(uses.get("test") or next(iter(uses.values())), tokenizer, limits)[:_COMPARED]
        if record.prompt_ids
    ]
    checks = verify(directory, base=inputs.checkpoint, prompts=prompts, placement=placement, track=track)
    if failed := [check for check in checks if not check.ok]:
        raise BakeoutError(
            "The artifact did not pass its verification: "
            f"{'; '.join(f'{check.name}: {check.detail}' for check in failed)}.",
            "This is a bug in Bakeout or in the exporter: please report it with the recipe.",
        )
