"""The figures of a report from the rows that ``skills.py`` has measured.

    python examples/benchmarks/figures.py runs/benchmarks/final -o figures.json
    bakeout report runs/benchmarks/final/artifact --figures figures.json -o report.html

Neuron Adjust over beta, separation by depth, the matrix of languages, and both methods side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from bakeout.export.report.figures_file import (
    Compared,
    Depth,
    Figure,
    Frontier,
    Languages,
    Matched,
    Panel,
    Setting,
    figures_json,
)

LANGUAGES = ["german", "spanish", "french"]
SOURCE = "examples/benchmarks/skills.py, 1,000 test prompts a skill"

Rows = Mapping[str, Any]


def depths(rows: Rows) -> Iterator[Depth]:
    """One cube a layer: the shares of fresh queries inside, alpha holding 99.5 % of the skill's own."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for key, row in rows.items():
        if key.startswith("figure5 "):
            _, skill, layer = key.split()
            found.setdefault(skill, {})[int(layer)] = row
    for skill, by_layer in found.items():
        layers = sorted(by_layer)
        names = [name for name in by_layer[layers[0]] if name != "alpha"]
        names.sort(key=lambda name: name != skill)
        inside = {name: [by_layer[layer][name] for layer in layers] for name in names}
        panel = Panel(label="queries inside one cube", series=inside)
        yield Depth(source=SOURCE, skill=skill, layers=layers, panels=[panel])


def frontiers(rows: Rows) -> Iterator[Frontier]:
    """Neuron Adjust over beta, for each skill and way of selecting."""
    points: dict[tuple[str, str, str], list[Setting]] = {}
    for key, row in rows.items():
        if key.startswith("na "):
            _, skill, selection, ratio, coin = key.split()
            left = _left(row, rows["base"])
            setting = Setting(setting=float(ratio), forgotten=left.pop(skill), others=left)
            points.setdefault((skill, selection, coin), []).append(setting)
    for (skill, selection, coin), settings in points.items():
        method = f"Neuron Adjust ({selection}, {coin})"
        yield Frontier(source=SOURCE, method=method, skill=skill, name="β", points=settings)


def languages(rows: Rows) -> Iterator[Languages]:
    """Each language forgotten by Key Space Detection, each tested."""
    forgotten = [name for name in LANGUAGES if f"ksd {name} chosen" in rows]
    if forgotten:
        shares = [
            [_left(rows[f"ksd {one} chosen"]["accuracy"], rows["base"])[n] for n in LANGUAGES] for one in forgotten
        ]
        yield Languages(
            source=SOURCE, method="Key Space Detection", forgotten=forgotten, tested=LANGUAGES, shares=shares
        )


def matched(rows: Rows) -> Iterator[Matched]:
    """For each skill, Key Space Detection beside the Neuron Adjust that comes nearest to it in forgetting."""
    curves: dict[str, list[tuple[str, Setting]]] = {}
    for curve in frontiers(rows):
        curves.setdefault(curve.skill, []).extend((curve.method, point) for point in curve.points)
    for skill, points in curves.items():
        if (row := rows.get(f"ksd {skill} chosen")) is None:
            continue
        left = _left(row["accuracy"], rows["base"])
        target = left.pop(skill)
        method, nearest = min(points, key=lambda entry: abs(entry[1].forgotten - target))
        compared = [
            Compared(method="Key Space Detection", forgotten=target, least_other=min(left.values())),
            Compared(
                method=f"{method}, β {nearest.setting:.0%}",
                forgotten=nearest.forgotten,
                least_other=min(nearest.others.values()),
            ),
        ]
        yield Matched(source=SOURCE, skill=skill, methods=compared)


def _left(accuracies: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {name: accuracies[name] / base[name] for name in base}


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="figures.json.")
def main(directory: Path, output: Path) -> None:
    """Write the figures of the rows in DIRECTORY."""
    rows = json.loads((directory / "rows.json").read_text())
    figures: list[Figure] = [*depths(rows), *frontiers(rows), *languages(rows), *matched(rows)]
    output.write_text(json.dumps(figures_json(figures), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
