"""What a plan or an artifact holds, as plain data and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, KeySpaceDetection, LowRankUpdate, NeuronAdjust, Plan, ZeroColumns
from bakeout.models.plan.plan_file import load_plan


def inspect(path: Path) -> dict[str, Any]:
    """What a plan file or an artifact directory holds, as JSON: model, interventions, provenance; files and receipts.

    Raises ``BakeoutError`` for anything else.
    """
    if path.is_file():
        return _describe_plan(load_plan(path))
    if not (path / PLAN).is_file():
        raise BakeoutError(
            f"{path} is neither a plan nor an artifact.", "Name what `bakeout fit` or `bakeout build` wrote."
        )
    manifest = read_manifest(path)
    return {
        **_describe_plan(load_plan(path / PLAN)),
        "files": manifest["files"],
        "receipts": manifest["receipts"],
    }


def _describe_plan(plan: Plan) -> dict[str, Any]:
    model = plan.model
    return {
        "model": {
            "architecture": model.architecture,
            "layers": model.layers,
            "width": model.width,
            "hidden": model.hidden,
            "vocabulary": model.vocabulary,
            "digest": model.digest,
        },
        "interventions": [_describe(intervention) for intervention in plan.interventions],
        "canary": {"sequences": len(plan.canary.input_ids), "tokens": plan.canary.input_ids.shape[1]},
        "provenance": dict(plan.provenance),
    }


def _describe(intervention: Intervention) -> dict[str, Any]:
    if isinstance(intervention, NeuronAdjust):
        return {
            "kind": intervention.kind,
            "coin": intervention.coin,
            "seed": intervention.seed,
            "neurons": sum(len(layer.neurons) for layer in intervention.layers),
            "layers": [{"layer": layer.layer, "neurons": len(layer.neurons)} for layer in intervention.layers],
            "report": dict(intervention.report),
        }
    if isinstance(intervention, ZeroColumns):
        return {
            "kind": intervention.kind,
            "weights": [
                {"layer": zeroed.layer, "role": "down", "columns": len(zeroed.columns)}
                for zeroed in intervention.layers
            ],
            "report": dict(intervention.report),
        }
    if isinstance(intervention, LowRankUpdate):
        return {
            "kind": intervention.kind,
            "method": intervention.method,
            "weights": [
                {"layer": update.layer, "role": update.role, "rank": update.left.shape[1]}
                for update in intervention.updates
            ],
            "report": dict(intervention.report),
        }
    return {
        "kind": intervention.kind,
        "positions": intervention.positions,
        "layers": list(intervention.layers),
        "refusal": intervention.refusal.tolist(),
        "cubes": [
            {
                "skill": skill,
                "alpha": float(alpha),
                "dimensions": int(intervention.centre.shape[1]),
                "median_deviation": float(np.median(deviation)),
            }
            for skill, alpha, deviation in zip(
                intervention.skills, intervention.alpha, intervention.deviation, strict=True
            )
        ],
        "report": dict(intervention.report),
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The result of ``inspect`` for people."""
    model = found["model"]
    yield (
        f"model         {model['architecture']}, {model['layers']} layers, FFL width {model['width']}, hidden size "
        f"{model['hidden']}, {model['vocabulary']} tokens"
    )
    yield f"weights       sha256 {model['digest']}"
    yield f"canary        {found['canary']['sequences']} sequences of {found['canary']['tokens']} tokens"
    for number, intervention in enumerate(found["interventions"]):
        yield ""
        yield from _LINES[intervention["kind"]](number, intervention)
    if found["provenance"]:
        yield ""
        yield from _nested("provenance", found["provenance"])
    if "receipts" in found:
        yield ""
        yield f"receipts      {_count(len(found['receipts']), 'edit')}"
        for receipt in found["receipts"]:
            yield from receipt_lines(receipt)
    if "files" in found:
        yield ""
        yield f"files         {len(found['files'])}"
        for name, file in sorted(found["files"].items()):
            yield f"  {file['sha256'][:16]}…  {file['size']:>12,} bytes  {name}"


def receipt_lines(receipt: Mapping[str, Any]) -> Iterator[str]:
    """One receipt for people: what was edited and, of weights, how much of the change is left after rounding."""
    count = _COUNTED[receipt["kind"]].format(receipt["count"])
    yield f"  {receipt['intervention']}  layer {receipt['layer']:<3} {count:>14}  {receipt['tensor']}".rstrip()
    detail = receipt["detail"]
    if "norm_before" in detail:
        yield (
            f"{'':29}{detail['role']}, {detail['dtype']}: norm {detail['norm_before']:.4g}, change asked "
            f"{detail['norm_asked']:.4g}, realised {detail['norm_realised']:.4g}"
        )


