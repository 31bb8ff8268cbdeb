"""Is an artifact what its manifest says, and does it compute what its plan says? A check answers, or says why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.export.artifact import GRAPH, MANIFEST, PLAN, read_manifest
from bakeout.export.console import Track, no_track
from bakeout.models.errors import BakeoutError
from bakeout.models.hashing import hash_file, hash_files
from bakeout.models.plan import NeuronAdjust, Plan
from bakeout.models.plan_file import load_plan
from bakeout.models.receipt import Receipt


@dataclass(frozen=True)
class Check:
    """One check. A check that could not run is not ok; its ``detail`` begins with ``skipped``."""

    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        """The check as it stands in ``--json``."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def verify(
    directory: Path,
    *,
    digest: str | None = None,
    base: Path | None = None,
    prompts: Sequence[Sequence[int]] = (),
    track: Track = no_track,
) -> list[Check]:
    """Check an artifact: files, graph, canary, and parity with the PyTorch reference of the checkpoint ``base``.

    ``digest``: SHA-256 of the manifest, as it was when somebody trusted it. ``prompts``: token ids to compare on
    beside the canary's. Raises ``BakeoutError`` where there is no artifact; what is wrong with one is in the checks.
    """
    manifest = read_manifest(directory)
    checks = [*_digest_check(directory, digest), *_file_checks(directory, manifest, track)]
    checks.append(_graph_check(directory))
    try:
        plan = load_plan(directory / PLAN)
    except BakeoutError as error:
        return [*checks, Check("plan", False, str(error)), _skipped("canary"), _skipped("parity")]
    receipts = [Receipt(**receipt) for receipt in manifest["receipts"]]
    if not checks[-1].ok:
        return [*checks, _skipped("canary"), _skipped("parity")]
    checks.append(_canary_check(directory, plan, receipts))
    checks.append(_parity_check(directory, plan, receipts, base, [*plan.canary.input_ids.tolist(), *prompts], track))
    return checks


def _digest_check(directory: Path, digest: str | None) -> Iterator[Check]:
    if digest is None:
        return
    found = hash_file(directory / MANIFEST)
    ok = found == digest.strip().lower()
    yield Check("digest", ok, f"{MANIFEST} has sha256 {found}" + ("" if ok else ", not the one supplied"))


def _file_checks(directory: Path, manifest: dict[str, Any], track: Track) -> Iterator[Check]:
    """The manifest's files, and no others, with the content they were written with."""
    listed = manifest["files"]
    present = {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file() or path.is_symlink()
    }
    missing = sorted(listed.keys() - present)
    extra = sorted(present - listed.keys() - {MANIFEST})
    both = sorted(listed.keys() & present)
    digests = track(hash_files([directory / name for name in both]), "hashing the files", len(both))
    changed = [name for name, digest in zip(both, digests, strict=True) if digest != listed[name]["sha256"]]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("not in the manifest", extra), ("changed", changed))
        if names
    ]
    yield Check("files", not problems, "; ".join(problems) or f"{len(listed)} files as in {MANIFEST}")


def _graph_check(directory: Path) -> Check:
    import onnx
    from google.protobuf.message import DecodeError

    graph = directory / GRAPH
    try:
        onnx.checker.check_model(str(graph))
    except (onnx.checker.ValidationError, DecodeError, OSError, ValueError) as error:
        return Check("graph", False, f"the ONNX checker refuses it: {' '.join(str(error).split())}")
    return Check("graph", True, "the ONNX checker accepts it")


def _canary_check(directory: Path, plan: Plan, receipts: Sequence[Receipt]) -> Check:
    from bakeout.export.canary import match_canary

    try:
        matches = match_canary(directory / GRAPH, plan, receipts)
    except BakeoutError as error:
        return Check("canary", False, str(error))
    compared = [match for match in matches if not match.skipped]
    if not compared:
        return _skipped("canary", "all its values are downstream of a stochastic coin")
    detail = "; ".join(
        f"{match.kind} {match.distance:.1e} away over {match.compared} values (at most {match.tolerance:g})"
        for match in compared
    )
    return Check("canary", all(match.ok for match in compared), detail)


def _parity_check(
    directory: Path,
    plan: Plan,
    receipts: Sequence[Receipt],
    base: Path | None,
    prompts: Sequence[Sequence[int]],
    track: Track,
) -> Check:
    from bakeout.export.parity import check_coin, check_parity

    graph = directory / GRAPH
    try:
        if any(isinstance(one, NeuronAdjust) and one.coin == "stochastic" for one in plan.interventions):
            return Check("parity", *check_coin(graph, plan, receipts, prompts, track))
        if base is None:
            return _skipped("parity", "it needs the base model's checkpoint (--base PATH)")
        return Check("parity", *check_parity(graph, plan, base, prompts, track))
    except BakeoutError as error:
        return Check("parity", False, str(error))


def _skipped(name: str, why: str = "an earlier check failed") -> Check:
    return Check(name, False, f"skipped: {why}")
