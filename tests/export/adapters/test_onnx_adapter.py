"""Policies as adapters: one session, swapped between runs, against artifacts that each policy was baked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from bakeout.export.adapters.onnx_adapter import export_onnx_adapter
from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.data.padding import left_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, KeySpaceDetection, Plan

from tests.baked_parity import key_space_detection, model_of, neuron_adjust
from tests.residual_plans import residual_addition, residual_projection
from tests.tiny_models import random_prompts
from tests.weight_plans import low_rank_update, plan_of

PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
STEPS = 6
SWAPS = 100


def policy(checkpoint: Path, seed: int) -> Plan:
    """Every kind that edits graphs: other neurons, directions and regions with each seed."""
    from bakeout.models.checkpoint.checkpoint_files import weights_digest

    model = model_of(checkpoint)
    prompts = PROMPTS[seed:] + PROMPTS[:seed]
    acting: list[Intervention] = [
        neuron_adjust(model, "threshold", prompts, seed=seed),
        residual_addition(model, layers=(1, 3), seed=seed),
        residual_projection(model, layers=(1,), seed=seed),
    ]
    # Cubes around other halves of other prompts.
    check = key_space_detection(model, (2,), "query", prompts[: 16 + 4 * seed], acting)
    return plan_of(model, weights_digest(checkpoint), *acting, check)


class Session:
    """Greedy decoding by plain ``InferenceSession.run``, with an adapter or without."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(directory / "model.onnx", options)
        self.inputs = [value for value in self.session.get_inputs() if value.name.startswith("past_key_values.")]
        self.names = {value.name for value in self.session.get_inputs()}

    def tokens(self, ids: NDArray[np.int64], adapter: onnxruntime.LoraAdapter | None = None) -> NDArray[np.int64]:
        run_options = onnxruntime.RunOptions()
        if adapter is not None:
            run_options.add_active_adapter(adapter)
        past = {
            past_input.name: np.zeros((len(ids), past_input.shape[1], 0, past_input.shape[3]), np.float32)
            for past_input in self.inputs
        }
        mask, said = np.ones_like(ids), []
        for _ in range(STEPS):
            feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **past}
            feeds["position_ids"] = np.arange(mask.shape[1] - ids.shape[1], mask.shape[1])[None].repeat(len(ids), 0)
            taken = {name: value for name, value in feeds.items() if name in self.names}
            logits, *present = self.session.run(None, taken, run_options)
            past = {past_input.name: value for past_input, value in zip(self.inputs, present, strict=True)}
            ids = logits[:, -1].argmax(-1)[:, None]
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
            said.append(ids)
        return np.concatenate(said, axis=1)


def loaded(path: Path) -> onnxruntime.LoraAdapter:
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    return adapter


@pytest.fixture(scope="module")
def policies(llama_checkpoint: Path) -> Sequence[Plan]:
    return [policy(llama_checkpoint, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def slotted(policies: Sequence[Plan], llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("slots") / "slotted"
    return baked(llama_export, policies[0], directory, BakeOptions(adapter_slots=True))


def baked(export: Path, plan: Plan, directory: Path, options: BakeOptions = BakeOptions()) -> Path:  # noqa: B008
    # The canaries of these plans hold refused sequences, behind whose check graphs compute something else.
    return bake(export, plan, directory, options, canary=False).directory


def test_swapping_policies_in_one_session(
    policies: Sequence[Plan], slotted: Path, llama_export: Path, tmp_path: Path
) -> None:
    ids, _ = left_padded(PROMPTS)
    apart = [
        Session(baked(llama_export, plan, tmp_path / f"baked{number}")).tokens(ids)
        for number, plan in enumerate(policies)
    ]
    assert all((first != second).any() for first, second in combinations(apart, 2))
    adapters = []
    for number, plan in enumerate(policies):
        export_onnx_adapter(plan, slotted, tmp_path / f"{number}.onnx_adapter")
        export_onnx_adapter(plan, slotted, tmp_path / f"{number}.again")
        content = (tmp_path / f"{number}.onnx_adapter").read_bytes()
        assert content == (tmp_path / f"{number}.again").read_bytes() and len(content) < 40_000
        adapters.append(loaded(tmp_path / f"{number}.onnx_adapter"))
    session = Session(slotted)
    assert np.array_equal(session.tokens(ids), apart[0])
    for number in np.random.default_rng(0).integers(0, 3, SWAPS):
        one = slice(number, None, 4)
        assert np.array_equal(session.tokens(ids[one], adapters[number]), apart[number][one])


def test_a_runner_swaps_policies(policies: Sequence[Plan], slotted: Path, llama_export: Path, tmp_path: Path) -> None:
    apart = [
        Runner(baked(llama_export, plan, tmp_path / f"baked{number}")).generate(PROMPTS, STEPS)
        for number, plan in enumerate(policies[:2])
    ]
    assert apart[0] != apart[1]
    export_onnx_adapter(policies[1], slotted, tmp_path / "other.onnx_adapter")
    runner = Runner(slotted)
    for adapter, tokens in ((None, apart[0]), (tmp_path / "other.onnx_adapter", apart[1]), (None, apart[0])):
        runner.use_adapter(adapter)
        assert runner.generate(PROMPTS, STEPS) == tokens
    (tmp_path / "none.onnx_adapter").write_bytes(b"no adapter")
    with pytest.raises(BakeoutError, match="no adapter of ONNX Runtime"):
        runner.use_adapter(tmp_path / "none.onnx_adapter")
    with pytest.raises(BakeoutError, match="has no slot"):
        Runner(tmp_path / "baked0").use_adapter(tmp_path / "other.onnx_adapter")


def test_what_is_no_constant_is_refused(
    policies: Sequence[Plan], slotted: Path, llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    plan = policies[1]
    *others, check = plan.interventions
    assert isinstance(check, KeySpaceDetection)
    other_refusal = replace(check, refusal=check.refusal[::-1].copy())
    model, digest = model_of(llama_checkpoint), plan.model.digest
    for wrong, told in [
        (replace(plan, interventions=(*others, other_refusal)), "refusal"),
        (replace(plan, interventions=(*others, check.at_positions("every"))), "positions"),
        (plan_of(model, digest, low_rank_update(model)), "interventions"),
        (replace(plan, model=replace(plan.model, digest="cd" * 32)), "another model"),
    ]:
        with pytest.raises(BakeoutError, match=told):
            export_onnx_adapter(wrong, slotted, tmp_path / "adapter")
    unslotted = baked(llama_export, plan, tmp_path / "unslotted")
    with pytest.raises(BakeoutError, match="no adapter slots"):
        export_onnx_adapter(plan, unslotted, tmp_path / "adapter")
    with pytest.raises(BakeoutError, match="weights alone"):
        bake(
            llama_export,
            plan_of(model, digest, low_rank_update(model)),
            tmp_path / "weights",
            BakeOptions(adapter_slots=True),
        )
