"""What other tools wrote, imported and baked, against what their own runtimes compute."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bakeout.export.adapters.peft_adapter import export_peft_adapter
from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.baking.bake import bake
from bakeout.export.importing.import_plan import import_plan
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.report.page import report
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan, save_plan
from bakeout.models.reference.hooks import Hooks

from tests.conftest import CheckpointOf
from tests.imported_sources import (
    IDS,
    PATTERNS,
    control_vector,
    edited_checkpoint,
    logits_of,
    peft_adapter,
    save,
)
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import PROMPTS, vary_vectors

CHECKPOINT = BakeOptions(to="safetensors")
FEED_FORWARD = ("down_proj.weight", "up_proj.weight")
FIRST_DOWN = {"llama": "model.layers.0.mlp.down_proj.weight", "gpt2": "transformer.h.0.mlp.c_proj.weight"}


def read_of(plan: Plan) -> Any:
    return plan.interventions[0].report.details["imported"]


def baked_logits(plan: Plan, checkpoint: Path, directory: Path) -> torch.Tensor:
    return logits_of(bake(str(checkpoint), plan, directory, CHECKPOINT).directory)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", PATTERNS),
        ("gpt2", {"target_modules": ["mlp.c_proj", "c_fc"], "fan_in_fan_out": True}),
        ("phi3", {"target_modules": ["gate_up_proj"]}),
        # Its head is its embedding.
        ("gemma", {"target_modules": ["up_proj"]}),
        # By default, peft trains attention.
        ("llama", {"target_modules": None}),
        ("gpt2", {"target_modules": None, "fan_in_fan_out": True}),
        ("phi3", {"target_modules": "all-linear"}),
        ("gpt_neox", {"target_modules": ["query_key_value", "attention.dense"]}),
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
    ],
    ids=["plain", "patterns", "transposed", "fused", "tied", "attention", "conv1d", "all", "interleaved", "mixture"],
)
def test_peft_computes_the_same(
    checkpoint_of: CheckpointOf, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    checkpoint = checkpoint_of(family)
    expected = peft_adapter(checkpoint, tmp_path / "adapter", **settings)
    plan = import_plan(tmp_path / "adapter", str(checkpoint))
    baked = baked_logits(plan, checkpoint, tmp_path / "baked")
    assert (baked - expected).abs().max() < 1e-3 and (baked - logits_of(checkpoint)).abs().max() > 0.1
    assert set(read_of(plan)["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert len(read_of(plan)["read"]) == len({row["module"] for row in read_of(plan)["read"]}) >= 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["down_proj", "embed_tokens"]}, "embed_tokens"),
        ({"alpha_pattern": {r"layers\.\d\.mlp\.down_proj": 64}}, "regular expression"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_plan_carries_is_refused_by_name(
    llama_checkpoint: Path, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    peft_adapter(llama_checkpoint, tmp_path / "adapter", **settings)
    with pytest.raises(BakeoutError, match=told):
        import_plan(tmp_path / "adapter", str(llama_checkpoint))


def test_an_untrained_adapter_would_do_nothing(llama_checkpoint: Path, tmp_path: Path) -> None:
    peft_adapter(llama_checkpoint, tmp_path / "adapter", init_lora_weights=True)
    with pytest.raises(BakeoutError, match="would do nothing"):
        import_plan(tmp_path / "adapter", str(llama_checkpoint))


def _configured(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_configured(peft_type="IA3"), "IA3"),
        (_configured(r=5), "rank 5"),
        (_configured(rank_pattern={"(a+)+b": 4}), "regular expression"),
        (_configured(target_modules=["up_proj", "down_proj", "gate_proj"]), "up_proj"),
        (_configured(something_new=3), "something_new"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "pickled"),
        (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 40), "whole safetensors"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("[" * 9999), "cannot be read"),
    ],
)
def test_broken_adapters_are_refused(
    llama_checkpoint: Path, tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    peft_adapter(llama_checkpoint, tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(BakeoutError, match=told):
        import_plan(tmp_path / "adapter", str(llama_checkpoint))


def test_a_pair_of_checkpoints(llama_checkpoint: Path, tmp_path: Path) -> None:
    expected = edited_checkpoint(llama_checkpoint, tmp_path / "edited", rank=3, names=FEED_FORWARD)
    assert len(list((tmp_path / "edited").glob("*.safetensors"))) > 1
    plan = import_plan(tmp_path / "edited", str(llama_checkpoint))
    rows = read_of(plan)["read"]
    assert len(rows) == 8 and all(row["rank"] == 3 and row["residual"] < 1e-2 for row in rows)
    assert (baked_logits(plan, llama_checkpoint, tmp_path / "baked") - expected).abs().max() < 1e-3
    with pytest.raises(BakeoutError, match="would do nothing"):
        import_plan(llama_checkpoint, str(llama_checkpoint))


def test_its_rank_is_by_energy_and_its_reverse_is_the_negative(llama_checkpoint: Path, tmp_path: Path) -> None:
    edited_checkpoint(llama_checkpoint, tmp_path / "edited", rank=None, names=FEED_FORWARD)
    half = import_plan(tmp_path / "edited", str(llama_checkpoint), energy=0.5)
    rows = read_of(half)["read"]
    assert all(1 < row["rank"] < 16 and 0.5 < row["residual"] <= 0.5**0.5 for row in rows)
    back = import_plan(tmp_path / "edited", str(llama_checkpoint), scale=-1)
    (change, *_), weight = back.interventions[0].weight_changes(), load_model(llama_checkpoint).state_dict()
    before = weight["model.layers.0.mlp.down_proj.weight"].double().numpy()
    after = load_model(tmp_path / "edited").state_dict()["model.layers.0.mlp.down_proj.weight"].double().numpy()
    asked = change.asked(before, slice(None), slice(None))
    assert np.linalg.norm(asked - (before - after)) < 0.02 * np.linalg.norm(asked)


def test_an_exact_pair_is_baked_bit_for_bit(llama_checkpoint: Path, tmp_path: Path) -> None:
    edited_checkpoint(llama_checkpoint, tmp_path / "edited", rank=None, names=FEED_FORWARD)
    plan = import_plan(tmp_path / "edited", str(llama_checkpoint), exact=True)
    baked = bake(str(llama_checkpoint), plan, tmp_path / "baked", CHECKPOINT).directory
    expected = load_model(tmp_path / "edited").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in load_model(baked).state_dict().items())


def test_a_pair_is_exact_where_its_difference_has_more_digits_than_float32(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(llama_checkpoint)
    with torch.no_grad():
        # From about 1e-6 to 1: the difference to the base weight has more digits than either.
        weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
        weight[0, :4] = torch.tensor([1.0000001, 0.3333333, 3.3333333, 1e-7])
        weight[1] *= 1e-5
    model.save_pretrained(tmp_path / "edited")
    plan = import_plan(tmp_path / "edited", str(llama_checkpoint), exact=True)
    baked = load_model(bake(str(llama_checkpoint), plan, tmp_path / "baked", CHECKPOINT).directory).state_dict()
    assert all(torch.equal(baked[name], value) for name, value in model.state_dict().items())


def test_a_pair_in_another_type(llama_checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_model(llama_checkpoint).half().save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_checkpoint / name, half)
    # Loaded and saved in float32.
    edited_checkpoint(half, tmp_path / "edited", rank=1, names=FEED_FORWARD)
    assert len(read_of(import_plan(tmp_path / "edited", str(half)))["read"]) == 8
    # It is the base model, rounded.
    with pytest.raises(BakeoutError, match="would do nothing"):
        import_plan(half, str(llama_checkpoint))


def test_what_differs_elsewhere_is_named(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    names = ("c_proj.weight", "wpe.weight")
    edited_checkpoint(checkpoint_of("gpt2"), tmp_path / "edited", rank=1, names=names)
    with pytest.raises(BakeoutError, match=r"wpe.weight differs"):
        import_plan(tmp_path / "edited", str(checkpoint_of("gpt2")))


@pytest.mark.parametrize(("family", "roles"), [("llama", {"embedding", "head"}), ("gemma", {"tied"})])
def test_embeddings_and_heads_of_a_pair(
    checkpoint_of: CheckpointOf, tmp_path: Path, family: str, roles: set[str]
) -> None:
    checkpoint = checkpoint_of(family)
    expected = edited_checkpoint(
        checkpoint, tmp_path / "edited", rank=2, names=("embed_tokens.weight", "lm_head.weight")
    )
    plan = import_plan(tmp_path / "edited", str(checkpoint))
    assert {row["role"] for row in read_of(plan)["read"]} == roles
    save_plan(plan, tmp_path / "plan.safetensors")
    plan = load_plan(tmp_path / "plan.safetensors")
    assert (baked_logits(plan, checkpoint, tmp_path / "baked") - expected).abs().max() < 1e-3
    exact = import_plan(tmp_path / "edited", str(checkpoint), exact=True)
    directory = bake(str(checkpoint), exact, tmp_path / "exact", CHECKPOINT).directory
    edited = load_model(tmp_path / "edited").state_dict()
    assert all(torch.equal(weight, edited[name]) for name, weight in load_model(directory).state_dict().items())
    assert all(check.ok for check in verify(directory, base=checkpoint, prompts=PROMPTS))
    assert "the embedding or head" in (directory / "README.md").read_text()
    with pytest.raises(BakeoutError, match="embeddings and heads"):
        export_peft_adapter(plan, tmp_path / "adapter")


def test_a_tied_head_may_be_stored_too(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Gemma's configuration leaves out that the head is tied: it always is."""
    checkpoint = checkpoint_of("gemma")
    assert "tie_word_embeddings" not in json.loads((checkpoint / "config.json").read_text())
    edited = shutil.copytree(checkpoint, tmp_path / "edited") / "model.safetensors"
    weights = load_file(edited)
    weights["model.layers.0.mlp.down_proj.weight"][0] += 1
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, edited, {"format": "pt"})
    assert {row["role"] for row in read_of(import_plan(tmp_path / "edited", str(checkpoint)))["read"]} == {"down"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("exact", [False, True])
def test_norms_and_biases_of_a_pair_are_carried_exactly(
    checkpoint_of: CheckpointOf, tmp_path: Path, family: str, exact: bool
) -> None:
    checkpoint = checkpoint_of(family)
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_parameter(FIRST_DOWN[family]).add_(0.01)
    expected = vary_vectors(model).state_dict()
    model.save_pretrained(tmp_path / "edited", max_shard_size="100KB")
    plan = import_plan(tmp_path / "edited", str(checkpoint), exact=exact)
    assert [entry.kind for entry in plan.interventions] == ["low_rank_update", "vector_update"]
    rows: Any = plan.interventions[1].report.details["imported"]
    vectors = {name: tensor for name, tensor in expected.items() if tensor.ndim == 1}
    assert {row["tensor"] for row in rows["read"]} == set(vectors) and rows["source"] == "checkpoint pair"
    save_plan(plan, tmp_path / "plan.safetensors")
    directory = bake(
        str(checkpoint), load_plan(tmp_path / "plan.safetensors"), tmp_path / "baked", CHECKPOINT
    ).directory
    baked = load_model(directory).state_dict()
    assert all(torch.equal(baked[name], tensor) for name, tensor in (expected if exact else vectors).items())
    assert all(check.ok for check in verify(directory, base=checkpoint, prompts=PROMPTS))
    told = "\n".join([*lines(inspect(directory)), report([directory]), (directory / "README.md").read_text()])
    assert (told.count(f"{len(vectors)} vectors in 4 layers") >= 3 and "input_layernorm" in told) or "ln_1" in told
    with pytest.raises(BakeoutError, match="does not carry Vector update"):
        export_peft_adapter(plan, tmp_path / "adapter")


def test_the_negative_of_a_pair_takes_norms_back_twice_as_far(llama_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    before = model.get_parameter("model.norm.weight").detach().clone()
    vary_vectors(model).save_pretrained(tmp_path / "edited")
    plan = import_plan(tmp_path / "edited", str(llama_checkpoint), scale=-1)
    baked = load_model(bake(str(llama_checkpoint), plan, tmp_path / "baked", CHECKPOINT).directory)
    torch.testing.assert_close(
        baked.get_parameter("model.norm.weight"), 2 * before - model.get_parameter("model.norm.weight")
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_a_pair_that_differs_in_attention(checkpoint_of: CheckpointOf, tmp_path: Path, family: str) -> None:
    checkpoint = checkpoint_of(family)
    names = ("q_proj.weight", "o_proj.weight", "c_attn.weight", "attn.c_proj.weight", "qkv_proj.weight")
    expected = edited_checkpoint(checkpoint, tmp_path / "edited", rank=2, names=names)
    plan = import_plan(tmp_path / "edited", str(checkpoint))
    assert {row["role"] for row in read_of(plan)["read"]} in ({"q", "o"}, {"qkv", "o"})
    assert (baked_logits(plan, checkpoint, tmp_path / "baked") - expected).abs().max() < 1e-3
    exact = import_plan(tmp_path / "edited", str(checkpoint), exact=True)
    baked = load_model(bake(str(checkpoint), exact, tmp_path / "exact", CHECKPOINT).directory).state_dict()
    assert all(
        torch.equal(baked[name], weight) for name, weight in load_model(tmp_path / "edited").state_dict().items()
    )


def test_experts_are_not_imported(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("mixtral")
    edited_checkpoint(checkpoint, tmp_path / "edited", rank=2, names=("experts.0.w2.weight",))
    peft_adapter(checkpoint, tmp_path / "adapter", target_modules=["q_proj", "w2"])
    for source in (tmp_path / "edited", tmp_path / "adapter"):
        with pytest.raises(BakeoutError, match=r"experts.0.w2.* attention"):
            import_plan(source, str(checkpoint))


def _adding(vector: torch.Tensor) -> Callable[..., Any]:
    def add(module: Any, arguments: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    return add


def test_another_configuration_is_named_and_a_pipe_is_not_read(llama_checkpoint: Path, tmp_path: Path) -> None:
    edited_checkpoint(llama_checkpoint, tmp_path / "edited", rank=1, names=FEED_FORWARD)
    path = tmp_path / "edited" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rope_theta": 5e5}))
    with pytest.raises(BakeoutError, match="another `rope_theta`"):
        import_plan(tmp_path / "edited", str(llama_checkpoint))
    # An entry that the base model's configuration leaves out, with another value than is taken then; and with that one.
    base = shutil.copytree(llama_checkpoint, tmp_path / "base")
    (base / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "rope_scaling"}))
    path.write_text(json.dumps({**config, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}))
    with pytest.raises(BakeoutError, match="another `rope_scaling`"):
        import_plan(tmp_path / "edited", str(base))
    path.write_text(json.dumps({**config, "rope_scaling": None, "mlp_bias": False}))
    assert import_plan(tmp_path / "edited", str(base)).interventions
    # As transformers 5 writes it.
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    newer = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    path.write_text(json.dumps({**newer, "rope_parameters": rope}))
    assert import_plan(tmp_path / "edited", str(llama_checkpoint)).interventions
    path.write_text(json.dumps({**newer, "rope_parameters": {**rope, "rope_theta": 5e5}}))
    with pytest.raises(BakeoutError, match="another `rope_theta`"):
        import_plan(tmp_path / "edited", str(llama_checkpoint))
    path.write_text(json.dumps(config))
    os.mkfifo(tmp_path / "edited" / "more.safetensors")
    with pytest.raises(BakeoutError, match="not a regular file"):
        import_plan(tmp_path / "edited", str(llama_checkpoint))


def test_a_control_vector(llama_checkpoint: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    directions = {layer: random.normal(size=32).astype(np.float32) for layer in (1, 3)}
    control_vector(tmp_path / "vector.gguf", directions)
    plan = import_plan(tmp_path / "vector.gguf", str(llama_checkpoint), scale=-1.5)
    save_plan(plan, tmp_path / "plan.safetensors")
    (addition,) = load_plan(tmp_path / "plan.safetensors").interventions
    assert addition.describe().json["coefficient"] == -1.5
    rows = np.zeros((4, 32), np.float32)
    rows[[1, 3]] = np.stack([directions[1], directions[3]])
    for other in (
        save(tmp_path / "rows.safetensors", vectors=rows),
        save(tmp_path / "named.safetensors", **{f"direction.{layer}": rows[layer] for layer in (1, 3)}),
    ):
        same = import_plan(other, str(llama_checkpoint), scale=-1.5).interventions[0]
        assert all(np.array_equal(array, same.arrays()[name]) for name, array in addition.arrays().items())
    # By plain PyTorch, as repeng adds it.
    model = load_model(llama_checkpoint)
    with torch.no_grad(), Hooks(model, [addition]):
        measured = model(IDS).logits
    handles = [
        feed_forward_layers(model)[layer].block.register_forward_hook(_adding(-1.5 * torch.from_numpy(direction)))
        for layer, direction in directions.items()
    ]
    with torch.no_grad():
        expected = model(IDS).logits
    for handle in handles:
        handle.remove()
    assert (measured - expected).abs().max() < 1e-4 < (expected - logits_of(llama_checkpoint)).abs().max()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_projection_folded_into_weights(checkpoint_of: CheckpointOf, tmp_path: Path, family: str) -> None:
    checkpoint = checkpoint_of(family)
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    path = save(tmp_path / "refusal.safetensors", direction=direction)
    plan = import_plan(path, str(checkpoint), project=True, fold=True, layers=[1, 2, 3])
    assert [(part.layer, part.role) for part in plan.interventions[0].parts] == [
        (layer, role) for layer in (1, 2, 3) for role in ("down", "o")
    ]
    # By plain PyTorch: what attention and feed-forward layers give, projected.
    unit = torch.from_numpy(direction / np.linalg.norm(direction))
    model = load_model(checkpoint)
    for layer in feed_forward_layers(model)[1:]:
        for module in (layer.block.get_submodule("self_attn.o_proj"), layer.down):
            module.register_forward_hook(lambda _module, _inputs, output: output - (output @ unit)[..., None] * unit)
    with torch.no_grad():
        expected = model(IDS).logits
    baked = baked_logits(plan, checkpoint, tmp_path / "baked")
    assert (baked - expected).abs().max() < 1e-4 < 0.1 < (expected - logits_of(checkpoint)).abs().max()
    graph = bake(str(checkpoint), plan, tmp_path / "graph", BakeOptions()).directory
    computed = torch.from_numpy(np.stack(Runner(graph).logits(IDS.tolist())))
    assert (computed - expected).abs().max() < 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "opt"])
def test_a_projection_that_no_weights_carry_exactly_is_not_folded(
    checkpoint_of: CheckpointOf, tmp_path: Path, family: str
) -> None:
    checkpoint = checkpoint_of(family)
    path = save(tmp_path / "refusal.safetensors", direction=np.arange(1, 33, dtype=np.float32))
    with pytest.raises(BakeoutError, match="No fold of the projection into weights is exact"):
        import_plan(path, str(checkpoint), project=True, fold=True)
    with pytest.raises(BakeoutError, match="`fold` does nothing"):
        import_plan(path, str(checkpoint), layers=[1], fold=True)


def test_the_receipt_of_a_fold_tells_what_rounding_leaves(tmp_path: Path) -> None:
    direction = save(tmp_path / "direction.safetensors", direction=np.ones(32, np.float32))
    left = {}
    for dtype in ("float32", "bfloat16"):
        checkpoint = tiny_checkpoint("llama", tmp_path / dtype, dtype=dtype)
        plan = import_plan(direction, str(checkpoint), project=True, fold=True, layers=[1, 2])
        figures = read_of(plan)["folded"]
        assert figures["stored_as"] == dtype and figures["left_along"] < 1e-4
        left[dtype] = figures["left_along_stored"]
    assert left["float32"] < 1e-4 < left["bfloat16"] < 0.05


def test_a_fold_is_measured_within_a_short_table_of_positions(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("gpt2", tmp_path / "base", n_positions=32)
    path = save(tmp_path / "refusal.safetensors", direction=np.arange(1, 33, dtype=np.float32))
    with pytest.raises(BakeoutError, match=r"a share of .* for a token"):
        import_plan(path, str(checkpoint), project=True, fold=True)


def test_a_token_that_writes_hugely_hides_nothing_of_the_others(tmp_path: Path) -> None:
    """As the first token does in real models: a bias along the direction is little beside it, and all of theirs."""
    checkpoint = tiny_checkpoint("llama", tmp_path / "base", mlp_bias=True)
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    model = load_model(checkpoint)
    block: Any = model.get_submodule("model.layers.1")
    ids = torch.linspace(0, 263, 48).long()[None]
    with torch.no_grad():
        for layer in feed_forward_layers(model):
            for linear in (layer.gate, layer.up, layer.down):
                assert linear is not None, "a gated layer"
                linear.get_parameter("bias").zero_()
        block.mlp.down_proj.bias.copy_(0.5 * torch.from_numpy(direction / np.linalg.norm(direction)))
        read: list[torch.Tensor] = []
        handle = block.mlp.gate_proj.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0][0]))
        model(ids, use_cache=False)
        handle.remove()
        first = read[0][0]
        # A neuron that the first token alone makes fire.
        block.mlp.gate_proj.weight[0] = 40 * first / first.norm() ** 2
        block.mlp.gate_proj.bias[0] = -30
        block.mlp.up_proj.weight[0] = 100 * first / first.norm() ** 2
        block.mlp.down_proj.weight[:, 0] = 500 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(checkpoint)
    path = save(tmp_path / "refusal.safetensors", direction=direction)
    with pytest.raises(BakeoutError, match="a share of"):
        import_plan(path, str(checkpoint), project=True, fold=True, layers=[1])


