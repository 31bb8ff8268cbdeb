"""How much a model still answers: exact match and refusals per data file, artifacts beside their base model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.artifacts.file_names import MANIFEST, PLAN
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.evaluation.harness import TaskRow, Tasks, run_tasks
from bakeout.export.evaluation.intervals import Interval, paired_difference, share_interval, unpaired_difference
from bakeout.export.evaluation.likelihood import Predicted, TextRow, predict, text_row
from bakeout.export.running.runner import Runner
from bakeout.models.data.row_source import Source, source_digest, source_name
from bakeout.models.data.rows import DataError, Record, read_records
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.progress import Track, untracked

BASE = "base"
SCHEMA = 1
# Rows by the names they have in tables, or files, whose names without the ending are taken.
NamedData = Mapping[str, Source] | Sequence[Path]


@dataclass(frozen=True)
class Change:
    """How an artifact's accuracy on a file differs from the base model's.

    ``accuracy`` is the difference of the two, with Newcombe's 95 % interval: for pairs where both models answered, else
    (``paired`` false) for two samples. Of pairs it is known how many right answers were ``lost`` and ``gained``.
    """

    accuracy: float
    interval: Interval
    paired: bool
    lost: int | None = None
    gained: int | None = None


@dataclass(frozen=True)
class Row:
    """One model on one data file.

    ``model``: ``base`` or the artifact's directory; ``data``: the file's name without its ending; ``accuracy``: the
    share of prompts whose greedy answer is the response to the letter, surrounding whitespace aside; ``refusals``: the
    share answered with the refusal of one of the artifacts compared; ``change``: from the base model, if that is known.
    """

    model: str
    data: str
    prompts: int
    accuracy: float
    refusals: float
    change: Change | None = None

    @property
    def accuracy_interval(self) -> Interval:
        """Wilson's 95 % interval."""
        return share_interval(round(self.accuracy * self.prompts), self.prompts)

    @property
    def refusals_interval(self) -> Interval:
        """Wilson's 95 % interval."""
        return share_interval(round(self.refusals * self.prompts), self.prompts)

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in ``--json``."""
        row: dict[str, Any] = {
            "model": self.model,
            "data": self.data,
            "prompts": self.prompts,
            "accuracy": self.accuracy,
            "refusals": self.refusals,
            "accuracy_interval": list(self.accuracy_interval),
            "refusals_interval": list(self.refusals_interval),
        }
        if self.change is not None:
            row |= {
                "change": self.change.accuracy,
                "change_interval": list(self.change.interval),
                "paired": self.change.paired,
                "lost": self.change.lost,
                "gained": self.change.gained,
            }
        return row


@dataclass(frozen=True)
class Evaluation:
    """A row for each model and data file, one for each model and file of text, one for each model and task's metric."""

    rows: tuple[Row, ...]
    texts: tuple[TextRow, ...]
    tasks: tuple[TaskRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "schema": SCHEMA,
            "rows": [row.as_json() for row in self.rows],
            "texts": [row.as_json() for row in self.texts],
            "tasks": [row.as_json() for row in self.tasks],
        }


def evaluate(
    directories: Sequence[Path],
    data: NamedData,
    *,
    texts: NamedData = (),
    tasks: Tasks | None = None,
    base: Path | None = None,
    batch_size: int = 32,
    track: Track = untracked,
) -> Evaluation:
    """Evaluate artifacts, or any ONNX directories, on rows of prompts and responses, ``texts`` and ``tasks``.

    An artifact that is a checkpoint is exported first, as the base model's checkpoint is.
    The base model's rows come first: of ``base`` (a checkpoint or an ONNX directory), or else as they were stored when
    the first artifact was built on a file of the same content. Raises ``BakeoutError`` for what cannot be read or run.
    """
    if not directories and base is None:
        raise BakeoutError("There is no model to evaluate.", "Name an artifact's directory.")
    sources = data_names(data) if data or not (texts or tasks) else {}
    text_sources = data_names(texts) if texts else {}
    refusals = {text for directory in directories for text in refusal_texts(directory)}
    rows = [] if base is not None or not sources else stored_base_rows(directories[0], sources)
    stored = {row.data: row for row in rows}
    text_rows: list[TextRow] = []
    task_rows: list[TaskRow] = []
    base_answers: dict[str, Graded] = {}
    base_texts: dict[str, Predicted] = {}
    for model, runner in _runners(directories, base):
        for name, source in sources.items():
            graded = grade(
                runner, source, refusals, batch_size=batch_size, track=track, description=f"{model} on {name}"
            )
            row = graded.row(model, name)
            if model == BASE:
                base_answers[name] = graded
            elif name in base_answers:
                row = replace(row, change=_paired_change(base_answers[name], graded))
            elif name in stored:
                row = replace(row, change=unpaired_change(stored[name], row))
            rows.append(row)
        for name, source in text_sources.items():
            predicted = predict(runner, source, batch_size=batch_size, track=track, description=f"{model} on {name}")
            if model == BASE:
                base_texts[name] = predicted
            text_rows.append(text_row(model, name, predicted, base_texts.get(name) if model != BASE else None))
        if tasks is not None:
            task_rows += run_tasks(runner, model, tasks, batch_size=batch_size, track=track)
    return Evaluation(tuple(rows), tuple(text_rows), tuple(task_rows))


