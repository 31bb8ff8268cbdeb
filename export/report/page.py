"""The report's page: what artifacts, evaluations and figures files hold, put into one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bakeout.export.artifacts.certificate_file import read_certificate
from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.inspection import inspect
from bakeout.export.artifacts.manifest import content_digest
from bakeout.export.evaluation.model_names import model_names
from bakeout.export.evaluation.rows import Evaluation
from bakeout.export.report.combining import combined, last_names, measured_models
from bakeout.export.report.drawings import neurons, percent, sections
from bakeout.export.report.evaluation_file import read_evaluation
from bakeout.export.report.figures_file import (
    Attacks,
    Depth,
    Frontier,
    Inside,
    Languages,
    Matched,
    read_figures,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.writing import require_new, write_file
from bakeout.models.printable import printable

# Shown on a page that lacks a figure: the figure, and the command that measures it.
_MISSING: Mapping[type[Any], tuple[str, str]] = {
    Inside: ("Who would be refused, at each α", "bakeout tune RECIPE -o RECIPE --figures FILE"),
    Depth: ("Where the skills separate, layer by layer", "bakeout tune RECIPE -o RECIPE --figures FILE"),
    Frontier: ("Forgetting against keeping", "bakeout tune RECIPE -o RECIPE --figures FILE"),
    Languages: ("Languages, forgotten against tested", "examples/benchmarks/figures.py"),
    Matched: ("Methods at matched forgetting, with latency", "examples/benchmarks/figures.py"),
    Attacks: ("Attacks", "bakeout attack DIR --data FILE --figures FILE"),
}


def write_report(
    directories: Sequence[Path], output: Path, *, evaluations: Sequence[Path] = (), figures: Sequence[Path] = ()
) -> None:
    """Write the page about ``directories``; the same inputs give the same bytes.

    ``evaluations``: what ``bakeout evaluate --json`` printed; ``figures``: files of ``report.figures_file``. Raises
    ``BakeoutError``, writing nothing, for what cannot be read or written, where ``output`` exists, and for evaluations
    of other artifacts, or that were measured in different ways.
    """
    require_new(output)
    page = report(directories, evaluations=evaluations, figures=figures)
    # A file's name may hold what is no character.
    write_file(output, page.encode("utf-8", "replace"))


def report(directories: Sequence[Path], *, evaluations: Sequence[Path] = (), figures: Sequence[Path] = ()) -> str:
    """The page as HTML. Arguments and errors as of ``write_report``."""
    if not directories:
        raise BakeoutError("There is nothing to report on.", "Name an artifact's directory.")
    measured = [figure for path in figures for figure in read_figures(path)]
    results = {path: read_evaluation(path) for path in evaluations}
    artifacts = [_artifact(directory, number) for number, directory in enumerate(directories, start=1)]
    names = model_names(directories)
    contents = {name: artifact["content"] for name, artifact in zip(names, artifacts, strict=True)}
    evaluation = combined(results, contents)
    rows, texts, tasks = evaluation.rows, evaluation.texts, evaluation.tasks
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True, finalize=_shown
    )
    environment.filters |= {"percent": percent, "signed": _signed, "interval": _interval}
    template = environment.from_string(files("bakeout.export").joinpath("templates/report.html.j2").read_text("utf-8"))
    return template.render(
        artifacts=artifacts,
        models=list(dict.fromkeys(row.model for row in rows)),
        called=_short_names([entry.model for table in (rows, texts, tasks) for entry in table]),
        names=list(dict.fromkeys(row.data for row in rows)),
        found={(row.model, row.data): row for row in rows},
        graders=list(dict.fromkeys(row.grade for row in rows)),
        unmeasured=_unmeasured(names, evaluation) if results else [],
        forgotten={name for artifact in artifacts for name in artifact["forgotten"]},
        texts=texts,
        tasks=tasks,
        sections=sections(measured),
        matched=[figure for figure in measured if isinstance(figure, Matched)],
        attacks=[_attack_table(figure) for figure in measured if isinstance(figure, Attacks)],
        missing=[told for kind, told in _MISSING.items() if not any(isinstance(figure, kind) for figure in measured)],
    )


def _artifact(directory: Path, number: int) -> dict[str, Any]:
    inspection = inspect(directory)
    if inspection.files is None:
        raise BakeoutError(f"{directory} is a plan, not an artifact.", "Bake it first.")
    plan = inspection.plan
    return {
        "name": directory.resolve().name,
        "model": plan.model,
        "interventions": inspection.interventions,
        "provenance": plan.provenance,
        "routing": plan.routing_stability,
        "digest": hash_file(directory / MANIFEST),
        "content": content_digest({"files": inspection.files}),
        "receipts": inspection.receipts,
        "size": sum(entry["size"] for entry in inspection.files.values()),
        "has_recipe": (directory / "recipe.yaml").is_file(),
        "forgotten": list(plan.forgets),
        "certificate": read_certificate(directory),
        "plots": [
            neurons(adjustment, plan.model, f"a{number}n{index}")
            for index, intervention in enumerate(plan.interventions)
            if (adjustment := intervention.adjustment) is not None
        ],
    }


def _unmeasured(names: Sequence[str], evaluation: Evaluation) -> list[str]:
    """The artifacts without any row. Of models in files of earlier versions only the directory's name is known."""
    models = measured_models(evaluation)
    by_name = last_names(set(models) - set(names))
    return [name for name in names if name not in models and Path(name).name not in by_name]


def _shown(value: Any) -> Any:
    """Texts of files without characters that turn a line round, or that XML does not have."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _interval(interval: tuple[float, float]) -> str:
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _signed(points: float) -> str:
    return f"{100 * points:+.1f}".replace("-", "\N{MINUS SIGN}")


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Each model's directory without those above it, if the names stay distinct."""
    last = {model: Path(model).name or model for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}


def _attack_table(figure: Attacks) -> dict[str, Any]:
    return {
        "source": figure.source,
        "targets": list(dict.fromkeys(row.target for row in figure.rows)),
        "attacks": list(dict.fromkeys(row.attack for row in figure.rows)),
        "found": {(row.attack, row.target): row for row in figure.rows},
    }
