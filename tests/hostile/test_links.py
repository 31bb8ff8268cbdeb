"""Links in a model's directory that lead out of it are not copied into artifacts; those of a hub's cache are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.directory_tree import tree
from tests.weight_plans import low_rank_update, plan_of


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("{}")
    return path


@pytest.fixture
def plan_file(tiny_plan: Plan, tmp_path: Path) -> Path:
    save_plan(tiny_plan, tmp_path / "plan")
    return tmp_path / "plan"


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("llama_checkpoint", "tokenizer_config.json"),
        *(("llama_export", name) for name in ("LICENSE", "tokenizer_config.json", "vocab.txt", "chat_template.jinja")),
    ],
)
def test_a_file_that_leads_out_is_refused_by_name(
    request: pytest.FixtureRequest, plan_file: Path, secret: Path, tmp_path: Path, form: str, name: str
) -> None:
    model = shutil.copytree(request.getfixturevalue(form), tmp_path / "model")
    _link(model / name, secret)
    _require_refused(model, plan_file, tmp_path, model / name)


def test_data_of_a_graph_that_leads_out_is_refused(llama_export: Path, plan_file: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama_export, tmp_path / "model")
    shutil.move(model / "model.onnx.data", tmp_path / "data")
    _link(model / "model.onnx.data", tmp_path / "data")
    _require_refused(model, plan_file, tmp_path, model / "model.onnx.data")


def test_a_file_beside_weights_that_leads_out_is_refused(llama_checkpoint: Path, secret: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(llama_checkpoint, tmp_path / "model")
    model = load_model(checkpoint)
    save_plan(plan_of(model, weights_digest(checkpoint), low_rank_update(model)), tmp_path / "plan")
    _link(checkpoint / "LICENSE", secret)
    _require_refused(checkpoint, tmp_path / "plan", tmp_path, checkpoint / "LICENSE", "--to", "safetensors")


def test_links_within_a_model_and_of_a_hubs_cache_are_followed(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    home = tmp_path / "models--company--model"
    snapshot = home / "snapshots" / ("0" * 40)
    (home / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama_export.iterdir())):
        shutil.copyfile(path, home / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    (snapshot / "LICENSE").symlink_to("config.json")
    artifact = bake(snapshot, tiny_plan, tmp_path / "artifact").directory
    assert {"LICENSE", "model.onnx.data", "tokenizer.json"} <= {path.name for path in artifact.iterdir()}
    assert not any(path.is_symlink() for path in artifact.rglob("*"))
    (tmp_path / "linked").symlink_to(snapshot)
    bake(tmp_path / "linked", tiny_plan, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(artifact)


def _require_refused(model: Path, plan: Path, home: Path, link: Path, *options: str) -> None:
    result = CliRunner().invoke(main, ["bake", str(model), str(plan), "-o", str(home / "artifact"), *options])
    assert result.exit_code == 1, result.output
    assert f"error: {link} is a link that leads out" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (home / "artifact").exists()
