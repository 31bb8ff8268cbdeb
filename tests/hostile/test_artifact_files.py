"""Artifacts whose files are no files, or not the plan's: ``verify`` says so, and neither waits nor breaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.file_names import MANIFEST, PLAN
from bakeout.export.artifacts.manifest import read_manifest, receipts_of, write_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.verification.formulas import check_formulas
from bakeout.export.verification.verify import Check, verify
from bakeout.models.plan import Canary, Cubes, KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.progress import untracked

_SECONDS = 20


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("files") / "artifact").directory


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"it still runs after {_SECONDS} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    yield
    signal.alarm(0)


def _failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


def _replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        by(directory / name)

    return damage


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _link_of_equal_content(directory: Path) -> None:
    (directory / "config.json").rename(directory.parent / "config.json")
    (directory / "config.json").symlink_to(directory.parent / "config.json")


_ENTRIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a device": (_replaced("config.json", _link("/dev/zero")), "config.json is a link"),
    "a FIFO for a graph": (_replaced("model.onnx", os.mkfifo), "model.onnx is not a regular file"),
    "a FIFO for a plan": (_replaced(PLAN, os.mkfifo), f"{PLAN} is not a regular file"),
    "a link that leads nowhere": (_replaced("config.json", _link("gone")), "config.json is a link"),
    "a link to itself": (_replaced("config.json", _link("config.json")), "config.json is a link"),
    "a link to a directory": (lambda directory: (directory / "more").symlink_to(".."), "more is a link"),
    "a link of equal content": (_link_of_equal_content, "config.json is a link"),
    "one FIFO more": (lambda directory: os.mkfifo(directory / "more"), "more is not a regular file"),
    "an empty directory": (lambda directory: (directory / "a" / "b").mkdir(parents=True), "a/b is an empty directory"),
}


@pytest.mark.parametrize(("damage", "words"), _ENTRIES.values(), ids=_ENTRIES.keys())
def test_what_is_no_file_is_told_and_nothing_opens_it(copy: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(copy)
    failed = _failed(verify(copy))
    assert failed["files"] == words
    assert all(detail.startswith("skipped") for name, detail in failed.items() if name != "files")
    # Whatever is asked for.
    assert _failed(verify(copy, checks=["canary"]))["files"] == words


@pytest.mark.parametrize("other", [_link("/dev/zero"), os.mkfifo, _link("bakeout.json"), Path.mkdir])
def test_a_manifest_that_is_no_file_is_refused(copy: Path, other: Callable[[Path], object]) -> None:
    _replaced(MANIFEST, other)(copy)
    for command in (["verify"], ["inspect"], ["report"]):
        result = CliRunner().invoke(main, [*command, str(copy)])
        assert result.exit_code in (1, 2), result.output
        assert isinstance(result.exception, SystemExit)


def test_a_wrong_size_is_told(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["config.json"]["size"] += 1
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert _failed(verify(copy))["files"] == "changed: config.json"


def test_the_links_of_a_hubs_cache_stand_for_their_files(artifact: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(artifact.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert not _failed(verify(snapshot, checks=["files", "graph", "canary"]))
    receipts = receipts_of(read_manifest(snapshot))
    prompts = tiny_plan.canary.input_ids[:2].tolist()
    assert check_formulas(snapshot / "model.onnx", tiny_plan, receipts, prompts, untracked)[0]


def _with_a_cube_more(plan: Plan) -> Plan:
    adjust, detection = plan.interventions
    assert isinstance(detection, KeySpaceDetection)
    more = replace(
        detection,
        regions=Cubes(*(np.repeat(array, 2, axis=0) for array in detection.regions.arrays().values())),
        alpha=np.repeat(detection.alpha, 2),
        skills=detection.skills * 2,
    )
    first, second = plan.canary.expected
    canary = Canary(plan.canary.input_ids, (first, np.repeat(second, 2, axis=1)))
    return replace(plan, interventions=(adjust, more), canary=canary)


def _without_a_layer(plan: Plan) -> Plan:
    adjust, detection = plan.interventions
    assert isinstance(adjust, NeuronAdjust)
    return replace(plan, interventions=(replace(adjust, layers=adjust.layers[1:]), detection))


def _without_an_intervention(plan: Plan) -> Plan:
    canary = Canary(plan.canary.input_ids, plan.canary.expected[:1])
    return replace(plan, interventions=plan.interventions[:1], canary=canary)


def _of_another_width(plan: Plan) -> Plan:
    adjust = plan.interventions[0]
    canary = Canary(plan.canary.input_ids, plan.canary.expected[:1])
    return replace(plan, model=replace(plan.model, width=97), interventions=(adjust,), canary=canary)


def _with_a_narrow_canary(plan: Plan) -> Plan:
    first, second = plan.canary.expected
    return replace(plan, canary=Canary(plan.canary.input_ids, (first[:, 1:], second)))


@pytest.mark.parametrize(
    "edit",
    [_with_a_cube_more, _without_a_layer, _without_an_intervention, _of_another_width, _with_a_narrow_canary],
    ids=lambda edit: str(edit.__name__).strip("_"),
)
def test_another_valid_plan_is_not_ok(
    copy: Path, tiny_plan: Plan, llama_checkpoint: Path, edit: Callable[[Plan], Plan]
) -> None:
    (copy / PLAN).write_bytes(plan_bytes(edit(tiny_plan)))
    manifest = json.loads((copy / MANIFEST).read_text())
    write_manifest(copy, {key: value for key, value in manifest.items() if key not in ("schema", "files")})
    failed = _failed(verify(copy, base=llama_checkpoint))
    assert "files" not in failed
    assert {"plan", "canary"} & failed.keys(), failed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda manifest: manifest["receipts"][0].update(layer="x"),
        lambda manifest: manifest.update(base_figures=[{"digest": "ab", "prompts": "7", "accuracy": 0, "refusals": 0}]),
        lambda manifest: manifest.update(base_figures=[{"digest": "ab", "prompts": 0, "accuracy": 0, "refusals": 0}]),
        lambda manifest: manifest.update(base_figures=[{"digest": "ab", "prompts": 7, "accuracy": 2, "refusals": 0}]),
        lambda manifest: manifest.update(base_figures=[{"prompts": 7}]),
        lambda manifest: manifest.update(base_figures={"ab": 7}),
        lambda manifest: manifest["base"].update(layers="4"),
        lambda manifest: manifest.update(base=[]),
        lambda manifest: manifest.update(data={"sums": ["ab"]}),
        lambda manifest: manifest.update(data={"sums": {"probe": 3}}),
        lambda manifest: manifest["versions"].update(baked_with={"numpy": 2}),
        lambda manifest: manifest.update(options=[]),
        lambda manifest: manifest.update(canary=True),
        lambda manifest: manifest.update(plan=3),
        lambda manifest: manifest.update(end_of_text="x"),
        lambda manifest: manifest.update(decoding=[3]),
        lambda manifest: manifest["receipts"][0].update(detail=3),
        lambda manifest: manifest["receipts"][0].update(count=True),
        lambda manifest: manifest.update(receipts=[3]),
        lambda manifest: manifest.update(receipts={}),
        lambda manifest: manifest["files"]["config.json"].update(size="3"),
        lambda manifest: manifest["files"]["config.json"].update(more=1),
    ],
)
def test_a_manifest_of_other_types_is_refused(copy: Path, spoil: Callable[[dict[str, object]], object]) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    spoil(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    for command in ("verify", "inspect"):
        result = CliRunner().invoke(main, [command, str(copy)])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {copy / MANIFEST} is not a manifest"), result.output
        assert len(result.stderr.splitlines()) == 1


def test_a_receipt_less_is_told(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["receipts"].pop()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert "plan and receipts differ" in _failed(verify(copy))["plan"]
