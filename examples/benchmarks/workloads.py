"""Runs of a decoder graph that are timed, and what makes sure that they do what is to be timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from comparison import Action
from random_llama import REFUSAL

from bakeout.export.running.cache_entries import TYPES
from bakeout.export.running.runner import Cache, Runner
from bakeout.models.plan import Intervention, KeySpaceDetection, NeuronAdjust

# The tokens of the past that are computed rather than drawn, so that a refusal leaves its latch.
OPENING = 2


@dataclass(frozen=True)
class Workload:
    """A run of ``new`` tokens behind ``past`` tokens, one row."""

    name: str
    past: int
    new: int


def tokens(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Token ids [1, count], the same every time."""
    return np.random.default_rng(count).integers(2, 256, (1, count))


def past(runner: Runner, length: int) -> Cache | None:
    """A cache of random keys and values whose last tokens the graph itself has computed."""
    if length == 0:
        return None
    random = np.random.default_rng(0)
    drawn = {
        value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
            random.standard_normal((1, value.shape[1], length - OPENING, value.shape[3])).astype(TYPES[value.type]),
            "cuda" if runner.provider == "CUDAExecutionProvider" else "cpu",
        )
        for value in runner.session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    return runner.step(tokens(OPENING), np.ones((1, length), np.int64), drawn).cache


def run(runner: Runner, workload: Workload) -> Action:
    """The workload, to be timed."""
    cache = past(runner, workload.past)
    ids, mask = tokens(workload.new), np.ones((1, workload.past + workload.new), np.int64)
    return lambda: runner.step(ids, mask, cache)


def loaded(path: Path, workload: Workload, threads: int | None) -> Callable[[], Action]:
    """The workload of a session that is loaded when it is called for."""
    return lambda: run(Runner(path, threads=threads), workload)


def require_outcome(unbaked: Runner, runner: Runner, intervention: Intervention, workload: Workload) -> None:
    """Make sure that what is timed is what the row says."""
    ids, mask = tokens(workload.new), np.ones((1, workload.past + workload.new), np.int64)
    base = unbaked.step(ids, mask, past(unbaked, workload.past)).logits
    logits = runner.step(ids, mask, past(runner, workload.past)).logits
    if isinstance(intervention, NeuronAdjust):
        happened = bool(np.abs(logits - base).max() > 1e-3)
    elif isinstance(intervention, KeySpaceDetection) and set(intervention.skills) == {"nothing"}:
        happened = bool(np.array_equal(logits, base))
    else:
        happened = int(logits[0, -1].argmax()) in REFUSAL and bool(logits[0, -1].max() == 0)
    if not happened:
        raise RuntimeError(f"{workload.name}: the intervention did not do what is to be timed")
