"""Regions of every shape from a recipe to a verified artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from bakeout.export.artifacts.file_names import GRAPH
from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.baking.bake import bake
from bakeout.export.fitting.fit import fit
from bakeout.export.fitting.recipe_rows import read_recipe_rows
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.recipes.recipe_inputs import open_rows, without_tests
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting, fit_method, method_figures
from bakeout.models.methods.key_space_detection import METHOD
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.queries import query_keys
from bakeout.models.methods.key_space_detection.regions.discriminant import discriminant
from bakeout.models.plan import KeySpaceDetection, Plan
from bakeout.models.plan.plan_file import save_plan

from tests.fitted_regions import SHAPES
from tests.hostile.test_tampering import _rewrite_manifest as rewrite_manifest
from tests.recipe_files import NEURON_ADJUST, rows, write_recipe

OTHERS = [name for name in SHAPES if name != "cube"]


def _fitted(directory: Path, checkpoint: Path, region: str, **options: Any) -> Plan:
    entry = {"forget": "sums", "layers": [1, 2], "cubes": 2, "epsilon": 0.1, "region": region, **options}
    return fit(load_recipe(write_recipe(directory, checkpoint, [NEURON_ADJUST, {"key_space_detection": entry}])))


@pytest.fixture(scope="module", params=OTHERS)
def plan(request: pytest.FixtureRequest, llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return _fitted(tmp_path_factory.mktemp("recipe"), llama_checkpoint, request.param)


def _check(plan: Plan) -> KeySpaceDetection:
    check = plan.interventions[-1]
    assert isinstance(check, KeySpaceDetection)
    return check


def test_it_is_told_everywhere(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.safetensors")
    told = "\n".join(lines(inspect(tmp_path / "plan.safetensors")))
    check = _check(plan)
    assert f"2 {check.regions.noun}s in layer 1, 2, checked at query" in told
    assert "at least 90 % of fresh ones" in told
    assert "cube" not in told.replace("rotated cube", "")


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_artifact_is_verified_and_its_edits_are_found(
    plan: Plan, dtype: Any, llama_checkpoint: Path, tmp_path: Path
) -> None:
    artifact = bake(llama_checkpoint, plan, tmp_path / "artifact", BakeOptions(dtype=dtype, monitor=True)).directory
    checks = verify(artifact, base=llama_checkpoint)
    assert not [check for check in checks if not check.ok]
    told = {check.name: check.detail for check in checks}
    assert "refused prompts got the whole refusal" in told["canary"]
    if dtype == "fp16":
        # Rounding hides small edits.
        return
    for name in _check(plan).regions.arrays():
        edited = _edited(artifact / GRAPH, name)
        rewrite_manifest(artifact)
        failed = {check.name for check in verify(artifact, base=llama_checkpoint) if not check.ok}
        assert failed & {"canary", "parity"}, name
        edited()


def _edited(path: Path, name: str) -> Any:
    """Doubles an array of the check in the graph, and returns what takes that back."""
    before = path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    found = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith(f"bakeout.key_space_detection.{name}")
        or (name == "deviation" and tensor.name.endswith(".precision"))
    ]
    assert found, name
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor, str(path.parent)), tensor.name))
    path.write_bytes(model.SerializeToString())
    return lambda: path.write_bytes(before)


def test_the_monitor_has_the_margins(plan: Plan, llama_checkpoint: Path, tmp_path: Path) -> None:
    artifact = bake(llama_checkpoint, plan, tmp_path / "artifact", BakeOptions(monitor=True)).directory
    runner = Runner(artifact / GRAPH)
    ids = plan.canary.input_ids
    step = runner.step(ids, np.ones_like(ids)).others
    assert step["margin"].dtype == np.float32
    np.testing.assert_allclose(step["margin"], plan.canary.expected[-1], rtol=2e-3, atol=2e-3)
    assert step["refused"].tolist() == list(plan.canary.refused or ())


def test_the_skill_is_covered_and_the_other_kept(plan: Plan) -> None:
    report = _check(plan).report
    assert ((report.skills or {})["sums"].calibration_inside or 0) >= 0.9
    assert (report.retain or {})["names"].queries == len(rows("names", "calibration"))


def test_a_half_space_needs_data_to_retain(llama_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "recipe"
    data = {"sums": {use: f"data/sums.{use}.jsonl" for use in ("probe", "calibration")}}
    entry = {"key_space_detection": {"forget": "sums", "layers": [2], "epsilon": 0.1, "region": "linear"}}
    path = write_recipe(directory, llama_checkpoint, [entry], data=data)
    with pytest.raises(BakeoutError, match=r"against retained queries|no data to retain"):
        fit(load_recipe(path))


def test_the_shape_is_chosen_and_all_of_them_are_told(llama_checkpoint: Path, tmp_path: Path) -> None:
    automatic = {"layers": [1], "cubes": "auto", "floor": "auto"}
    plan = _fitted(tmp_path / "recipe", llama_checkpoint, "auto", **automatic)
    check = _check(plan)
    choice = check.report.choice
    assert choice is not None
    assert (choice.chosen.region or "cube") == check.regions.name
    assert {one.region or "cube" for one in choice.candidates} == set(SHAPES)
    save_plan(plan, tmp_path / "plan.safetensors")
    told = "\n".join(lines(inspect(tmp_path / "plan.safetensors")))
    for shape in SHAPES:
        assert f"region      {shape}, " in told
    assert METHOD.choices(KeySpaceDetectionOptions(forget=["sums"], layers=[1], region="auto"), check) == {
        "region": check.regions.name
    }


def _fitting(
    directory: Path, checkpoint: Path, options: dict[str, Any], **sections: Any
) -> tuple[KeySpaceDetectionOptions, Fitting]:
    """The options and what a fit of them is given."""
    recipe = load_recipe(write_recipe(directory, checkpoint, [{"key_space_detection": options}], **sections))
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    data = read_recipe_rows(recipe, without_tests(open_rows(recipe)[0]), tokenizer, model.config.to_dict())
    (entry,) = recipe.interventions
    assert isinstance(entry.options, KeySpaceDetectionOptions)
    return entry.options, Fitting(model, data.tokenizer, recipe.fitted_data(), data.rows, data.sources)


@pytest.mark.parametrize(("region", "positions"), [("linear", "query"), ("ellipsoid", "every"), ("cube", "mean")])
def test_figures_are_of_fresh_queries(region: str, positions: str, llama_checkpoint: Path, tmp_path: Path) -> None:
    """At alpha they have what the check refuses of them."""
    options = {"forget": "sums", "layers": [2], "epsilon": 0.1, "region": region, "positions": positions}
    entry, fitting = _fitting(tmp_path, llama_checkpoint, options)
    check = fit_method(METHOD, entry, fitting)
    assert isinstance(check, KeySpaceDetection)
    figures = list(method_figures(METHOD, entry, fitting, check))
    (inside,) = [figure for figure in figures if figure["kind"] == "inside"]
    assert inside["chosen"] == check.alpha[0]
    assert inside["alpha"][0] < check.alpha[0] < inside["alpha"][-1]
    at_alpha = max(index for index, alpha in enumerate(inside["alpha"]) if alpha <= check.alpha[0])
    assert inside["shares"]["sums"][at_alpha] >= 0.5
    assert inside["shares"]["sums"][-1] == 1


@pytest.mark.parametrize("retain", [{}, {"retain": []}])
def test_a_skill_beside_which_there_is_nothing_has_no_figure_by_depth(
    retain: dict[str, Any], llama_checkpoint: Path, tmp_path: Path
) -> None:
    alone = {"sums": {use: f"data/sums.{use}.jsonl" for use in ("probe", "selection", "calibration")}}
    given = {"forget": "sums", "epsilon": 0.1, "paper": True, **retain}
    options, fitting = _fitting(tmp_path, llama_checkpoint, given, data=alone)
    check = fit_method(METHOD, options, fitting)
    (inside,) = method_figures(METHOD, options, fitting, check)
    assert inside["kind"] == "inside"
    assert inside["shares"].keys() == {"sums"}


@pytest.mark.parametrize(
    "form",
    [{}, *(pytest.param(form, marks=pytest.mark.slow) for form in ({"dtype": "fp16"}, {"quantize": "int4"}))],
)
def test_the_mean_key_decides_from_a_recipe_to_a_verified_artifact(
    form: dict[str, Any], llama_checkpoint: Path, tmp_path: Path
) -> None:
    plan = _fitted(tmp_path / "recipe", llama_checkpoint, "linear", positions="mean", query_start=" ")
    save_plan(plan, tmp_path / "plan.safetensors")
    told = "\n".join(lines(inspect(tmp_path / "plan.safetensors")))
    assert "checked at mean" in told
    assert "the last tokens that begin with [" in told
    artifact = bake(llama_checkpoint, plan, tmp_path / "artifact", BakeOptions(**form)).directory
    checks = verify(artifact, base=llama_checkpoint)
    assert not [check for check in checks if not check.ok]
    assert "refused prompts got the whole refusal" in {check.name: check.detail for check in checks}["canary"]


@pytest.mark.parametrize("region", ["linear", "rotated_cube"])
def test_every_token_of_a_query_can_decide(region: str, llama_checkpoint: Path, tmp_path: Path) -> None:
    """Regions without bounds hold some of the canary's earlier tokens: those are refused, and verify expects it."""
    plan = _fitted(tmp_path / "recipe", llama_checkpoint, region, positions="every")
    artifact = bake(llama_checkpoint, plan, tmp_path / "artifact", BakeOptions()).directory
    assert not [check for check in verify(artifact, checks=["canary"]) if not check.ok]


def test_retained_queries_are_varied_like_the_skills(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Else a half-space would tell suffixes from their absence."""
    given = {"forget": "sums", "layers": [2], "epsilon": 0.1, "region": "linear", "augment": ["suffix"]}
    options, fitting = _fitting(tmp_path, llama_checkpoint, given)
    check = fit_method(METHOD, options, fitting)
    assert isinstance(check, KeySpaceDetection)

    def keys(name: str) -> NDArray[np.float64]:
        suffixed = fitting.variants(name, "probe", ["suffix"], seed=options.seed)["suffix"]
        rows = [*fitting.rows[name]["probe"], *suffixed]
        assert len(rows) > len(suffixed) > 0
        return query_keys(fitting, name, rows, [2])[2].astype(np.float64)

    weight, bias = discriminant(keys("sums"), keys("names"))
    (fitted,) = check.regions.arrays()["weight"]
    np.testing.assert_allclose(fitted, weight, rtol=1e-6, atol=1e-6 * np.abs(weight).max())
    np.testing.assert_allclose(check.regions.arrays()["bias"], bias, rtol=1e-5)
