"""A model in two graphs, one for prompts: both are baked from one plan, and one carries on the other's refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from bakeout.export.artifacts.manifest import read_manifest, receipts_of
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.certificate.models import Models
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.graph.graph_file import data_files, load_graph, name_data_files, save_graph
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.padding import left_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan

from tests.graph_pairs import split
from tests.tiny_models import random_prompts
from tests.weight_plans import low_rank_update, plan_of

ROWS = random_prompts(12, seed=5)
GRAPHS = ("prefill.onnx", "decode.onnx")


@pytest.fixture(scope="module")
def pair(llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(llama_export, tmp_path_factory.mktemp("pair") / "source")


def _passed(directory: Path, base: Path) -> list[str]:
    return [check.name for check in verify(directory, base=base, prompts=ROWS) if check.ok]


@pytest.mark.parametrize("one_token", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_graphs_are_baked_and_answer_as_the_reference(
    llama_checkpoint: Path, llama_export: Path, tiny_plan: Plan, tmp_path: Path, one_token: bool
) -> None:
    source = split(llama_export, tmp_path / "source", one_token=one_token)
    baked = bake(source, tiny_plan, tmp_path / "baked")
    assert _passed(baked.directory, llama_checkpoint) == ["files", "graph", "canary", "parity"]
    whole = bake(llama_export, tiny_plan, tmp_path / "whole")
    assert Runner(baked.directory).generate(ROWS, 12) == Runner(whole.directory).generate(ROWS, 12)
    by_graph = {name: [entry for entry in baked.receipts if entry.detail["graph"] == name] for name in GRAPHS}
    assert len(by_graph["prefill.onnx"]) == len(by_graph["decode.onnx"]) == len(whole.receipts)
    assert tuple(receipts_of(read_manifest(baked.directory))) == baked.receipts


def test_a_refusal_is_carried_on_in_any_loop(llama_export: Path, pair: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    """ONNX Runtime alone: the prompt, two tokens of the answer, then three of another turn at once."""
    baked = bake(pair, tiny_plan, tmp_path / "baked").directory
    whole = Runner(bake(llama_export, tiny_plan, tmp_path / "whole").directory)
    prompts = tiny_plan.canary.input_ids
    first, second = (onnxruntime.InferenceSession(baked / name) for name in GRAPHS)
    runs = [prompts, *(np.full((len(prompts), 1), token) for token in (40, 41)), np.tile([7, 8, 9], (len(prompts), 1))]
    cache: dict[str, NDArray[Any]] = {}
    seen, before, refused = 0, None, []
    for ids in runs:
        positions = np.tile(np.arange(seen, seen + ids.shape[1]), (len(ids), 1))
        seen += ids.shape[1]
        session = second if cache else first
        values = session.run(None, {"input_ids": ids, "position_ids": positions, **cache})
        left = dict(zip((output.name for output in session.get_outputs()), values, strict=True))
        cache = {f"input.{name.removeprefix('output.')}": value for name, value in left.items() if "cache" in name}
        step = whole.step(ids, np.ones((len(ids), seen), np.int64), before)
        before = step.cache
        assert np.allclose(left["logits"], step.logits, rtol=0, atol=1e-3)
        refused.append([bool(is_refused(logits)) for logits in left["logits"][:, -1]])
    # A refused conversation stays refused.
    assert 0 < sum(refused[0]) < len(prompts)
    assert all(at_end for at_once, at_end in zip(refused[0], refused[-1], strict=True) if at_once)


@pytest.mark.slow
def test_data_that_is_equal_is_shared(llama_checkpoint: Path, pair: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    baked = bake(pair, plan, tmp_path / "baked").directory
    assert [sorted(data_files(load_graph(baked / name))) for name in GRAPHS] == [["decode.onnx.data"]] * 2
    assert not (baked / "prefill.onnx.data").exists()
    assert _passed(baked, llama_checkpoint) == ["files", "graph", "canary", "parity"]


@pytest.mark.slow
def test_data_that_differs_or_is_shared_already(llama_checkpoint: Path, pair: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    differing = tmp_path / "differing"
    shutil.copytree(pair, differing)
    with (differing / "prefill.onnx.data").open("ab") as file:
        file.write(b"more")
    shared = tmp_path / "shared"
    shared.mkdir()
    for path in pair.iterdir():
        if not path.name.startswith(GRAPHS):
            shutil.copy(path, shared)
    for name in GRAPHS:
        graph = load_graph(pair / name)
        name_data_files(graph, {f"{name}.data": "weights.bin"})
        save_graph(graph, shared / name)
    shutil.copy(pair / "decode.onnx.data", shared / "weights.bin")
    for source, names in ((differing, {"prefill.onnx.data", "decode.onnx.data"}), (shared, {"weights.bin"})):
        baked = bake(source, plan, tmp_path / f"baked-{source.name}").directory
        assert {name for graph in GRAPHS for name in data_files(load_graph(baked / graph))} == names
        assert _passed(baked, llama_checkpoint) == ["files", "graph", "canary", "parity"]


def test_padding_is_refused_where_no_mask_tells_of_it(pair: Path) -> None:
    runner = Runner(pair)
    assert [len(answer) for answer in runner.generate(ROWS, 3)] == [3] * len(ROWS)
    ids, mask = left_padded([[5, 6, 7], [5, 6]])
    with pytest.raises(BakeoutError, match="takes no attention mask"):
        runner.step(ids, mask)


@pytest.mark.parametrize("runtime", ["genai", "optimum", "transformers.js"])
def test_runtimes_of_one_graph_are_refused(pair: Path, tiny_plan: Plan, tmp_path: Path, runtime: RuntimeName) -> None:
    options = BakeOptions(runtimes=(runtime,))
    for attempt in (
        lambda: bake(pair, tiny_plan, tmp_path / "baked", options),
        lambda: dry_run(pair, tiny_plan, options),
    ):
        with pytest.raises(BakeoutError, match=f"{runtime} runs one graph"):
            attempt()
    assert not (tmp_path / "baked").exists()


@pytest.mark.slow
def test_the_dry_run_tells_the_receipts_of_both(pair: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    outlook = dry_run(pair, tiny_plan, BakeOptions())
    assert outlook.receipts == bake(pair, tiny_plan, tmp_path / "baked", BakeOptions()).receipts


def test_a_pair_has_no_quantised_base_for_a_certificate(pair: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    artifact = bake(pair, tiny_plan, tmp_path / "baked").directory
    with (
        Models(artifact, pair) as models,
        pytest.raises(BakeoutError, match="two graphs, which are not quantised") as raised,
    ):
        models.runner("base", "int8")
    assert "its checkpoint" in raised.value.remedy


def test_a_half_is_no_artifact(pair: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="reads prompts alone"):
        bake(pair / "prefill.onnx", tiny_plan, tmp_path / "half")
    baked = bake(pair, tiny_plan, tmp_path / "baked").directory
    manifest = json.loads((baked / "bakeout.json").read_text())
    manifest["receipts"] = [entry for entry in manifest["receipts"] if entry["detail"]["graph"] == "decode.onnx"]
    (baked / "bakeout.json").write_text(json.dumps(manifest))
    assert {check.name: check.ok for check in verify(baked)}["plan"] is False


def test_padding_is_for_pairs_of_which_both_graphs_take_it(llama_export: Path, pair: Path, tmp_path: Path) -> None:
    """The second graph has a mask and positions, the first has none: texts of one length run together."""
    shutil.copytree(pair, tmp_path / "mixed")
    graph = load_graph(llama_export / "model.onnx")
    (tmp_path / "mixed" / "decode.onnx").unlink()
    save_graph(graph, tmp_path / "mixed" / "decode.onnx")
    shutil.copy(llama_export / "model.onnx.data", tmp_path / "mixed")
    assert Runner(tmp_path / "mixed").generate(ROWS, 6) == Runner(llama_export).generate(ROWS, 6)


def test_a_whole_graph_may_be_called_as_the_first_of_a_pair(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    shutil.copytree(llama_export, tmp_path / "source")
    (tmp_path / "source" / "model.onnx").rename(tmp_path / "source" / "prefill.onnx")
    baked = bake(tmp_path / "source", tiny_plan, tmp_path / "baked").directory
    whole = bake(llama_export, tiny_plan, tmp_path / "whole").directory
    assert Runner(baked).generate(ROWS, 6) == Runner(whole).generate(ROWS, 6)
