"""Directories as people and model hubs have them: where the graph, its data, configuration and tokenizer lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bakeout.export.artifacts.model_source import find_checkpoint, find_graph, model_source
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.cli.main import main
from bakeout.export.evaluation.opening import as_onnx
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.padding import left_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.baked_parity import key_space_detection, plan_of
from tests.directory_tree import tree
from tests.recipe_files import write_recipe
from tests.tiny_models import random_prompts

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def repository(llama_onnx: Path, llama_export: Path, tmp_path: Path) -> Path:
    """A public repository: configuration and tokenizer at the root, graphs in ``onnx``, two of them with data files."""
    root = tmp_path / "repository"
    (root / "onnx").mkdir(parents=True)
    for path in llama_onnx.iterdir():
        if path.suffix != ".onnx":
            shutil.copy(path, root)
    shutil.copy(llama_export / "model.onnx", root / "onnx" / "model.onnx")
    shutil.copy(llama_export / "model.onnx.data", root / "onnx")
    for name in ("model_q4.onnx", "model_quantized.onnx"):
        shutil.copy(llama_onnx / "model.onnx", root / "onnx" / name)
    return root


def hub_cache(directory: Path, model: Path, name: str = "company/model") -> str:
    """``model`` as the hub's cache holds it: every file a link to a blob. Returns the hub id."""
    home = directory / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = home / "blobs" / f"{number:064x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return name


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("within", "variant", "graph"),
    [
        ("", None, "model.onnx"),
        ("onnx", None, "model.onnx"),
        ("", "fp32", "model.onnx"),
        ("", "q4", "model_q4.onnx"),
        ("", "q8", "model_quantized.onnx"),
        ("onnx/model_q4.onnx", None, "model_q4.onnx"),
    ],
)
def test_public_repositories_are_baked_by_directory_file_or_variant(
    repository: Path, tiny_plan: Plan, tmp_path: Path, within: str, variant: str | None, graph: str
) -> None:
    options = BakeOptions(variant=variant)
    assert model_source(repository / within, variant) == repository / "onnx" / graph
    assert dry_run(repository / within, tiny_plan, options).receipts
    artifact = bake(repository / within, tiny_plan, tmp_path / "baked", options).directory
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in artifact.iterdir()}
    runner = Runner(artifact)
    assert runner.tokenizer.encode("a")
    assert runner.generate([PROMPT], 4)


def test_a_variant_that_is_not_there_names_those_that_are(repository: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=r"no model_fp16\.onnx \(found: model\.onnx, model_q4\.onnx, model_quant"):
        bake(repository, tiny_plan, tmp_path / "baked", BakeOptions(variant="fp16"))


def test_the_variant_is_an_option_of_the_command(repository: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    save_plan(tiny_plan, tmp_path / "plan.safetensors")
    arguments = ["bake", str(repository), str(tmp_path / "plan.safetensors"), "--variant", "q4"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "-o", str(tmp_path / "baked")])
    assert ended.value.code == 0
    assert json.loads((tmp_path / "baked" / "bakeout.json").read_text())["options"]["variant"] == "q4"


def test_graphs_of_a_public_repository_run_where_they_lie(repository: Path, llama_onnx: Path) -> None:
    expected = Runner(llama_onnx).generate([PROMPT], 4)
    for model in (repository, repository / "onnx", repository / "onnx" / "model_q4.onnx"):
        runner = Runner(model)
        assert runner.generate([PROMPT], 4) == expected
        assert runner.tokenizer.encode("a")


def test_the_working_directory_may_be_the_folder_of_graphs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "onnx")
    assert Runner("model.onnx").tokenizer.encode("a")


