"""What a plan or an artifact holds, as plain data and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_names import ADAPTER, PLAN
from bakeout.export.artifacts.manifest import adapter_of, read_manifest, receipts_of
from bakeout.export.artifacts.titles import described
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Description, Plan, counted, find_kind
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.sources.peft_adapter import CONFIG, WEIGHTS


@dataclass(frozen=True)
class Inspection:
    """A plan, its interventions described, and the files and receipts of an artifact's manifest.

    ``adapter``: of a policy, as of ``manifest.adapter_of``.
    """

    plan: Plan
    interventions: tuple[Description, ...]
    files: Mapping[str, Any] | None = None
    receipts: tuple[Mapping[str, Any], ...] | None = None
    adapter: Mapping[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Model, interventions, canary, provenance; files and receipts of an artifact, ``adapter`` of a policy."""
        artifact = {} if self.files is None else {"files": self.files, "receipts": list(self.receipts or ())}
        if self.adapter is not None:
            artifact["adapter"] = dict(self.adapter)
        canary = self.plan.canary
        sequences, tokens = canary.input_ids.shape
        return {
            "model": asdict(self.plan.model),
            "interventions": [dict(intervention.json) for intervention in self.interventions],
            "canary": {
                "sequences": sequences,
                "tokens": tokens,
                "refused": None if canary.refused is None else sum(canary.refused),
                "uncovered": list(canary.uncovered),
            },
            "provenance": dict(self.plan.provenance),
            **artifact,
        }


def inspect(path: Path) -> Inspection:
    """What a plan file or an artifact directory holds. Raises ``BakeoutError`` for anything else."""
    if path.is_file():
        return _described(load_plan(path))
    if not (path / PLAN).is_file():
        raise BakeoutError(
            f"{path} is neither a plan nor an artifact.", "Name what `bakeout fit` or `bakeout build` wrote."
        )
    manifest = read_manifest(path)
    receipts = tuple(receipt.as_json() for receipt in receipts_of(manifest))
    return _described(load_plan(path / PLAN), manifest["files"], receipts, adapter_of(manifest))


def _described(
    plan: Plan,
    files: Mapping[str, Any] | None = None,
    receipts: tuple[Mapping[str, Any], ...] | None = None,
    adapter: Mapping[str, str] | None = None,
) -> Inspection:
    interventions = tuple(described(intervention, plan.model) for intervention in plan.interventions)
    return Inspection(plan, interventions, files, receipts, adapter)


def lines(inspection: Inspection) -> Iterator[str]:
    """The result of ``inspect`` for people."""
    if inspection.adapter is not None:
        yield from _policy_lines(inspection.adapter, inspection.files or {}, inspection.interventions)
    model, (sequences, tokens) = inspection.plan.model, inspection.plan.canary.input_ids.shape
    yield (f"model         {model.architecture}, {model.shape}, hidden size {model.hidden}, {model.vocabulary} tokens")
    yield f"weights       sha256 {model.digest}"
    yield f"canary        {sequences} sequences of {tokens} tokens" + _exercised(inspection.plan)
    for number, description in enumerate(inspection.interventions):
        yield ""
        yield from description_lines(number, description)
    if inspection.plan.provenance:
        yield ""
        yield from _nested("provenance", inspection.plan.provenance)
    if inspection.receipts is not None:
        yield ""
        yield f"receipts      {counted(len(inspection.receipts), 'edit')}"
        for receipt in inspection.receipts:
            yield from receipt_lines(receipt)
    if inspection.files is not None:
        yield ""
        yield f"files         {len(inspection.files)}"
        for name, file in sorted(inspection.files.items()):
            yield f"  {file['sha256'][:16]}…  {file['size']:>12,} bytes  {name}"


def _policy_lines(
    adapter: Mapping[str, str], files: Mapping[str, Any], interventions: tuple[Description, ...]
) -> Iterator[str]:
    """What a policy is, what it belongs to, and how it is checked and run."""
    kinds = " and ".join(dict.fromkeys(intervention.title for intervention in interventions))
    if adapter["form"] == "peft":
        whose, over = "a PEFT adapter", "the model with the weights below"
    else:
        whose, over = "an adapter for ONNX Runtime", f"the artifact of content sha256 {adapter.get('artifact')}"
    size = sum(files[name]["size"] for name in (ADAPTER, CONFIG, WEIGHTS) if name in files)
    yield f"policy        {kinds}, as {whose} of {size:,} bytes"
    yield f"over          {over}"
    yield "next          bakeout verify DIR tells whether the adapter is what this plan becomes"
    yield ""


def _exercised(plan: Plan) -> str:
    """What of the check's regions the canary shows."""
    canary, check = plan.canary, plan.check
    refused = "" if canary.refused is None else f", {sum(canary.refused)} of them refused"
    return refused + (
        f"; {len(canary.uncovered)} of {len(check.alpha)} regions not covered" if check and canary.uncovered else ""
    )


def description_lines(number: int, description: Description) -> Iterator[str]:
    """One intervention for people."""
    yield f"{number}  {description.title}: {description.summary}"
    for part in description.parts:
        yield f"  {part.where:<17} {part.text}"
    for name, text in description.facts:
        yield f"  {name:<11} {text}"
    if description.details:
        yield from _nested("  report", description.details)


def receipt_lines(receipt: Mapping[str, Any]) -> Iterator[str]:
    """One receipt for people: what was edited and, for weights, how much of the change is left after rounding."""
    kind = find_kind(receipt["kind"])
    count = kind.count_text(receipt["count"]) if kind else str(receipt["count"])
    yield f"  {receipt['intervention']}  layer {receipt['layer']:<3} {count:>14}  {receipt['tensor']}".rstrip()
    detail = receipt["detail"]
    norms = [detail.get(f"norm_{when}") for when in ("before", "asked", "realised")]
    if all(isinstance(norm, int | float) for norm in norms):
        before, asked, realised = norms
        yield (
            f"{'':29}{detail.get('role')}, {detail.get('dtype')}: norm {before:.4g}, change asked {asked:.4g}, "
            f"realised {realised:.4g}"
        )


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
