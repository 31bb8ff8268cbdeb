"""Baked graphs under ONNX Runtime against the PyTorch reference, which knows nothing of what was baked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bakeout.export.running.runner import Runner
from bakeout.models.plan import Coin, Integers, KeySpaceDetection, Plan, Positions
from bakeout.models.reference.reference_model import Reference

from tests.baked_parity import (
    LARGEST_DIFFERENCE,
    REFUSAL,
    baked,
    compare,
    key_space_detection,
    model_of,
    neuron_adjust,
    plan_of,
    unbaked,
)
from tests.conftest import CheckpointOf
from tests.fitted_regions import SHAPES
from tests.tiny_models import random_prompts

CUBE = "cube"
MIDDLE, LAST = (1,), (3,)
JOINT = (0, 2)
# Optimum's OPT graph counts positions from the mask itself, as the model does, so padding is for all.
FAMILIES = ("gemma", "gpt2", "gpt_neox", "llama", "opt", "phi3", "qwen2")
PROMPTS = random_prompts(24, seed=3, shortest=4, longest=9)
POSITIONS: tuple[Positions, ...] = get_args(Positions)


def _cases(every: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Parameters, of which `make test` takes those that are ``quick``: every value with some value of the others."""
    return [pytest.param(*case, marks=[] if quick(*case) else pytest.mark.slow) for case in every]


def _require_parity(checkpoint: Path, directory: Path, plan: Plan, runner: Runner) -> None:
    parity = compare(model_of(checkpoint), plan, unbaked(directory), runner, PROMPTS)
    assert parity.holds, parity
    if any(isinstance(intervention, KeySpaceDetection) for intervention in plan.interventions):
        assert 0 < parity.refused < parity.prompts


@pytest.mark.parametrize(
    ("family", "coin", "inline"),
    _cases(
        product(FAMILIES, ["threshold", "expected"], [False, True]),
        lambda family, coin, inline: (
            family == "llama"
            or (coin, inline) == (("expected", True) if family in ("opt", "phi3") else ("threshold", False))
        ),
    ),
)
def test_neuron_adjust(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, coin: Coin, inline: bool
) -> None:
    model = model_of(checkpoint_of(family))
    plan = plan_of(model, [neuron_adjust(model, coin, PROMPTS)], PROMPTS)
    runner = baked(onnx_of(family), plan, inline=inline)
    _require_parity(checkpoint_of(family), onnx_of(family), plan, runner)


@pytest.mark.parametrize(
    ("early_exit", "layers", "positions"),
    _cases(
        product([True, False], [MIDDLE, LAST, JOINT], POSITIONS),
        lambda early_exit, layers, positions: early_exit or (layers == JOINT) == (positions == "every"),
    ),
)
def test_key_space_detection(
    llama_checkpoint: Path, llama_onnx: Path, positions: Positions, layers: tuple[int, ...], early_exit: bool
) -> None:
    model = model_of(llama_checkpoint)
    plan = plan_of(model, [key_space_detection(model, layers, positions, PROMPTS)], PROMPTS)
    runner = baked(llama_onnx, plan, early_exit=early_exit)
    _require_parity(llama_checkpoint, llama_onnx, plan, runner)


@pytest.mark.parametrize(
    ("early_exit", "layers", "positions", "region"),
    _cases(
        (
            (early_exit, layers, positions, shape)
            for early_exit in (True, False)
            for layers, positions in ((JOINT, "query"), (MIDDLE, "every"), (LAST, "query"))
            for shape in SHAPES
        ),
        lambda early_exit, layers, _positions, shape: shape != CUBE and early_exit == (layers != MIDDLE),
    ),
)
def test_every_shape_of_regions(
    llama_checkpoint: Path,
    llama_onnx: Path,
    region: str,
    positions: Positions,
    layers: tuple[int, ...],
    early_exit: bool,
) -> None:
    model = model_of(llama_checkpoint)
    check = key_space_detection(model, layers, positions, PROMPTS, region=region)
    assert check.regions.shape == (2, len(layers) * 96)
    plan = plan_of(model, [check], PROMPTS)
    runner = baked(llama_onnx, plan, early_exit=early_exit)
    _require_parity(llama_checkpoint, llama_onnx, plan, runner)


