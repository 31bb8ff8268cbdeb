"""The report's page: what artifacts, evaluations and figures files hold, put into one self-contained HTML file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bakeout.export.artifact import MANIFEST, PLAN, disk_errors, read_manifest, require_new
from bakeout.export.inspection import inspect
from bakeout.export.report import plots
from bakeout.export.report.figures_file import (
    Attacks,
    Depth,
    Figure,
    Frontier,
    Inside,
    Languages,
    Matched,
    read_figures,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.hashing import hash_file
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.plan_file import load_plan

# How many of the most changed neurons are drawn.
_NEURONS = 6
# What a page that lacks a figure says: the figure, and which command measures it.
_MISSING: Mapping[type[Any], tuple[str, str]] = {
    Inside: ("Share of queries inside against α", "bakeout tune RECIPE --figures FILE"),
    Depth: ("Volume and separation by depth", "bakeout tune RECIPE --figures FILE"),
    Frontier: ("Forgetting against retaining over β", "bakeout tune RECIPE --figures FILE"),
    Languages: ("Languages, forgotten against tested", "examples/benchmarks/figures.py"),
    Matched: ("Methods at matched forgetting, with latency", "examples/benchmarks/figures.py"),
    Attacks: ("Attacks", "bakeout tune RECIPE --figures FILE"),
}


@dataclass(frozen=True)
class Plot:
    """One drawn figure: SVG, what it shows in words, and the numbers behind it as a table."""

    title: str
    caption: str
    source: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(
    directories: Sequence[Path], output: Path, *, evaluations: Sequence[Path] = (), figures: Sequence[Path] = ()
) -> None:
    """Write the page about ``directories``; the same inputs give the same bytes.

    ``evaluations``: what ``bakeout evaluate --json`` printed; ``figures``: files of ``report.figures_file``. Raises
    ``BakeoutError``, writing nothing, for what cannot be read or written, and where ``output`` exists.
    """
    require_new(output)
    page = report(directories, evaluations=evaluations, figures=figures)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            temporary.write_text(page, encoding="utf-8", newline="\n")
            temporary.rename(output)
        finally:
            temporary.unlink(missing_ok=True)


def report(directories: Sequence[Path], *, evaluations: Sequence[Path] = (), figures: Sequence[Path] = ()) -> str:
    """The page as HTML. Arguments and errors as of ``write_report``."""
    if not directories:
        raise BakeoutError("There is nothing to report on.", "Name an artifact's directory.")
    artifacts = [_artifact(directory, number) for number, directory in enumerate(directories, start=1)]
    measured = [figure for path in figures for figure in read_figures(path)]
    results = [_evaluation(path) for path in evaluations]
    rows = [row for result in results for row in result["rows"]]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    environment.filters |= {"percent": _percent, "signed": lambda value: f"{100 * value:+.1f}"}
    template = environment.from_string(files("bakeout.export").joinpath("templates/report.html.j2").read_text("utf-8"))
    return template.render(
        artifacts=artifacts,
        models=list(dict.fromkeys(row["model"] for row in rows)),
        names=list(dict.fromkeys(row["data"] for row in rows)),
        found={(row["model"], row["data"]): row for row in rows},
        forgotten={name for artifact in artifacts for name in artifact["forgotten"]},
        texts=[row for result in results for row in result.get("texts", [])],
        tasks=[row for result in results for row in result.get("tasks", [])],
        plots=[_plot(figure, f"p{number}") for number, figure in enumerate(measured) if _is_drawn(figure)],
        matched=[figure for figure in measured if isinstance(figure, Matched)],
        attacks=[figure for figure in measured if isinstance(figure, Attacks)],
        missing=[told for kind, told in _MISSING.items() if not any(isinstance(figure, kind) for figure in measured)],
    )


def _artifact(directory: Path, number: int) -> dict[str, Any]:
    described = inspect(directory)
    manifest = read_manifest(directory)
    plan = load_plan(directory / PLAN)
    return {
        "name": directory.resolve().name,
        "described": described,
        "digest": hash_file(directory / MANIFEST),
        "receipts": manifest["receipts"],
        "size": sum(entry["size"] for entry in manifest["files"].values()),
        "base_figures": manifest.get("base_figures", []),
        "has_recipe": (directory / "recipe.yaml").is_file(),
        "forgotten": list(_forgotten(plan)),
        "plots": [
            _neurons(one, f"a{number}n{index}")
            for index, one in enumerate(plan.interventions)
            if isinstance(one, NeuronAdjust)
        ],
    }


def _forgotten(plan: Plan) -> Iterator[str]:
    for one in plan.interventions:
        yield from dict.fromkeys(one.skills) if isinstance(one, KeySpaceDetection) else one.report.get("forget", ())


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BakeoutError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except ValueError as error:
        raise BakeoutError(f"{path}: not JSON ({error}).", "Give what `bakeout evaluate --json` printed.") from None
    wanted: Mapping[str, Any] = {
        "model": str,
        "data": str,
        "prompts": int,
        "accuracy": (int, float),
        "refusals": (int, float),
    }
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, Mapping) and all(isinstance(row.get(key), kind) for key, kind in wanted.items()) for row in rows
    ):
        raise BakeoutError(f"{path} is not an evaluation.", "Give what `bakeout evaluate --json` printed.")
    return dict(result)


def _is_drawn(figure: Figure) -> bool:
    return not isinstance(figure, (Matched, Attacks))


def _plot(figure: Figure, identifier: str) -> Plot:
    if isinstance(figure, Inside):
        names = [figure.skill, *(name for name in figure.shares if name != figure.skill)]
        names = [name for name in names if name in figure.shares]
        return Plot(
            f"Queries inside the cubes of {figure.skill}, against α",
            f"How many of each skill's queries would be refused at each α, in {_layers(figure.layers)}. The wider the "
            f"gap between {figure.skill} and the rest, the safer the choice.",
            figure.source,
            Markup(plots.inside(figure, identifier)),
            ("α", *names),
            tuple(
                (f"{alpha:.4g}", *(_percent(figure.shares[name][row]) for name in names))
                for row, alpha in enumerate(figure.alpha)
            ),
        )
    if isinstance(figure, Depth):
        columns = [(panel.label, name) for panel in figure.panels for name in panel.series]
        return Plot(
            f"{figure.skill} by depth",
            f"Layer by layer, what sets {figure.skill} apart: "
            + "; ".join(panel.label for panel in figure.panels)
            + ". A check in an early layer saves more work when it refuses.",
            figure.source,
            Markup(plots.depth(figure, identifier)),
            ("layer", *(f"{label}: {name}" for label, name in columns)),
            tuple(
                (
                    str(layer),
                    *(f"{values[row]:.4g}" for panel in figure.panels for values in panel.series.values()),
                )
                for row, layer in enumerate(figure.layers)
            ),
        )
    if isinstance(figure, Frontier):
        others = list(figure.points[0].others)
        return Plot(
            f"Forgetting {figure.skill} against keeping the rest, over {figure.name}",
            f"{figure.method}: each point is one {figure.name}; up and left is better. Shares are of the base model's "
            "accuracy.",
            figure.source,
            Markup(plots.frontier(figure, identifier)),
            (figure.name, figure.skill, *others),
            tuple(
                (f"{one.setting:g}", *(_percent(share) for share in (one.forgotten, *one.others.values())))
                for one in figure.points
            ),
        )
    assert isinstance(figure, Languages)
    return Plot(
        "Languages: forgotten against tested",
        f"{figure.method}: accuracy as a share of the base model's. The diagonal should be pale, the rest dark.",
        figure.source,
        Markup(plots.languages(figure, identifier)),
        ("forgotten", *figure.tested),
        tuple(
            (name, *(_percent(share) for share in row))
            for name, row in zip(figure.forgotten, figure.shares, strict=True)
        ),
    )


def _neurons(adjust: NeuronAdjust, identifier: str) -> Plot:
    """The neurons whose Gaussians lie farthest apart, in their pooled deviation."""
    shifts = [
        (float(shift), layer, index)
        for layer, one in enumerate(adjust.layers)
        for index, shift in enumerate(
            np.abs(one.forget_mean - one.retain_mean) / np.sqrt((one.forget_deviation**2 + one.retain_deviation**2) / 2)
        )
    ]
    chosen = sorted(shifts, key=lambda entry: (-entry[0], entry[1:]))[:_NEURONS]
    rows = []
    for shift, layer, index in chosen:
        one = adjust.layers[layer]
        values = (one.forget_mean, one.forget_deviation, one.retain_mean, one.retain_deviation)
        neuron = f"layer {one.layer}, neuron {one.neurons[index]}"
        rows.append((neuron, *(f"{value[index]:.4g}" for value in values), f"{shift:.2f}"))
    return Plot(
        "The most changed neurons",
        "The Gaussians of the pre-activations that Neuron Adjust tells apart: a value likelier under the forget set's "
        "is moved to the retain set's and mirrored there. Drawn are the neurons where the two lie farthest apart.",
        "the plan in the artifact",
        Markup(plots.neurons(adjust, [(layer, index) for _, layer, index in chosen], identifier)),
        ("neuron", "forget mean", "deviation", "retain mean", "deviation", "apart, in deviations"),
        tuple(rows),
    )


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