def test_repositories_in_the_hubs_cache_are_links(
    repository: Path, cached: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    name = hub_cache(cached, repository)
    for number, variant in enumerate((None, "q4")):
        artifact = bake(name, tiny_plan, tmp_path / f"baked{number}", BakeOptions(variant=variant)).directory
        assert not any(path.is_symlink() for path in artifact.iterdir())
        assert Runner(artifact).generate([PROMPT], 4)


def test_of_several_graphs_the_one_that_genai_is_told_of(llama_onnx: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama_onnx, model)
    (model / "model.onnx").rename(model / "text.onnx")
    shutil.copy(model / "text.onnx", model / "draft.onnx")
    with pytest.raises(BakeoutError, match=r"found: draft\.onnx, text\.onnx"):
        find_graph(model)
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "text.onnx"}}}))
    assert find_graph(model) == model_source(model) == model / "text.onnx"
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "other.onnx"}}}))
    with pytest.raises(BakeoutError, match=r"names other\.onnx, which is not there"):
        find_graph(model)
    # It lies in the directory, whatever lies elsewhere.
    shutil.copy(model / "text.onnx", tmp_path / "outside.onnx")
    for name in ("../outside.onnx", str(tmp_path / "outside.onnx"), "x" * 300, "a\0b", "."):
        (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": name}}}))
        with pytest.raises(BakeoutError, match="which is not there"):
            find_graph(model)


@pytest.mark.parametrize("place", [".", "onnx"])
def test_an_export_within_a_checkpoint_is_left_aside_and_told(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Even one that is not the checkpoint's any longer: what is fitted on is what is baked into."""
    model = tmp_path / "both"
    shutil.copytree(llama_checkpoint, model)
    (model / place).mkdir(exist_ok=True)
    (model / place / "model.onnx").write_bytes(b"stale")
    caplog.set_level("INFO")
    assert find_checkpoint(model) == model_source(model) == Checkpoint(model)
    assert "is taken as a checkpoint" in caplog.text
    assert find_graph(model) == model_source(model, "fp32") == model / place / "model.onnx"
    plan = fit(load_recipe(write_recipe(tmp_path, model)))
    assert dry_run(model, plan, BakeOptions()).exports
    assert Runner(bake(model, plan, tmp_path / "baked").directory).generate([PROMPT], 4)


def test_the_graph_within_a_checkpoint_is_baked_into_by_name_and_variant(
    llama_checkpoint: Path, llama_onnx: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    model = tmp_path / "both"
    shutil.copytree(llama_checkpoint, model)
    (model / "onnx").mkdir()
    shutil.copy(llama_onnx / "model.onnx", model / "onnx" / "model_q4.onnx")
    for number, (source, variant) in enumerate([(model, "q4"), (model / "onnx" / "model_q4.onnx", None)]):
        bake(source, tiny_plan, tmp_path / f"baked{number}", BakeOptions(variant=variant))
        manifest = json.loads((tmp_path / f"baked{number}" / "bakeout.json").read_text())
        assert "optimum" not in manifest["versions"]["baked_with"]


def adapter(directory: Path, base: str = "company/base") -> None:
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (directory / "adapter_model.safetensors").write_bytes(b"")


def everything(model: str | Path, plan: Plan, directory: Path) -> list[Callable[[], Any]]:
    """Every way in which a model is taken."""
    return [
        lambda: fit(load_recipe(write_recipe(directory, Path(model)))),
        lambda: find_checkpoint(model),
        lambda: as_onnx(Path(model), directory, "auto"),
        lambda: dry_run(model, plan, BakeOptions()),
        lambda: bake(model, plan, directory / "baked"),
    ]


@pytest.mark.parametrize("export", [False, True])
def test_an_adapter_beside_a_checkpoint_is_refused_by_every_command(
    llama_checkpoint: Path, llama_onnx: Path, tiny_plan: Plan, tmp_path: Path, export: bool
) -> None:
    model = tmp_path / "adapted"
    shutil.copytree(llama_checkpoint, model)
    adapter(model)
    if export:
        shutil.copy(llama_onnx / "model.onnx", model)
    for use in everything(model, tiny_plan, tmp_path):
        with pytest.raises(BakeoutError, match=r"with an adapter beside it, of company/base") as raised:
            use()
        assert "merge" in raised.value.remedy


@pytest.mark.parametrize("configured", [False, True])
def test_an_adapter_alone_is_named_with_its_base(
    llama_checkpoint: Path, tiny_plan: Plan, tmp_path: Path, configured: bool
) -> None:
    model = tmp_path / "adapter"
    model.mkdir()
    adapter(model)
    if configured:
        shutil.copy(llama_checkpoint / "config.json", model)
    uses: list[Callable[[], Any]] = [*everything(model, tiny_plan, tmp_path), lambda: Runner(model)]
    for use in uses:
        with pytest.raises(BakeoutError, match="is an adapter alone, of company/base"):
            use()


def test_an_adapter_on_the_hub_is_named_with_its_base(cached: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    adapter(tmp_path / "adapter", "company/out-of-reach")
    name = hub_cache(cached, tmp_path / "adapter")
    before = tree(tmp_path / "hub")
    with pytest.raises(BakeoutError, match=r"company/model is an adapter alone, of company/out-of-reach"):
        bake(name, tiny_plan, tmp_path / "baked")
    assert tree(tmp_path / "hub") == before


def with_inputs(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the export in ``source`` whose graph is changed."""
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx")
    change(model.graph)
    onnx.save(model, target / "model.onnx")
    return target


def keep_last_logits(name: str, shape: Sequence[int]) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        head = next(node for node in graph.node if "logits" in node.output)
        head.output[list(head.output).index("logits")] = "logits.all"
        for constant, value in (("k.one", [-1]), ("k.minus", [-1]), ("k.end", [2**62]), ("k.axis", [1])):
            graph.initializer.append(helper.make_tensor(constant, TensorProto.INT64, [1], value))
        graph.node.extend(
            [
                helper.make_node("Reshape", [name, "k.one"], ["k.flat"]),
                helper.make_node("Mul", ["k.flat", "k.minus"], ["k.start"]),
                helper.make_node("Slice", ["logits.all", "k.start", "k.end", "k.axis"], ["logits"]),
            ]
        )

    return change


def more_benign_inputs(graph: Any) -> None:
    graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["batch_size", "new"]))
    graph.input.append(helper.make_tensor_value_info("cache_position", TensorProto.INT64, ["new"]))


@pytest.mark.parametrize("positions", ["query", "every"])
@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize(("name", "shape"), [("num_logits_to_keep", []), ("logits_to_keep", [1])])
def test_a_graph_that_gives_the_last_logits_alone_refuses_as_any(
    llama_checkpoint: Path,
    llama_onnx: Path,
    tmp_path: Path,
    positions: Any,
    early_exit: bool,
    name: str,
    shape: list[int],
) -> None:
    model = load_model(llama_checkpoint)
    prompts = random_prompts(12, seed=3, shortest=6, longest=9)
    plan = plan_of(model, [key_space_detection(model, (1,), positions, prompts)], prompts)
    options = BakeOptions(early_exit=early_exit)
    plain = Runner(bake(llama_onnx, plan, tmp_path / "plain", options).directory)
    source = with_inputs(llama_onnx, tmp_path / "model", keep_last_logits(name, shape))
    artifact = Runner(bake(source, plan, tmp_path / "baked", options).directory)
    assert artifact.generate(prompts, 6) == plain.generate(prompts, 6) != Runner(source).generate(prompts, 6)
    for rows in (prompts, prompts[:1]):
        ids, mask = left_padded(rows, 0)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
        feeds |= {
            entry.name: np.zeros((len(rows), entry.shape[1], 0, entry.shape[3]), np.float32)
            for entry in artifact.session.get_inputs()
            if entry.name.startswith("past")
        }
        every = plain.step(ids, mask).logits
        for kept in (1, 2):
            (logits,) = artifact.session.run(["logits"], {**feeds, name: np.full(shape, kept)})
            np.testing.assert_allclose(logits, every[:, -kept:], rtol=1e-4, atol=1e-4)


def test_inputs_that_say_nothing_new_are_fed(llama_onnx: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    source = with_inputs(llama_onnx, tmp_path / "model", more_benign_inputs)
    assert Runner(source).generate([PROMPT], 4) == Runner(llama_onnx).generate([PROMPT], 4)
    artifact = bake(source, tiny_plan, tmp_path / "baked").directory
    expected = bake(llama_onnx, tiny_plan, tmp_path / "expected").directory
    assert Runner(artifact).generate([PROMPT], 4) == Runner(expected).generate([PROMPT], 4)


@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("use_cache_branch", TensorProto.BOOL, "is a merged decoder"),
        ("pixel_values", TensorProto.FLOAT, "takes pixel_values: not what a decoder of text takes"),
        ("flag", TensorProto.BOOL, "takes flag: not what a decoder of text takes"),
    ],
)
def test_other_inputs_are_named(llama_onnx: Path, tmp_path: Path, name: str, kind: int, cause: str) -> None:
    def change(graph: Any) -> None:
        graph.input.append(helper.make_tensor_value_info(name, kind, [1]))

    with pytest.raises(BakeoutError, match=cause):
        Runner(with_inputs(llama_onnx, tmp_path / "model", change))


def test_a_merged_decoder_is_refused_by_name_and_what_to_use_is_told(
    llama_onnx: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    """As optimum merged them: everything in an ``If``, and an input that chooses."""

    def merge(graph: Any) -> None:
        branch = helper.make_graph(list(graph.node), "with_past", [], list(graph.output))
        other = onnx.GraphProto()
        other.CopyFrom(branch)
        node = helper.make_node("If", ["use_cache_branch"], [value.name for value in graph.output])
        node.attribute.append(helper.make_attribute("then_branch", branch))
        node.attribute.append(helper.make_attribute("else_branch", other))
        del graph.node[:]
        graph.node.append(node)
        graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))

    model = with_inputs(llama_onnx, tmp_path / "model", merge)
    (model / "model.onnx").rename(model / "decoder_model_merged.onnx")
    for use in (lambda: bake(model, tiny_plan, tmp_path / "baked"), lambda: Runner(model)):
        with pytest.raises(BakeoutError, match="merged decoder") as raised:
            use()
        assert "decoder_with_past_model.onnx" in raised.value.remedy
    assert not (tmp_path / "baked").exists()
    shutil.copy(llama_onnx / "model.onnx", model / "decoder_with_past_model.onnx")
    assert find_graph(model).name == "decoder_with_past_model.onnx"
