"""The demo on the bundled model: forget arithmetic by two methods, and show the effect on every skill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from bakeout.export.evaluation.evaluate import unpaired_change
from bakeout.export.evaluation.rows import BASE, Evaluation, Row
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.pipeline.build import build
from bakeout.export.report.page import write_report
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.files.links import require_own_file
from bakeout.models.files.writing import replaced_directory, require_new, require_writable
from bakeout.models.progress import Track, untracked
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl

FORGOTTEN = "math"
# Directory (and recipe) of each artifact, and what the table calls it.
METHODS = {"neuron-adjust": "Neuron Adjust", "key-space-detection": "Key Space Detection"}
# A recipe's uses of data, the generator's splits for them, and how many examples of each skill; cubes need more.
_DATA = {"probe": ("probing", 200), "calibration": ("calibration", 200), "test": ("test", 200)}
_FORGOTTEN_TIMES = 3
_SHOWN = ("math", "code", "german")
REPORT, _EVALUATION, _FIGURES = "report.html", "evaluation.json", "figures.json"
_WRITTEN = {
    *("base", "data", "model", REPORT, _EVALUATION, _FIGURES),
    *METHODS,
    *(f"{method}.yaml" for method in METHODS),
}


@dataclass(frozen=True)
class Sample:
    """One prompt and what each model answers: base, then the artifacts in the order of ``METHODS``."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """What the demo made: its directory, a row per model and skill, and a few answers."""

    directory: Path
    provider: str
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]


def run_demo(directory: Path, model: Path | None = None, *, track: Track = untracked) -> Demo:
    """Write data and recipes, build both artifacts, and evaluate them beside the base model.

    An earlier demo in ``directory`` is replaced, once the new one is whole. ``model`` is a checkpoint of the skills
    model (default: the bundled one). Raises ``BakeoutError`` where ``directory`` holds anything else.
    """
    require_earlier_demo(directory)
    with replaced_directory(directory) as scratch:
        checkpoint = model or checkpoint_directory()
        for path in checkpoint.rglob("*"):
            require_own_file(path, checkpoint)
        shutil.copytree(checkpoint, scratch / "model")
        _write_data(scratch / "data", track)
        (scratch / "base").mkdir()
        export_checkpoint(scratch / "model", scratch / "base", "fp32")
        rows: list[Row] = []
        for method in METHODS:
            recipe = scratch / f"{method}.yaml"
            template = files("bakeout.export").joinpath(f"templates/demo_{method.replace('-', '_')}.yaml")
            recipe.write_bytes(template.read_bytes())
            built = build(recipe, scratch / method, track=track)
            if not rows:
                rows += [row for row in built.rows if row.model == BASE]
            base = {row.data: row for row in rows if row.model == BASE}
            rows += [
                replace(row, change=unpaired_change(base[row.data], row)) for row in built.rows if row.model != BASE
            ]
        runners = [Runner(scratch / name) for name in ("base", *METHODS)]
        samples = tuple(_samples(runners))
        for _ in track([REPORT], "writing the report", 1):
            _write_report(scratch, rows)
    return Demo(directory, runners[0].provider, tuple(rows), samples)


def _write_data(directory: Path, track: Track) -> None:
    directory.mkdir()
    for skill in track(SKILLS, "writing questions and answers", len(SKILLS)):
        for use, (split, count) in _DATA.items():
            times = _FORGOTTEN_TIMES if skill == FORGOTTEN and use != "test" else 1
            write_jsonl(examples(skill, split, times * count), directory / f"{skill}.{use}.jsonl")


def _write_report(directory: Path, rows: Sequence[Row]) -> None:
    """The page about both artifacts: what was just measured, and figures of the same model that were made before.

    Both lie beside it, so that ``bakeout report`` makes the page again. ``examples/benchmarks/figures.py`` measured the
    figures.
    """
    evaluation = Evaluation(tuple(rows), ()).as_json()
    (directory / _EVALUATION).write_text(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figures = files("bakeout.export").joinpath("templates/demo_figures.json")
    (directory / _FIGURES).write_bytes(figures.read_bytes())
    write_report(
        [directory / method for method in METHODS],
        directory / REPORT,
        evaluations=[directory / _EVALUATION],
        figures=[directory / _FIGURES],
    )


def _samples(runners: Sequence[Runner]) -> Iterator[Sample]:
    for skill in _SHOWN:
        # The longest of the first few: a short one may be answered by chance.
        prompt = max((example.prompt for example in examples(skill, "test", 5)), key=len)
        answers = []
        for runner in runners:
            (tokens,) = runner.generate([runner.tokenizer.encode(prompt)], 24)
            answers.append(str(runner.tokenizer.decode(tokens, skip_special_tokens=True)).strip())
        yield Sample(prompt, tuple(answers))


def require_earlier_demo(directory: Path) -> None:
    """Raise ``BakeoutError`` unless ``directory`` is free or holds what a demo wrote, and nothing else."""
    if not directory.is_dir():
        require_new(directory)
        return
    if strange := sorted({path.name for path in directory.iterdir()} - _WRITTEN):
        raise BakeoutError(f"{directory} holds {strange[0]}, which the demo did not write.", "Name another output.")
    require_writable(directory.resolve().parent)