@pytest.mark.parametrize(
    ("family", "layers", "positions"),
    _cases(
        ((family, *case) for family in FAMILIES for case in ((MIDDLE, "query"), (LAST, "every"))),
        lambda family, layers, _positions: (
            family == "llama" or (layers == LAST) == (family in ("opt", "phi3", "gemma"))
        ),
    ),
)
def test_both_together(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, layers: tuple[int, ...], positions: Positions
) -> None:
    model = model_of(checkpoint_of(family))
    adjust = neuron_adjust(model, "expected", PROMPTS)
    # In the other order in the plan: all are in force at once.
    plan = plan_of(model, [key_space_detection(model, layers, positions, PROMPTS, [adjust]), adjust], PROMPTS)
    _require_parity(checkpoint_of(family), onnx_of(family), plan, baked(onnx_of(family), plan))


def test_two_adjustments_of_the_same_layers(llama_checkpoint: Path, llama_onnx: Path) -> None:
    model = model_of(llama_checkpoint)
    plan = plan_of(
        model, [neuron_adjust(model, "threshold", PROMPTS), neuron_adjust(model, "expected", PROMPTS, seed=1)], PROMPTS
    )
    _require_parity(llama_checkpoint, llama_onnx, plan, baked(llama_onnx, plan))


@dataclass(frozen=True)
class _Run:
    """One run of a conversation script: new tokens and their mask, both int64 [batch, W]."""

    ids: Integers
    mask: Integers


def _script(seed: int, batch: int) -> list[_Run]:
    """Prompts, then turns of any width that continue the refusal or do not, with padding on either side."""
    random = np.random.default_rng(seed)
    prompts = [PROMPTS[index] for index in random.choice(len(PROMPTS), batch, replace=False)]
    runs = [_padded_run(prompts, max(map(len, prompts)), random)]
    for width in (1, 1, 4, int(random.integers(2, 6)), 1, 3):
        turns = []
        for _ in range(batch):
            length = random.integers(1, width + 1) if random.random() < 0.5 else width
            start = random.integers(0, len(REFUSAL))
            continued = np.roll(np.tile(REFUSAL, 2), -start)[:length]
            turns.append(continued if random.random() < 0.6 else random.integers(2, 258, length))
        runs.append(_padded_run(turns, width, random))
    return runs


def _padded_run(rows: Sequence[Sequence[int] | Integers], width: int, random: np.random.Generator) -> _Run:
    run = _Run(np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64))
    for row, tokens in enumerate(rows):
        blank = width - len(tokens)
        real = slice(blank, None) if random.random() < 0.5 else slice(None, width - blank)
        run.ids[row, real] = tokens
        run.mask[row, real] = 1
    return run


@pytest.mark.parametrize(
    ("region", "layers", "positions", "early_exit"),
    _cases(
        (
            (*case, early_exit)
            for early_exit in (True, False)
            for case in (
                *((CUBE, layers, positions) for layers in (MIDDLE, LAST) for positions in POSITIONS),
                *((shape, MIDDLE, "every") for shape in SHAPES if shape != CUBE),
                *((shape, LAST, "query") for shape in SHAPES if shape != CUBE),
            )
        ),
        lambda region, layers, positions, early_exit: (
            early_exit == (layers == MIDDLE) if region != CUBE else early_exit or positions == "every"
        ),
    ),
)
def test_windows_of_a_conversation(
    llama_checkpoint: Path,
    llama_onnx: Path,
    region: str,
    layers: tuple[int, ...],
    positions: Positions,
    early_exit: bool,
) -> None:
    model = model_of(llama_checkpoint)
    plan = plan_of(model, [key_space_detection(model, layers, positions, PROMPTS, region=region)], PROMPTS)
    runner = baked(llama_onnx, plan, early_exit=early_exit)
    refused = []
    # One row at a time takes the early exit as soon as it is refused; among several it takes it seldom.
    for seed, batch in ((0, 6), (1, 6), (2, 2), (3, 1), (4, 1), (5, 1)):
        mask = np.zeros((batch, 0), dtype=np.int64)
        baked_past = None
        with Reference(model, plan) as reference:
            past = reference.new_cache(batch)
            for run in _script(seed, batch):
                mask = np.concatenate([mask, run.mask], axis=1)
                expected = reference.step(torch.from_numpy(run.ids), torch.from_numpy(mask), past).numpy()
                step = runner.step(run.ids, mask, baked_past)
                baked_past = step.cache
                real = run.mask.astype(bool)
                assert np.abs(step.logits - expected)[real].max() <= LARGEST_DIFFERENCE
                assert reference.said is not None
                refused.append((reference.said > 0)[real])
    share = np.concatenate(refused).mean()
    assert 0.1 < share < 0.95