def test_directions_of_blocks_that_do_not_count_as_feed_forward_layers(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("qwen3_moe", tmp_path / "base", mlp_only_layers=[2])
    control_vector(tmp_path / "steering.gguf", {1: np.ones(32, np.float32)})
    with pytest.raises(BakeoutError, match="named by block, and of this model only the blocks 2"):
        import_plan(tmp_path / "steering.gguf", str(checkpoint))


def test_a_vision_tower_is_not_the_text_decoder(llama_checkpoint: Path, tmp_path: Path) -> None:
    peft_adapter(llama_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path).items()
    save_file({name.replace("model.layers", "model.vision_tower.layers"): value for name, value in tensors}, path)
    with pytest.raises(BakeoutError, match=r"vision_tower\.layers\.0.*not of the text decoder"):
        import_plan(tmp_path / "adapter", str(llama_checkpoint))


def test_a_direction(llama_checkpoint: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "refusal.safetensors", direction=np.arange(1, 33, dtype=np.float16))
    plan = import_plan(path, str(llama_checkpoint), project=True)
    (projection,) = plan.interventions
    assert [part.layer for part in projection.parts] == [0, 1, 2, 3]
    assert [part.layer for part in import_plan(path, str(llama_checkpoint), layers=[2]).interventions[0].parts] == [2]
    with pytest.raises(BakeoutError, match="no blocks are named"):
        import_plan(path, str(llama_checkpoint))
    with pytest.raises(BakeoutError, match="`scale` does nothing"):
        import_plan(path, str(llama_checkpoint), project=True, scale=2)


def test_files_that_are_no_directions(llama_checkpoint: Path, tmp_path: Path) -> None:
    control_vector(tmp_path / "wide.gguf", {1: np.ones(40, np.float32)})
    control_vector(tmp_path / "deep.gguf", {9: np.ones(32, np.float32)})
    control_vector(tmp_path / "zero.gguf", {1: np.zeros(32, np.float32)})
    control_vector(tmp_path / "model.gguf", {1: np.ones(32, np.float32)}, architecture="llama")
    save(tmp_path / "two.safetensors", a=np.ones(32, np.float32), b=np.ones(32, np.float32))
    save(tmp_path / "nan.safetensors", a=np.full(32, np.nan, np.float32))
    save(tmp_path / "integers.safetensors", a=np.ones(32, np.int64))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    shutil.copy(tmp_path / "wide.gguf", tmp_path / "direction.pt")
    for name, told in {
        "wide.gguf": "40",
        "deep.gguf": "layer 9",
        "zero.gguf": "would do nothing",
        "model.gguf": "not a control vector",
        "two.safetensors": "2 tensors",
        "nan.safetensors": "NaN",
        "integers.safetensors": "I64",
        "empty.safetensors": "whole safetensors",
        "direction.pt": "pickled",
        "absent.gguf": "There is no",
    }.items():
        with pytest.raises(BakeoutError, match=told):
            import_plan(tmp_path / name, str(llama_checkpoint), layers=None if "gguf" in name else [1])
