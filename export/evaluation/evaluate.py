"""How much a model still answers: what is right and what is refused, per data file, beside the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import base_figures_of, content_digest, read_manifest
from bakeout.export.artifacts.model_source import model_source, require_unbaked
from bakeout.export.evaluation.answering.questions import Chosen, choose_rows
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.evaluation.grading import (
    ALL_ROWS,
    EXACT_GRADER,
    EXACTLY,
    Graded,
    chosen_rows,
    grade_each,
    how_judged,
)
from bakeout.export.evaluation.harness import require_tasks, run_tasks
from bakeout.export.evaluation.intervals import paired_difference, unpaired_difference
from bakeout.export.evaluation.likelihood import Predicted, predict, text_row
from bakeout.export.evaluation.model_names import model_names
from bakeout.export.evaluation.opening import opened, require_runtime
from bakeout.export.evaluation.recorded_inputs import (
    recorded_dtype,
    recorded_exporter,
    recorded_template,
    tell_fitted_rows,
)
from bakeout.export.evaluation.rows import BASE, Change, DataInput, Evaluation, Inputs, Row, TaskRow, TextRow
from bakeout.export.recipes.data_files import Columns, in_columns
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.genai_runner import AnyRunner, showing_logits
from bakeout.export.running.refusals import Refusals
from bakeout.models.data.row_source import DataError, Source, source_digest
from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import scratch_directory
from bakeout.models.progress import Track, untracked

# Rows by the names they have in tables, or files, whose names without the ending are taken.
NamedData = Mapping[str, Source] | Sequence[Path]


def evaluate(
    directories: Sequence[Path],
    data: NamedData,
    *,
    texts: NamedData = (),
    base: Path | None = None,
    columns: Mapping[str, Columns] = MappingProxyType({}),
    grades: Mapping[str, Grader] = MappingProxyType({}),
    options: EvaluateOptions = ALL_ROWS,
    chat_template: ChatTemplateOptions | None = None,
    track: Track = untracked,
) -> Evaluation:
    """Evaluate artifacts, or any ONNX directories, on rows of prompts and responses, ``texts`` and tasks.

    An artifact that is a checkpoint is exported first, as the base model's checkpoint is. ``columns``: which keys each
    of ``data`` and ``texts`` has its rows under, where these are its own. ``grades``: how the answers to each of
    ``data`` are judged, by exact match where it says nothing.
    The base model's rows come first: of ``base`` (a checkpoint or an ONNX directory), or else as they were stored when
    the first artifact was built on a file of the same content. ``chat_template``: what conversations are rendered by,
    in place of the models' own; else ``base`` renders them as the artifacts do. Raises ``BakeoutError`` for what cannot
    be read or run.
    """
    if not directories and base is None:
        raise BakeoutError("There is no model to evaluate.", "Name an artifact's directory.")
    tasks, batch_size = options.tasks, options.batch_size
    sources = data_names(data) if data or not (texts or tasks) else {}
    if strange := sorted(set(grades) - set(sources)):
        raise BakeoutError(f"No data are called {strange[0]!r}.", f"There are {', '.join(sources) or 'none'}.")
    require_runtime(options, grades.values(), texts=bool(texts))
    for directory in (*directories, *([] if base is None else [base])):
        model_source(directory)
    if base is not None:
        require_unbaked(base, "Name the base model; several artifacts can be measured side by side.")
    if tasks is not None:
        require_tasks(tasks)
    text_sources = data_names(texts) if texts else {}
    refusals = Refusals.of_artifacts(directories)
    # Artifacts record the files that they were fitted on as these are, under whatever keys.
    tell_fitted_rows(directories, {**sources, **text_sources})
    sources, text_sources = (
        {name: in_columns(source, columns.get(name)) for name, source in named.items()}
        for named in (sources, text_sources)
    )
    has_stored = base is None and chat_template is None and sources
    rows = stored_base_rows(directories[0], sources, grades, options) if has_stored else []
    inputs = _inputs(directories, sources, text_sources, grades, options)
    stored = {row.data: row for row in rows}
    text_rows: list[TextRow] = []
    task_rows: list[TaskRow] = []
    base_answers: dict[str, Graded] = {}
    asked: dict[str, Chosen] = {}
    base_texts: dict[str, Predicted] = {}
    for model, runner in _runners(directories, base, chat_template, options):
        graded = grade_each(runner, model, sources, refusals, grades=grades, options=options, asked=asked, track=track)
        asked = {name: Chosen(rows_graded.source, rows_graded.available) for name, rows_graded in graded.items()}
        for name, graded_rows in graded.items():
            row = graded_rows.row(model, name)
            if model == BASE:
                base_answers[name] = graded_rows
            elif name in base_answers:
                row = replace(
                    row,
                    change=_paired_change(base_answers[name], graded_rows),
                    score=graded_rows.beside(base_answers[name]),
                )
            elif name in stored:
                row = replace(row, change=unpaired_change(stored[name], row))
            rows.append(row)
        for name, source in text_sources.items():
            shown, described = showing_logits(runner, "the perplexity of texts"), f"{model} on {name}"
            chosen = chosen_rows(source, options, None, described).source
            predicted = predict(shown, chosen, batch_size=batch_size, track=track, description=described)
            if model == BASE:
                base_texts[name] = predicted
            text_rows.append(text_row(model, name, predicted, base_texts.get(name) if model != BASE else None))
        if tasks is not None:
            task_rows += run_tasks(showing_logits(runner, "a task"), model, tasks, batch_size=batch_size, track=track)
    return Evaluation(tuple(rows), tuple(text_rows), tuple(task_rows), inputs)


def _inputs(
    directories: Sequence[Path],
    data: Mapping[str, Source],
    texts: Mapping[str, Source],
    grades: Mapping[str, Grader],
    options: EvaluateOptions,
) -> Inputs:
    return Inputs(
        {
            name: content_digest(read_manifest(directory))
            for name, directory in zip(model_names(directories), directories, strict=True)
            if (directory / MANIFEST).is_file()
        },
        {
            name: DataInput(source_digest(source), how_judged(grades.get(name, EXACT_GRADER), options))
            for name, source in data.items()
        },
        {name: source_digest(source) for name, source in texts.items()},
    )


def _runners(
    directories: Sequence[Path],
    base: Path | None,
    chat_template: ChatTemplateOptions | None,
    options: EvaluateOptions,
) -> Iterator[tuple[str, AnyRunner]]:
    """Each model under its name, the base model first, one at a time in memory."""
    models = [] if base is None else [(BASE, base)]
    like_artifacts = recorded_template(directories) if base is not None and chat_template is None else None
    exporter, dtype = recorded_exporter(directories), recorded_dtype(directories)
    for name, model in [*models, *zip(model_names(directories), directories, strict=True)]:
        template = like_artifacts if name == BASE else chat_template
        with scratch_directory() as scratch:
            yield name, opened(model, scratch, exporter, options, template or chat_template, dtype)


def _paired_change(base: Graded, artifact: Graded) -> Change:
    return Change(
        float(artifact.correct.mean() - base.correct.mean()),
        paired_difference(base.correct, artifact.correct),
        True,
        int((base.correct & ~artifact.correct).sum()),
        int((artifact.correct & ~base.correct).sum()),
    )


def unpaired_change(base: Row, artifact: Row) -> Change:
    """The change of an artifact's row from the base model's, of which only the shares are known."""
    correct = [round(row.accuracy * row.prompts) for row in (base, artifact)]
    interval = unpaired_difference(correct[0], base.prompts, correct[1], artifact.prompts)
    return Change(artifact.accuracy - base.accuracy, interval, False)


def data_names(data: NamedData) -> dict[str, Source]:
    """The rows by the names they have in tables. Raises ``DataError`` where two have the same."""
    names: dict[str, Source] = dict(data) if isinstance(data, Mapping) else {}
    for path in () if isinstance(data, Mapping) else data:
        if path.stem in names:
            raise DataError(f"{names[path.stem]} and {path} would have the same name.", "Rename one of them.")
        names[path.stem] = path
    if not names:
        raise DataError("There is no data to evaluate on.", "Give a JSONL file with --data.")
    return names


def stored_base_rows(
    directory: Path,
    data: Mapping[str, Source],
    grades: Mapping[str, Grader] = MappingProxyType({}),
    options: EvaluateOptions = ALL_ROWS,
) -> list[Row]:
    """The base model's rows on those of ``data`` that an artifact's manifest has figures for.

    These are known by the content of the rows that they were measured on, which may be some of those in ``data``, and
    by how answers were generated and judged.
    """
    if not (directory / MANIFEST).is_file():
        return []
    figures = base_figures_of(read_manifest(directory))
    rows = []
    for name, source in data.items():
        how = how_judged(grades.get(name, EXACT_GRADER), options)
        for figure in figures:
            chosen = choose_rows(source, figure.prompts)
            if (figure.how or EXACTLY) == how and source_digest(chosen.source) == figure.digest:
                rows.append(
                    Row(
                        BASE,
                        name,
                        figure.prompts,
                        figure.accuracy,
                        figure.refusals,
                        cut_off=figure.cut_off,
                        grade=next(iter(how["grade"])),
                        available=figure.available,
                    )
                )
                break
    return rows


def stored_figure(graded: Graded, row: Row) -> dict[str, Any]:
    """A row of the base model as an artifact's manifest keeps it, with how and on which rows it was measured."""
    figure: dict[str, Any] = {
        "digest": source_digest(graded.source),
        "prompts": row.prompts,
        "accuracy": row.accuracy,
        "refusals": row.refusals,
        "cut_off": row.cut_off,
        "available": row.available,
    }
    return figure if graded.how == EXACTLY else {**figure, "how": graded.how}