def _runners(directories: Sequence[Path], base: Path | None) -> Iterator[tuple[str, Runner]]:
    """Each model under its name, the base model first, one at a time in memory."""
    models = [] if base is None else [(BASE, base)]
    for name, model in [*models, *((str(directory), directory) for directory in directories)]:
        with tempfile.TemporaryDirectory(prefix="bakeout-") as scratch:
            yield name, Runner(as_onnx(model, Path(scratch)))


def _paired_change(base: Graded, artifact: Graded) -> Change:
    return Change(
        float(artifact.right.mean() - base.right.mean()),
        paired_difference(base.right, artifact.right),
        True,
        int((base.right & ~artifact.right).sum()),
        int((artifact.right & ~base.right).sum()),
    )


def unpaired_change(base: Row, artifact: Row) -> Change:
    """The change of an artifact's row from the base model's, of which only the shares are known."""
    right = [round(row.accuracy * row.prompts) for row in (base, artifact)]
    interval = unpaired_difference(right[0], base.prompts, right[1], artifact.prompts)
    return Change(artifact.accuracy - base.accuracy, interval, False)


def measure(
    runner: Runner,
    model: str,
    data: Mapping[str, Source],
    refusals: set[str],
    *,
    batch_size: int = 32,
    track: Track = untracked,
) -> list[Row]:
    """One model's row for each of ``data`` (name to file). ``refusals``: the texts that count as refusing."""
    rows = []
    for name, source in data.items():
        description = f"{model} on {name}"
        graded = grade(runner, source, refusals, batch_size=batch_size, track=track, description=description)
        rows.append(graded.row(model, name))
    return rows


@dataclass(frozen=True, eq=False)
class Graded:
    """A model's answers to one file, in the file's order: bool [prompts] each, exact match and one of the refusals."""

    right: NDArray[np.bool_]
    refused: NDArray[np.bool_]

    def row(self, model: str, data: str) -> Row:
        """The shares of both."""
        return Row(model, data, len(self.right), float(self.right.mean()), float(self.refused.mean()))


def grade(
    runner: Runner,
    source: Source,
    refusals: set[str],
    *,
    batch_size: int = 32,
    track: Track = untracked,
    description: str = "answering",
) -> Graded:
    """Answer every prompt of ``source`` greedily. Raises ``DataError`` for rows without a prompt or a response."""
    records = read_records(source, runner.tokenizer)
    answers = _answers(runner, records, source_name(source), refusals, batch_size, track, description)
    expected = [_text(runner, record.response_ids) for record in records]
    right = [answer == text for answer, text in zip(answers, expected, strict=True)]
    return Graded(np.array(right), np.array([answer in refusals for answer in answers]))


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


def stored_base_rows(directory: Path, data: Mapping[str, Source]) -> list[Row]:
    """The base model's rows on those of ``data`` that an artifact's manifest has figures for, by the files' content."""
    if not (directory / MANIFEST).is_file():
        return []
    figures = {figure["digest"]: figure for figure in read_manifest(directory).get("base_figures", [])}
    digests = {name: source_digest(source) for name, source in data.items()}
    return [
        Row(BASE, name, figure["prompts"], figure["accuracy"], figure["refusals"])
        for name, digest in digests.items()
        if (figure := figures.get(digest)) is not None
    ]


def refusal_texts(directory: Path) -> list[str]:
    """What an artifact answers to a refused query; nothing for directories without a plan, or one without a refusal."""
    plan_file = directory / PLAN
    if not plan_file.is_file():
        return []
    from bakeout.models.data.tokenization import load_tokenizer

    refusals = [
        intervention.refusal.tolist()
        for intervention in load_plan(plan_file).interventions
        if isinstance(intervention, KeySpaceDetection)
    ]
    tokenizer = load_tokenizer(directory) if refusals else None
    return [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in refusals if tokenizer]


def as_onnx(model: Path, scratch: Path) -> Path:
    """``model`` itself where it is an ONNX file or holds one, else the checkpoint exported into ``scratch``."""
    if model.is_file() or any(model.glob("*.onnx")):
        return model
    from bakeout.export.exporting.onnx_export import export_checkpoint
    from bakeout.models.checkpoint.checkpoint_files import resolve_checkpoint

    return export_checkpoint(resolve_checkpoint(model), scratch)


def _answers(
    runner: Runner,
    records: Sequence[Record],
    name: str,
    refusals: set[str],
    batch_size: int,
    track: Track,
    description: str,
) -> list[str]:
    for number, record in enumerate(records, start=1):
        if record.response is None or not record.prompt_ids:
            raise DataError(
                f"{name}: row {number} has no {'response' if record.prompt_ids else 'prompt'}.",
                "Evaluate on rows with `prompt` and `response`, or with `messages` that end with the answer.",
            )
    longest = max(
        *(len(record.response_ids) for record in records),
        *(len(runner.tokenizer.encode(text)) for text in refusals),
        1,
    )
    answers = [""] * len(records)
    shortest_first = sorted(range(len(records)), key=lambda row: len(records[row].prompt_ids))
    chunks = [shortest_first[start : start + batch_size] for start in range(0, len(records), batch_size)]
    for chunk in track(chunks, description, total=len(chunks)):
        # One more than the longest answer: the end-of-text token, or what shows that the answer goes on.
        said = runner.generate([records[row].prompt_ids for row in chunk], longest + 1, batch_size=batch_size)
        for row, tokens in zip(chunk, said, strict=True):
            answers[row] = _text(runner, tokens)
    return answers


def _text(runner: Runner, tokens: Sequence[int]) -> str:
    return str(runner.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
