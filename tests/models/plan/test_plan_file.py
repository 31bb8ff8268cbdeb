"""Plans survive their file byte for byte, and nothing that is not a whole plan is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load, save

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import NeuronAdjust, Plan, PlanError, ZeroColumns, find_kind, register_kind
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjustReport
from bakeout.models.plan.plan_file import load_plan, plan_bytes, save_plan

from tests.plan_examples import key_space_detection, low_rank_update, neuron_adjust, plan, plans, zero_columns


@settings(max_examples=25)
@given(plans())
def test_a_plan_survives_its_file(tmp_path: Path, original: Plan) -> None:
    (tmp_path / "plan.safetensors").unlink(missing_ok=True)
    save_plan(original, tmp_path / "plan.safetensors")
    read = load_plan(tmp_path / "plan.safetensors")
    _assert_same(read, original)
    assert plan_bytes(read) == plan_bytes(original) == (tmp_path / "plan.safetensors").read_bytes()


def test_the_order_of_interventions_and_of_json_keys_is_kept_out_of_chance() -> None:
    forward = plan(provenance={"a": 1, "b": {"c": 2, "d": 3}})
    backward = plan(provenance={"b": {"d": 3, "c": 2}, "a": 1})
    assert plan_bytes(forward) == plan_bytes(backward)
    first, second = forward.interventions
    assert plan_bytes(plan(second, first)) != plan_bytes(forward)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_plan_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "plan.safetensors"
    path.write_bytes(plan_bytes(plan())[:length])
    with pytest.raises(PlanError, match="not a whole safetensors file"):
        load_plan(path)


@pytest.mark.parametrize(
    "content", [b"model: base\ndata: {}\n", b'{\n  "base": {}\n}\n', b"\x08\x08\x12\x07pytorch\x1a\x05"]
)
def test_a_file_of_another_format_is_whole_but_no_plan(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(PlanError, match=r"not a plan \(it is no safetensors file\)"):
        load_plan(tmp_path / "other")


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "none.safetensors")


def test_of_an_artifact_the_plan_in_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a directory") as caught:
        load_plan(tmp_path)
    assert caught.value.remedy == "Check the path."
    save_plan(plan(), tmp_path / "plan.safetensors")
    with pytest.raises(PlanError, match="a directory, not a plan") as caught:
        load_plan(tmp_path)
    assert caught.value.remedy == f"Name the plan in it: {tmp_path / 'plan.safetensors'}"


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"weight": np.zeros(3)}, {"format": "pt"}))
    with pytest.raises(PlanError, match="not a plan"):
        load_plan(path)
    path.write_bytes(save({"weight": np.zeros(3)}))
    with pytest.raises(PlanError, match="not a plan"):
        load_plan(path)
    header = b'{"__metadata__": null}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PlanError, match="not a plan"):
        load_plan(path)


def _no_model(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    del described["model"]


def _unknown_model_field(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["model"]["colour"] = "red"


def _newer_schema(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["schema"] = 2


def _unknown_kind(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][0]["kind"] = "magic"


def _newer_kind(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][0]["schema"] = 2
    described["provenance"] = {"versions": {"bakeout": "7.8.9"}}


def _report_of_a_list(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][0]["report"] = [1]


def _ratio_of_words(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][0]["report"]["ratio"] = "some"


def _unknown_figure(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][1]["report"]["retain"]["names"]["colour"] = "red"


def _missing_figure(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    del described["interventions"][1]["report"]["retain"]["names"]["rate"]


def _no_coin(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    del described["interventions"][0]["coin"]


def _missing_array(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    del arrays["interventions.1.alpha"]


def _stray_array(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["stray"] = np.zeros(1)


def _wrong_type(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["interventions.1.centre"] = arrays["interventions.1.centre"].astype(np.float32)


def _not_finite(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["interventions.1.centre"] = np.full_like(arrays["interventions.1.centre"], np.nan)


def _interventions_no_list(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"] = 3


def _unknown_role(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][3]["weights"] = [[3, "sideways"]]
    for factor in ("left", "right"):
        arrays[f"interventions.3.3.sideways.{factor}"] = arrays.pop(f"interventions.3.3.down.{factor}")


def _factor_of_halves(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["interventions.3.3.down.left"] = arrays["interventions.3.3.down.left"].astype(np.float16)


def _no_factor(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    del arrays["interventions.3.3.down.right"]


def _columns_of_no_layer(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][2]["layers"] = [[1]]


def _weights_no_list(described: dict[str, Any], arrays: dict[str, Any]) -> None:
    described["interventions"][3]["weights"] = 3


@pytest.mark.parametrize(
    ("garble", "says"),
    [
        (_no_model, "model"),
        (_unknown_model_field, "colour"),
        (_newer_schema, "schema 2"),
        (_unknown_kind, "magic"),
        (_newer_kind, r"Neuron Adjust in schema 2; this version reads up to 1.*Use Bakeout 7\.8\.9 or later"),
        (_report_of_a_list, r"report is \[1\]"),
        (_ratio_of_words, r"report\.ratio is 'some'"),
        (_unknown_figure, r"report\.retain\.names holds 'colour'"),
        (_missing_figure, r"report\.retain\.names lacks 'rate'"),
        (_no_coin, "coin"),
        (_missing_array, r"interventions\.1\.alpha"),
        (_stray_array, "stray"),
        (_wrong_type, "float32, not float64"),
        (_not_finite, "NaN"),
        (_interventions_no_list, "lacks or garbles"),
        (_unknown_role, "sideways"),
        (_factor_of_halves, "float16, not float32"),
        (_no_factor, r"interventions\.3\.3\.down\.right"),
        (_columns_of_no_layer, "lacks or garbles"),
        (_weights_no_list, "lacks or garbles"),
    ],
)
def test_a_garbled_plan_is_refused_with_its_path(
    tmp_path: Path, garble: Callable[[dict[str, Any], dict[str, Any]], None], says: str
) -> None:
    data = plan_bytes(plan(neuron_adjust(), key_space_detection(), zero_columns(), low_rank_update()))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described, arrays = json.loads(header["__metadata__"]["bakeout"]), load(data)
    garble(described, arrays)
    path = tmp_path / "plan.safetensors"
    path.write_bytes(save(arrays, {"bakeout": json.dumps(described)}))
    with pytest.raises(PlanError, match=says) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, BakeoutError)


def _assert_same(read: Any, original: Any) -> None:
    assert type(read) is type(original)
    if isinstance(original, np.ndarray):
        assert read.dtype == original.dtype
        np.testing.assert_array_equal(read, original)
    elif is_dataclass(original):
        for field in fields(original):
            _assert_same(getattr(read, field.name), getattr(original, field.name))
    elif isinstance(original, tuple):
        assert len(read) == len(original)
        for one, other in zip(read, original, strict=True):
            _assert_same(one, other)
    else:
        assert read == original


def test_a_plan_of_version_0_1_0_has_no_schemas_of_kinds(tmp_path: Path) -> None:
    data = plan_bytes(plan())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = json.loads(header["__metadata__"]["bakeout"])
    assert [entry.pop("schema") for entry in described["interventions"]] == [1, 1]
    path = tmp_path / "plan.safetensors"
    path.write_bytes(save(load(data), {"bakeout": json.dumps(described)}))
    assert plan_bytes(load_plan(path)) == data


def test_a_report_keeps_what_only_a_method_knows_and_names_its_data(tmp_path: Path) -> None:
    report = NeuronAdjustReport(ratio=0.1, details={"temperature": [1, 2], "nothing": None})
    named = neuron_adjust(report=report).with_data({"forget": ["sums"], "retain": ["names"], "similar": ["poems"]})
    assert named.forgets == ("sums",)
    save_plan(plan(named), tmp_path / "plan.safetensors")
    (read,) = load_plan(tmp_path / "plan.safetensors").interventions
    assert read.report == named.report
    assert read.report.as_json() == {
        "forget": ["sums"],
        "retain": ["names"],
        "ratio": 0.1,
        "similar": ["poems"],
        "temperature": [1, 2],
        "nothing": None,
    }


def test_figures_of_the_fit_come_before_names_of_data() -> None:
    """Key Space Detection's ``retain`` is the false refusals of these names."""
    check = key_space_detection()
    assert check.with_data({"forget": ["math"], "retain": ["names"]}).report == replace(check.report, forget=("math",))


def test_a_name_is_one_kinds_alone() -> None:
    with pytest.raises(ValueError, match="'neuron_adjust' already"):
        register_kind(type("Other", (ZeroColumns,), {"kind": "neuron_adjust"}))
    assert find_kind("neuron_adjust") is NeuronAdjust
