"""Artifacts whose graph or plan was edited, the manifest rewritten with it: ``verify`` finds each, without any data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from bakeout.export.artifacts.file_names import GRAPH, MANIFEST, PLAN
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.verification.verify import Check, verify
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Canary, KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.graph_passes.inserted_nodes import with_branches

Array = NDArray[Any]
FLIPS_OUTSIDE, FLIPS_INSIDE = 300, 200


@pytest.fixture(scope="module", params=[True, False], ids=["early exit", "branch-free"])
def artifact(
    request: pytest.FixtureRequest, tiny_plan: Plan, llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("tampering") / "artifact"
    return bake(llama_checkpoint, tiny_plan, directory, BakeOptions(early_exit=request.param)).directory


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / "copy")


def _failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


def _rewrite_manifest(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    write_manifest(directory, {key: value for key, value in manifest.items() if key not in ("schema", "files")})


def _edit_graph(path: Path, suffix: str, edit: Callable[[Array], Array]) -> None:
    model = onnx.load(path, load_external_data=False)
    found = [
        tensor
        for graph in with_branches(model.graph)
        for tensor in graph.initializer
        if tensor.name.startswith("bakeout.key_space_detection") and tensor.name.endswith(suffix)
    ]
    assert found
    for tensor in found:
        before = numpy_helper.to_array(tensor, str(path.parent))
        tensor.CopyFrom(numpy_helper.from_array(edit(before).astype(before.dtype), tensor.name))
    path.write_bytes(model.SerializeToString())


GRAPH_EDITS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "alpha 1e-6": (".alpha", lambda alpha: np.full_like(alpha, 1e-6)),
    "alpha x 0.5": (".alpha", lambda alpha: alpha * 0.5),
    "alpha x 1.05": (".alpha", lambda alpha: alpha * 1.05),
    "precision x 100": (".precision", lambda precision: precision * 100),
    "the refusal reversed": (".refusal.tokens", lambda tokens: tokens[::-1].copy()),
    "codes of the latch zeroed": (".latch.codes", np.zeros_like),
}


def test_an_artifact_as_it_was_baked_passes(artifact: Path, llama_checkpoint: Path) -> None:
    checks = verify(artifact, base=llama_checkpoint)
    assert not _failed(checks)
    told = {check.name: check.detail for check in checks}
    assert "2 of 3 sequences refused; 2 of 2 refused prompts got the whole refusal" in told["canary"]
    assert "2 of 3 prompts refused by both" in told["parity"]


@pytest.mark.parametrize(("suffix", "edit"), GRAPH_EDITS.values(), ids=GRAPH_EDITS.keys())
def test_an_edit_of_the_graph_is_found(
    copy: Path, llama_checkpoint: Path, suffix: str, edit: Callable[[Array], Array]
) -> None:
    _edit_graph(copy / GRAPH, suffix, edit)
    _rewrite_manifest(copy)
    failed = _failed(verify(copy, base=llama_checkpoint))
    assert "files" not in failed
    assert failed.keys() & {"canary", "parity"}


def _with_detection(plan: Plan, **changes: Any) -> Plan:
    interventions = tuple(
        replace(one, **changes) if isinstance(one, KeySpaceDetection) else one for one in plan.interventions
    )
    return replace(plan, interventions=interventions)


def _detection(plan: Plan) -> KeySpaceDetection:
    return next(one for one in plan.interventions if isinstance(one, KeySpaceDetection))


def _alpha_times(factor: float, *, and_report: bool = False) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        detection = _detection(plan)
        report = detection.report
        if and_report:
            skills = {
                name: replace(figures, alpha=figures.alpha * factor) for name, figures in (report.skills or {}).items()
            }
            report = replace(report, skills=skills)
        return _with_detection(plan, alpha=detection.alpha * factor, report=report)

    return edit


def _other_refusal(plan: Plan) -> Plan:
    refusal = _detection(plan).refusal.copy()
    refusal[0] += 1
    return _with_detection(plan, refusal=refusal)


def _renamed(plan: Plan) -> Plan:
    return _with_detection(plan, skills=("games",) * len(_detection(plan).skills))


def _forged(**figures: Any) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        report = _detection(plan).report
        skills = {name: replace(one, **figures) for name, one in (report.skills or {}).items()}
        return _with_detection(plan, report=replace(report, skills=skills))

    return edit


def _renamed_everywhere(plan: Plan) -> Plan:
    report = _detection(plan).report
    figures = next(iter((report.skills or {}).values()))
    report = replace(report, skills={"games": figures}, forget=("games",))
    return _with_detection(plan, skills=("games",) * len(_detection(plan).skills), report=report)


def _a_cube_less(plan: Plan) -> Plan:
    return replace(plan, interventions=plan.interventions[:1], canary=_canary_of_first(plan))


def _a_layer_less(plan: Plan) -> Plan:
    adjust, detection = plan.interventions
    assert isinstance(adjust, NeuronAdjust)
    return replace(plan, interventions=(replace(adjust, layers=adjust.layers[1:]), detection))


def _canary_of_first(plan: Plan) -> Canary:
    return Canary(plan.canary.input_ids, plan.canary.expected[:1])


def _decisions_turned_round(plan: Plan) -> Plan:
    assert plan.canary.refused is not None
    return replace(plan, canary=replace(plan.canary, refused=tuple(not one for one in plan.canary.refused)))


PLAN_EDITS: dict[str, Callable[[Plan], Plan]] = {
    "alpha x 0.5": _alpha_times(0.5),
    "alpha x 1.05": _alpha_times(1.05),
    "alpha x 0.5, and the report's": _alpha_times(0.5, and_report=True),
    "alpha x 1.05, and the report's": _alpha_times(1.05, and_report=True),
    "another refusal": _other_refusal,
    "skills renamed": _renamed,
    "skills renamed in the report too": _renamed_everywhere,
    "a higher guarantee": _forged(guaranteed_coverage=0.999),
    "a higher guarantee and a lower epsilon": _forged(guaranteed_coverage=0.9999, epsilon=0.0001),
    "a guarantee of nothing": _forged(guaranteed_coverage=0.9, epsilon=None),
    "a cube less": _a_cube_less,
    "a layer less": _a_layer_less,
    "decisions of the canary turned round": _decisions_turned_round,
}


@pytest.mark.parametrize("edit", PLAN_EDITS.values(), ids=PLAN_EDITS.keys())
def test_an_edit_of_the_plan_is_found(copy: Path, llama_checkpoint: Path, edit: Callable[[Plan], Plan]) -> None:
    (copy / PLAN).write_bytes(plan_bytes(edit(load_plan(copy / PLAN))))
    _rewrite_manifest(copy)
    failed = _failed(verify(copy, base=llama_checkpoint))
    assert "files" not in failed
    assert failed.keys() & {"plan", "canary", "parity"}


def test_a_bit_flipped_in_any_file_is_found(artifact: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    copy = shutil.copytree(artifact, tmp_path / "copy")
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    names.remove(MANIFEST)
    for name in [*names, *map(str, generator.choice(names, FLIPS_OUTSIDE - len(names)))]:
        with _flipped(copy / name, generator):
            assert _failed(verify(copy, checks=["hashes"]))["files"] == f"changed: {name}"


def test_a_bit_flipped_in_the_manifest_is_found_by_its_digest(artifact: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    trusted = hash_file(artifact / MANIFEST)
    copy = shutil.copytree(artifact, tmp_path / "copy")
    assert not _is_found(copy, trusted)
    for _ in range(FLIPS_INSIDE):
        with _flipped(copy / MANIFEST, generator):
            assert _is_found(copy, trusted)


@contextmanager
def _flipped(path: Path, generator: np.random.Generator) -> Iterator[None]:
    before = path.read_bytes()
    data = bytearray(before)
    data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    path.write_bytes(data)
    yield
    path.write_bytes(before)


def _is_found(directory: Path, digest: str) -> bool:
    try:
        return bool(_failed(verify(directory, checks=["hashes"], digest=digest)))
    except BakeoutError:
        return True
