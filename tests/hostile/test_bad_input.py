"""Whatever is wrong with the input: one line with cause and remedy, exit code 1, and nothing left behind."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from bakeout.export.cli.main import main
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.plan import Canary, Plan
from bakeout.models.plan.plan_file import plan_bytes

from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, write_recipe
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import low_rank_update


@dataclass(frozen=True)
class Bench:
    """What the cases spoil: copies of good input in ``directory``, and where the output would go."""

    directory: Path
    checkpoint: Path
    graph: Path
    plan: Plan

    @property
    def output(self) -> Path:
        return self.directory / "made" / "output"

    def recipe(self, *interventions: dict[str, Any], **sections: Any) -> Path:
        return write_recipe(self.directory, "checkpoint", interventions or (NEURON_ADJUST,), **sections)

    def saved_plan(self, plan: Plan | None = None) -> Path:
        path = self.directory / "plan.safetensors"
        path.write_bytes(plan_bytes(plan or self.plan))
        return path

    def build(self, recipe: Path) -> list[str]:
        return ["build", str(recipe), "-o", str(self.output)]

    def bake(self, model: Path, plan: Path | None = None) -> list[str]:
        return ["bake", str(model), str(plan or self.saved_plan()), "-o", str(self.output)]


@pytest.fixture
def bench(tmp_path: Path, llama_checkpoint: Path, llama_export: Path, tiny_plan: Plan) -> Bench:
    shutil.copytree(llama_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(llama_export, tmp_path / "graph")
    return Bench(tmp_path, tmp_path / "checkpoint", tmp_path / "graph", tiny_plan)


def _detection(**options: Any) -> dict[str, Any]:
    return {"key_space_detection": {**KEY_SPACE_DETECTION["key_space_detection"], **options}}


def _truncate(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def unknown_recipe_key(bench: Bench) -> list[str]:
    return bench.build(bench.recipe(modle="x"))


def missing_data(bench: Bench) -> list[str]:
    return bench.build(bench.recipe(data={"sums": {"probe": "data/gone.jsonl"}, "names": "data/names.probe.jsonl"}))


def _malformed_data(row: str) -> Callable[[Bench], list[str]]:
    def case(bench: Bench) -> list[str]:
        recipe = bench.recipe()
        with (bench.directory / "data" / "names.probe.jsonl").open("a") as file:
            file.write(row + "\n")
        return bench.build(recipe)

    return case


def checkpoint_of_other_weights(bench: Bench) -> list[str]:
    return bench.bake(tiny_checkpoint("llama", bench.directory / "other", seed=1))


def graph_of_other_shape(bench: Bench) -> list[str]:
    plan = replace(bench.plan, model=replace(bench.plan.model, hidden=64))
    return bench.bake(bench.graph, bench.saved_plan(plan))


def graph_of_other_weights(bench: Bench) -> list[str]:
    data = bench.graph / "model.onnx.data"
    weights = np.fromfile(data, dtype=np.float32)
    np.random.default_rng(0).permutation(weights).tofile(data)
    return bench.bake(bench.graph)


def architecture_without_feed_forward_layers(bench: Bench) -> list[str]:
    from transformers import AutoModelForCausalLM, MambaConfig

    for weights in bench.checkpoint.glob("*.safetensors"):
        weights.unlink()
    config = MambaConfig(vocab_size=264, hidden_size=16, state_size=4, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(bench.checkpoint)
    return bench.build(bench.recipe())


def graph_without_layers(bench: Bench) -> list[str]:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "t"])
    logits = helper.make_tensor_value_info("logits", TensorProto.INT64, ["b", "t"])
    graph = helper.make_graph(
        [helper.make_node("Add", ["input_ids", "attention_mask"], ["logits"])], "g", [ids, mask], [logits]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, bench.graph / "model.onnx")
    return bench.bake(bench.graph)


def _weights_of(value: float) -> Callable[[Bench], list[str]]:
    def case(bench: Bench) -> list[str]:
        path = bench.checkpoint / "model.safetensors"
        weights = load_file(path)
        weights["model.layers.1.mlp.gate_proj.weight"][3, 4] = value
        save_file(weights, path, metadata={"format": "pt"})
        return bench.build(bench.recipe())

    return case


def plan_with_a_nan(bench: Bench) -> list[str]:
    content = bytearray(plan_bytes(bench.plan))
    adjustment = bench.plan.interventions[0].adjustment
    assert adjustment is not None
    mean = adjustment.layers[0].forget_mean
    start = content.index(mean.tobytes())
    content[start : start + 8] = np.array([np.nan]).tobytes()
    path = bench.directory / "plan.safetensors"
    path.write_bytes(content)
    return bench.bake(bench.graph, path)


def ratio_out_of_range(bench: Bench) -> list[str]:
    return bench.build(bench.recipe({"neuron_adjust": {"forget": "sums", "ratio": 1.5}}))


def alpha_out_of_range(bench: Bench) -> list[str]:
    return bench.build(bench.recipe(_detection(alpha=0)))


def too_few_calibration_queries(bench: Bench) -> list[str]:
    return bench.build(bench.recipe(_detection(epsilon=0.01)))


def refusal_that_cannot_be_written(bench: Bench) -> list[str]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {"<unk>": 0, "</s>": 1} | {character: 2 + index for index, character in enumerate("0123456789+=Who?n")}
    words = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(
        bench.checkpoint
    )
    return bench.build(bench.recipe(_detection()))


def truncated_checkpoint(bench: Bench) -> list[str]:
    _truncate(bench.checkpoint / "model.safetensors")
    return bench.build(bench.recipe())


def pickled_checkpoint(bench: Bench) -> list[str]:
    (bench.checkpoint / "model.safetensors").rename(bench.checkpoint / "pytorch_model.bin")
    return bench.build(bench.recipe())


def truncated_plan(bench: Bench) -> list[str]:
    plan = bench.saved_plan()
    _truncate(plan)
    return bench.bake(bench.graph, plan)


def pickle_for_a_plan(bench: Bench) -> list[str]:
    plan = bench.directory / "plan.safetensors"
    plan.write_bytes(pickle.dumps({"interventions": [1, 2, 3]}))
    return bench.bake(bench.graph, plan)


def weights_for_a_plan(bench: Bench) -> list[str]:
    return bench.bake(bench.graph, bench.checkpoint / "model.safetensors")


def truncated_graph(bench: Bench) -> list[str]:
    _truncate(bench.graph / "model.onnx")
    return bench.bake(bench.graph)


def garbled_graph(bench: Bench) -> list[str]:
    (bench.graph / "model.onnx").write_bytes(b"\x08\x0a<html>not found</html>")
    return bench.bake(bench.graph)


def empty_graph(bench: Bench) -> list[str]:
    (bench.graph / "model.onnx").write_bytes(b"")
    return bench.bake(bench.graph)


def truncated_data(bench: Bench) -> list[str]:
    _truncate(bench.graph / "model.onnx.data")
    return bench.bake(bench.graph)


def missing_graph_data(bench: Bench) -> list[str]:
    (bench.graph / "model.onnx.data").unlink()
    return bench.bake(bench.graph)


def data_outside_the_directory(bench: Bench) -> list[str]:
    model = onnx.load(bench.graph / "model.onnx", load_external_data=False)
    (bench.graph / "model.onnx.data").rename(bench.directory / "secret")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    onnx.save(model, bench.graph / "model.onnx")
    return bench.bake(bench.graph)


def graph_without_a_cache(bench: Bench) -> list[str]:
    from optimum.exporters.onnx import main_export

    shutil.rmtree(bench.graph)
    main_export(str(bench.checkpoint), output=bench.graph, task="text-generation", do_validation=False)
    return bench.bake(bench.graph)


def output_that_exists(bench: Bench) -> list[str]:
    bench.output.mkdir(parents=True)
    return bench.bake(bench.graph)


def no_such_model(bench: Bench) -> list[str]:
    return bench.bake(bench.directory / "nowhere")


def directory_without_a_model(bench: Bench) -> list[str]:
    return bench.bake(bench.directory)


_DOWN = "model.layers.1.mlp.down_proj.weight"


def _weight_edits(spoil: Callable[[Bench, dict[str, Any]], None], **changes: Any) -> Callable[[Bench], list[str]]:
    """A plan that edits weights, for the very checkpoint that was spoiled: its digest tells nothing."""

    def case(bench: Bench) -> list[str]:
        path = bench.checkpoint / "model.safetensors"
        weights = load_file(path)
        update = low_rank_update(load_model(bench.checkpoint), **{"layers": [0, 1], **changes})
        spoil(bench, weights)
        if path.is_file():
            save_file(weights, path, metadata={"format": "pt"})
        model = replace(bench.plan.model, digest=weights_digest(bench.checkpoint))
        canary = Canary(bench.plan.canary.input_ids, (bench.plan.canary.expected[0],))
        plan = bench.saved_plan(replace(bench.plan, model=model, interventions=(update,), canary=canary))
        return [*bench.bake(bench.checkpoint, plan), "--to", "safetensors"]

    return case


def _sound(bench: Bench, weights: dict[str, Any]) -> None:
    """Nothing is wrong with the checkpoint."""


def _without_a_tensor(bench: Bench, weights: dict[str, Any]) -> None:
    del weights[_DOWN]


def _of_another_shape(bench: Bench, weights: dict[str, Any]) -> None:
    weights[_DOWN] = np.ones((32, 95), np.float32)


def _of_bytes(bench: Bench, weights: dict[str, Any]) -> None:
    weights[_DOWN] = np.ones((32, 96), np.int8)


def _of_doubles(bench: Bench, weights: dict[str, Any]) -> None:
    weights[_DOWN] = np.ones((32, 96), np.float64)


def _packed(bench: Bench, weights: dict[str, Any]) -> None:
    del weights[_DOWN]
    weights["model.layers.1.mlp.down_proj.qweight"] = np.ones((12, 32), np.int32)


def _quantised(bench: Bench, weights: dict[str, Any]) -> None:
    path = bench.checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"bits": 4}}))


def _not_a_number(bench: Bench, weights: dict[str, Any]) -> None:
    weights[_DOWN][3, 4] = np.nan


def _in_shards(index: Any) -> Callable[[Bench, dict[str, Any]], None]:
    def spoil(bench: Bench, weights: dict[str, Any]) -> None:
        (bench.checkpoint / "model.safetensors").rename(bench.checkpoint / "model-00001-of-00002.safetensors")
        if index is not None:
            (bench.checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def _in_two_shards(bench: Bench, weights: dict[str, Any]) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        save_file(weights, bench.checkpoint / name, metadata={"format": "pt"})
    (bench.checkpoint / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, names[0]) | {_DOWN: names[1]}}
    (bench.checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def neurons_for_a_checkpoint(bench: Bench) -> list[str]:
    return [*bench.bake(bench.checkpoint), "--to", "safetensors"]


def graph_for_a_checkpoint(bench: Bench) -> list[str]:
    case = _weight_edits(_sound)(bench)
    return [str(bench.graph) if argument == str(bench.checkpoint) else argument for argument in case]


def weights_shared_in_a_graph(bench: Bench) -> list[str]:
    arguments = _weight_edits(_sound)(bench)[:-2]
    model = onnx.load(bench.graph / "model.onnx", load_external_data=False)
    shared = [node for node in model.graph.node if node.name.endswith("mlp/down_proj/MatMul")]
    shared[2].input[1] = shared[1].input[1]
    onnx.save(model, bench.graph / "model.onnx")
    return [str(bench.graph) if argument == str(bench.checkpoint) else argument for argument in arguments]


CASES: dict[str, tuple[Callable[[Bench], list[str]], str]] = {
    "unknown recipe key": (
        unknown_recipe_key,
        r"recipe\.yaml.*line \d+: unknown key 'modle' \(did you mean 'model'\?\)",
    ),
    "missing data": (missing_data, r"line 2: there is no file data/gone\.jsonl"),
    "data that are no JSON": (_malformed_data("{nonsense"), r"names\.probe\.jsonl.*31"),
    "data that are no rows": (_malformed_data('["prompt"]'), r"names\.probe\.jsonl.*31"),
    "data of another form": (_malformed_data('{"title": "?"}'), r"names\.probe\.jsonl.*31"),
    "a checkpoint of other weights": (checkpoint_of_other_weights, r"sha256"),
    "a graph of another shape": (graph_of_other_shape, r"hidden size 64"),
    "a graph of other weights": (graph_of_other_weights, r"canary"),
    "an architecture without feed-forward layers": (
        architecture_without_feed_forward_layers,
        r"No feed-forward layer .* 'mamba'",
    ),
    "a graph without layers": (graph_without_layers, r"[Nn]o feed-forward layer"),
    "NaN in the weights": (_weights_of(float("nan")), r"NaN|finite"),
    "infinity in the weights": (_weights_of(float("inf")), r"NaN|finite"),
    "NaN in the plan": (plan_with_a_nan, r"NaN"),
    "a ratio out of range": (ratio_out_of_range, r"line 3: .*ratio"),
    "an alpha out of range": (alpha_out_of_range, r"line 3: .*alpha"),
    "too few calibration queries": (too_few_calibration_queries, r"20 .*\b99\b"),
    "a refusal that cannot be written": (refusal_that_cannot_be_written, r"cannot write the refusal"),
    "a truncated checkpoint": (truncated_checkpoint, r"not a whole safetensors"),
    "a pickled checkpoint": (pickled_checkpoint, r"pickled"),
    "a truncated plan": (truncated_plan, r"not a whole safetensors"),
    "a pickle for a plan": (pickle_for_a_plan, r"not a plan"),
    "weights for a plan": (weights_for_a_plan, r"not a plan"),
    "a truncated graph": (truncated_graph, r"not a whole ONNX"),
    "a garbled graph": (garbled_graph, r"not a whole ONNX"),
    "an empty graph": (empty_graph, r"not a whole ONNX"),
    "truncated data of a graph": (truncated_data, r"truncated"),
    "missing data of a graph": (missing_graph_data, r"missing"),
    "data outside the directory": (data_outside_the_directory, r"outside"),
    "a graph without a cache": (graph_without_a_cache, r"cache"),
    "an output that exists": (output_that_exists, r"exists already"),
    "no such model": (no_such_model, r"nowhere"),
    "a plan for weights that lack one": (
        _weight_edits(_without_a_tensor),
        r"no tensor model\.layers\.1\.mlp\.down_proj",
    ),
    "a plan for weights of another shape": (_weight_edits(_of_another_shape), r"shape \(32, 95\)"),
    "a plan for weights of eight bits": (_weight_edits(_of_bytes), r"down_proj\.weight \(I8\) is quantised"),
    "a plan for weights of doubles": (_weight_edits(_of_doubles), r"stored as F64"),
    "a plan for packed weights": (_weight_edits(_packed), r"down_proj is quantised"),
    "a plan for a quantised checkpoint": (_weight_edits(_quantised), r"quantised"),
    "a plan for weights that are no number": (_weight_edits(_not_a_number), r"NaN"),
    "a change that rounds away": (_weight_edits(_sound, scale=1e-9), r"rounds away in float32"),
    "shards without an index": (_weight_edits(_in_shards(None)), r"no telling which weights"),
    "shards with an index of nothing": (_weight_edits(_in_shards([1])), r"not an index"),
    "shards with an index of a missing one": (
        _weight_edits(_in_shards({"weight_map": {"a": "model-00002-of-00002.safetensors"}})),
        r"00002-of-00002\.safetensors, which is missing",
    ),
    "a tensor in two shards": (_weight_edits(_in_two_shards), r"in two files"),
    "an index that leaves the directory": (
        _weight_edits(_in_shards({"weight_map": {"a": "../plan.safetensors"}})),
        r"model\.safetensors\.index\.json is not an index of shards",
    ),
    "a plan for graphs and a checkpoint": (neurons_for_a_checkpoint, r"no weight can express"),
    "a graph and a checkpoint to be made": (graph_for_a_checkpoint, r"is an ONNX graph"),
    "weights that a graph shares": (weights_shared_in_a_graph, r"read by other nodes"),
    "a directory without a model": (directory_without_a_model, r"config\.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(
    bench: Bench, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, cause = CASES[case]
    arguments = spoil(bench)
    capfd.readouterr()
    before = _tree(bench.directory)
    _require_one_line(arguments, capfd, cause)
    assert _tree(bench.directory) == before


def test_a_full_disk(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files is the nearest to a full disk that a test can have."""
    arguments = bench.bake(bench.graph)
    before = _tree(bench.directory)
    with _largest_file(100_000):
        _require_one_line(arguments, capfd, r"File too large")
    assert _tree(bench.directory) == before


def test_an_error_is_one_object_for_machines(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*bench.bake(bench.directory / "nowhere"), "--json"])
    said = capfd.readouterr()
    assert ended.value.code == 1
    assert said.out == ""
    error = json.loads(said.err.splitlines()[-1])
    assert error.keys() == {"error", "remedy"}
    assert "nowhere" in error["error"]


def _require_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str], cause: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capfd.readouterr()
    assert ended.value.code == 1
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said.err
    # Before it there is at most what the command was doing, line by line.
    assert said.err.splitlines()[-1] == errors[0]
    assert "Traceback" not in said.err
    assert "Warning" not in said.err
    assert re.search(cause, errors[0]), errors[0]


def _tree(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
