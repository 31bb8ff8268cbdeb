"""Certificates of forgetting of five methods on one taught model, in one table.

    python examples/training/tofu_in_small.py --model SmolLM2 --data tofu --output runs
    python examples/benchmarks/certificates.py runs              # certifies what is not certified yet, prints the table

Of every method the point that ``forgotten_authors`` chooses is certified, or where that has measured nothing yet the
one in ``POINTS``, and of a baseline its last adapter, imported as `bakeout import` does. It is baked into the ONNX
graph of the taught checkpoint, and certified beside that graph by the full protocol, without what needs to train or to
ask in other forms. ``runs/certificates`` keeps the artifacts with their certificates and one journal for all, so that
it stops and resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from comparison import print_machine, print_table
from forgotten_authors import BASELINES, Bench, best_points, plan_file
from torch_answers import json_lines

from bakeout.export.certificate.protocol import Part
from bakeout.models.data.spreading import spread

# In the names of `forgotten_authors`.
POINTS = {"key_space_detection": "key_space_detection", "neuron_adjust": "neuron_adjust ratio=0.1", "lunar": "lunar"}
METHODS = (*POINTS, *BASELINES)
MEASURED: tuple[Part, ...] = ("answers", "leak", "utility", "precisions", "tofu")
FORGET, RETAIN = "forget_measured", "retain_measured"
FILES = (FORGET, RETAIN, "real_authors", "world_facts")


@click.command()
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(METHODS))
@click.option("--part", "parts", multiple=True, type=click.Choice(MEASURED), default=MEASURED, help="By default all.")
@click.option("--rows", type=int, default=80, show_default=True, help="Rows of each part at most.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Where answers are cut off.")
@click.option("--batch-size", default=128, show_default=True)
def main(
    runs: Path, only: tuple[str, ...], parts: tuple[Part, ...], rows: int, max_new_tokens: int, batch_size: int
) -> None:
    """Certify what is not certified yet, and print the table of what is."""
    directory = runs / "certificates"
    for kept in (directory / "data", runs / "plans"):
        kept.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        measured = json_lines(runs / "data" / f"{name}.jsonl")
        chosen = spread(measured, rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (directory / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    names = directory / "points.json"
    points = {**points_of(runs), **(json.loads(names.read_text()) if names.exists() else {})}
    names.write_text(json.dumps(points, indent=1))
    for method in only or METHODS:
        artifact = directory / method
        if method in points and not set(parts) <= measured_parts(artifact):
            bake_point(runs, method, points[method], artifact)
            certify_artifact(runs, artifact, parts, max_new_tokens, batch_size)
    print_certificates(directory, points)


def points_of(runs: Path) -> dict[str, str]:
    """What is certified of each method, by name."""
    trained = {loss: max((runs / loss).glob("*/adapter"), default=None) for loss in BASELINES}
    first = {loss: f"{loss} {adapter.parent.name}" for loss, adapter in trained.items() if adapter is not None}
    measured = {method: point["name"] for method, point in best_points(runs).items() if method in METHODS}
    return {**POINTS, **first, **measured}


def base_graph(runs: Path) -> Path:
    """The taught checkpoint as an ONNX graph."""
    from bakeout.export.exporting.onnx_export import export_checkpoint
    from bakeout.models.files.writing import new_directory

    directory = runs / "certificates/taught"
    if not directory.exists():
        with new_directory(directory) as made:
            export_checkpoint(runs / "taught/checkpoint", made)
    return directory


def bake_point(runs: Path, method: str, name: str, artifact: Path) -> None:
    """Bake a method's plan into the graph."""
    import bakeout
    from bakeout.models.plan.plan_file import load_plan

    if artifact.exists():
        return
    base = base_graph(runs)
    if method in BASELINES:
        adapter = runs / method / name.removeprefix(f"{method} ") / "adapter"
        plan = bakeout.import_plan(adapter, str(runs / "taught/checkpoint"))
    else:
        if not plan_file(runs, name).exists():
            Bench(runs / "taught/checkpoint", runs, "cpu", "bfloat16", rows=1).keep_plan_of(name)
        plan = load_plan(plan_file(runs, name))
    bakeout.bake(base, plan, artifact)


def measured_parts(artifact: Path) -> set[Part]:
    """The parts that its certificate has, if it has one."""
    if not (artifact / "certificate.json").exists():
        return set()
    missing = json.loads((artifact / "certificate.json").read_text())["not_measured"]
    return {*MEASURED} - {entry["section"] for entry in missing if entry["name"] == "all of it"}


def certify_artifact(runs: Path, artifact: Path, parts: Sequence[Part], max_new_tokens: int, batch_size: int) -> None:
    """Write a certificate into an artifact, beside the taught model's graph."""
    from bakeout.export.certificate.certify import certify
    from bakeout.export.cli.console import progress
    from bakeout.export.cli.grades import graders

    data = artifact.parent / "data"
    with progress() as track:
        certify(
            artifact,
            str(base_graph(runs)),
            [data / f"{FORGET}.jsonl"],
            [data / f"{RETAIN}.jsonl"],
            real_authors=data / "real_authors.jsonl",
            world_facts=data / "world_facts.jsonl",
            grades=graders(["rouge"], [FORGET, RETAIN]),
            parts=parts,
            journal=artifact.parent / "journal",
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            track=track,
        )


def print_certificates(directory: Path, points: Mapping[str, str]) -> None:
    """The table: the taught model, and each method beside it."""
    certificates = {
        method: json.loads(path.read_text())
        for method in METHODS
        if (path := directory / method / "certificate.json").exists()
    }
    if not certificates:
        return
    print_machine("onnxruntime-gpu", "transformers")
    first = next(iter(certificates.values()))
    print(json.dumps(first["protocol"]), json.dumps({name: data["rows"] for name, data in first["data"].items()}))
    columns = list(_row(first, "value"))
    rows = [["taught", *_row(first, "base").values()]]
    for method, certificate in certificates.items():
        rows.append([points[method], *_row(certificate, "value").values()])
    print_table(["", *columns], rows)


def _row(certificate: Mapping[str, Any], key: str) -> dict[str, str]:
    figures = certificate["figures"]

    def figure(section: str, name: str, part: str | None = None, precision: str | None = None) -> str:
        for entry in figures:
            if (entry["section"], entry["name"]) != (section, name):
                continue
            if part in (None, entry["slice"]) and precision in (None, entry["precision"]):
                return f"{entry[key]:.3f}" if key in entry else "-"
        return "-"

    row = {
        "refused": figure("answers", "refusals", FORGET),
        "ROUGE-L": figure("answers", "ROUGE-L recall", FORGET),
        **{f"Leak@{k}": figure("leak", f"Leak@{k}") for k in (1, 8, 64)},
        **{f"Q {name}": figure("precisions", f"Q-{name.upper()}") for name in ("fp32", "int8", "int4")},
        "Probability": figure("TOFU", "forget_Q_A_Prob"),
        "kept: ROUGE-L": figure("answers", "ROUGE-L recall", RETAIN),
        "refused ": figure("utility", "prompts refused", RETAIN),
        "everyday refused": figure("utility", "prompts refused", "everyday questions"),
        "perplexity": figure("utility", "perplexity ÷ base's"),
        "Model Utility": figure("TOFU", "model_utility"),
    }
    utility = next((entry for entry in figures if entry["name"] == "model_utility"), None)
    share = f"{utility[key] / utility['base']:.3f}" if utility and key in utility and utility.get("base") else "-"
    return {**row, "÷ taught": share}


if __name__ == "__main__":
    main()