def _neuron_adjust_lines(number: int, intervention: Mapping[str, Any]) -> Iterator[str]:
    coin = intervention["coin"] + (f", seed {intervention['seed']}" if intervention["coin"] == "stochastic" else "")
    yield f"{number}  Neuron Adjust: {_count(intervention['neurons'], 'neuron')}, {coin} coin"
    for layer in intervention["layers"]:
        yield f"  layer {layer['layer']:<3} {layer['neurons']:>6} neurons"
    yield from _nested("  report", intervention["report"])


def _detection_lines(number: int, intervention: Mapping[str, Any]) -> Iterator[str]:
    layers = ", ".join(str(layer) for layer in intervention["layers"])
    yield (
        f"{number}  Key Space Detection: {_count(len(intervention['cubes']), 'cube')} in layer {layers}, checked at "
        f"{intervention['positions']}"
    )
    yield f"  refusal     {len(intervention['refusal'])} tokens: {intervention['refusal']}"
    for cube in intervention["cubes"]:
        yield (
            f"  cube        {cube['skill']}: alpha {cube['alpha']:.4g}, {cube['dimensions']} dimensions, median "
            f"deviation {cube['median_deviation']:.3g}"
        )
    report = dict(intervention["report"])
    for skill, found in report.pop("skills", {}).items():
        inside = found.get("calibration_inside")
        promised = found.get("guaranteed_coverage")
        promise = "" if promised is None else f", at least {promised:.4g} of fresh ones"
        if inside is not None:
            yield (
                f"  coverage    {skill}: {inside:.1%} of {found['calibration_queries']} calibration queries inside"
                f"{promise}"
            )
    for name, found in report.pop("retain", {}).items():
        low, high = found["interval"]
        yield (
            f"  refused     {name}: {found['rate']:.1%} of {found['queries']} queries, falsely "
            f"(interval {low:.1%} to {high:.1%})"
        )
    choice = report.pop("choice", None)
    if choice is not None:
        chosen = choice["chosen"]
        yield (
            f"  chosen      among {_count(len(choice['candidates']), 'structure')}: {chosen['missed']:.1%} missed, at "
            f"most {max(chosen['refused'].values()):.1%} refused falsely, on the selection queries"
        )
    yield from _nested("  report", report)


def _zero_columns_lines(number: int, intervention: Mapping[str, Any]) -> Iterator[str]:
    columns = sum(weight["columns"] for weight in intervention["weights"])
    yield f"{number}  Zeroed columns: {_count(columns, 'neuron')}"
    for weight in intervention["weights"]:
        yield f"  layer {weight['layer']:<3} {_count(weight['columns'], 'column')} of {weight['role']}"
    yield from _nested("  report", intervention["report"])


def _low_rank_update_lines(number: int, intervention: Mapping[str, Any]) -> Iterator[str]:
    yield f"{number}  Low-rank update by {intervention['method']}: {_count(len(intervention['weights']), 'weight')}"
    for weight in intervention["weights"]:
        yield f"  layer {weight['layer']:<3} {weight['role']}, rank {weight['rank']}"
    yield from _nested("  report", intervention["report"])


_LINES: Mapping[str, Callable[[int, Mapping[str, Any]], Iterator[str]]] = {
    NeuronAdjust.kind: _neuron_adjust_lines,
    KeySpaceDetection.kind: _detection_lines,
    ZeroColumns.kind: _zero_columns_lines,
    LowRankUpdate.kind: _low_rank_update_lines,
}
# What a receipt's count counts.
_COUNTED = {
    NeuronAdjust.kind: "{} neurons",
    KeySpaceDetection.kind: "{} cubes",
    ZeroColumns.kind: "{} columns",
    LowRankUpdate.kind: "rank {}",
}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _nested(title: str, content: Any) -> Iterator[str]:
    """JSON as indented lines."""
    indent = " " * (len(title) - len(title.lstrip()) + 2)
    if isinstance(content, Mapping):
        yield title
        for key, value in content.items():
            yield from _nested(f"{indent}{key}", value)
    elif isinstance(content, list) and any(isinstance(value, (Mapping, list)) for value in content):
        yield title
        for number, value in enumerate(content):
            yield from _nested(f"{indent}{number}", value)
    else:
        text = f"{content:.4g}" if isinstance(content, float) else str(content)
        yield f"{title.ljust(13)} {text}"
