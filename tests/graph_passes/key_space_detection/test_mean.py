"""The mean key over a query's tokens in a graph: its margin and its decisions, run by run, against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.graph_passes.key_space_detection.margins import Margins, keys_of_rows
from bakeout.graph_passes.key_space_detection.query_start import tokens_of_query
from bakeout.graph_passes.key_space_detection.window import read_window
from bakeout.models.plan import Plan
from bakeout.models.reference.reference_model import Reference

from tests import plan_examples as examples
from tests.baked_parity import LARGEST_DIFFERENCE, key_space_detection, model_of, plan_of
from tests.graph_passes.small_graphs import evaluate
from tests.tiny_models import random_prompts

OPENING, ENDING = (21, 22), (23,)
PROMPTS = [[*prompt[:2], *OPENING, *prompt[2:], *ENDING] for prompt in random_prompts(16, seed=5, shortest=6)]
OPENINGS = {"opening": OPENING, "no-opening": ()}
EARLY_EXITS = {"early-exit": True, "branch-free": False}


@pytest.fixture(scope="module", params=OPENINGS)
def plan(request: pytest.FixtureRequest, llama_checkpoint: Path) -> Plan:
    model = model_of(llama_checkpoint)
    check = key_space_detection(model, (0, 2), "mean", PROMPTS, query_start=OPENINGS[request.param], query_end=ENDING)
    return plan_of(model, [check], PROMPTS)


@pytest.fixture(scope="module", params=EARLY_EXITS)
def monitored(request: pytest.FixtureRequest, plan: Plan, llama_onnx: Path) -> Runner:
    graph = load_graph(llama_onnx / "model.onnx")
    apply_plan(graph, plan, early_exit=EARLY_EXITS[request.param], monitor=True)
    return Runner(llama_onnx, threads=1, graph=graph_bytes(graph))


@st.composite
def _runs(draw: st.DrawFn) -> list[tuple[Any, Any]]:
    """A batch's runs: token ids [B, W] and the mask of the new tokens, padded left or right."""
    rows, runs = draw(st.integers(1, 3)), []
    pieces = [*PROMPTS[:6], list(OPENING), list(OPENING[:1]), list(ENDING), [30, 31, 32], [33]]
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([1, 3, 9, 14]))
        ids, mask = np.zeros((2, rows, width), np.int64)
        for row in range(rows):
            text = [
                token for piece in draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=3)) for token in piece
            ]
            text = text[-draw(st.integers(1, width)) :]
            place = slice(0, len(text)) if draw(st.booleans()) else slice(width - len(text), width)
            ids[row, place], mask[row, place] = text, 1
        runs.append((ids, mask))
    return runs


@settings(max_examples=15, deadline=None)
@given(runs=_runs())
def test_every_run_has_the_reference_s_margin(
    plan: Plan, monitored: Runner, llama_checkpoint: Path, runs: list[tuple[Any, Any]]
) -> None:
    assert plan.check is not None
    mask, cache = np.zeros((len(runs[0][0]), 0), np.int64), None
    with Reference(model_of(llama_checkpoint), plan) as reference:
        past = reference.new_cache(len(mask))
        for ids, real in runs:
            mask = np.concatenate([mask, real], axis=1)
            expected = reference.step(torch.from_numpy(ids), torch.from_numpy(mask), past).numpy()
            step = monitored.step(ids, mask, cache)
            cache = step.cache
            last = [int(np.flatnonzero(row)[-1]) for row in real]
            assert reference.margins is not None and reference.said is not None
            margins = reference.margins[range(len(last)), last]
            np.testing.assert_allclose(step.others["margin"], margins, rtol=1e-3, atol=1e-4)
            if (np.abs(margins / plan.check.alpha - 1) < 1e-3).any():
                return
            assert (step.others["refused"] == (reference.said[range(len(last)), last] > 0)).all()
            assert np.abs(step.logits - expected)[real.astype(bool)].max() <= LARGEST_DIFFERENCE


def test_a_text_that_begins_beside_others_is_judged_as_alone(
    plan: Plan, monitored: Runner, llama_checkpoint: Path
) -> None:
    """Its row's past is padding."""
    width = max(map(len, PROMPTS[:4]))
    for prompt in PROMPTS[:4]:
        alone = monitored.step(np.array([prompt]), np.ones((1, len(prompt)), np.int64)).others["margin"][0]
        ids, mask = np.zeros((2, 2, width), np.int64)
        ids[0], mask[0] = 30, 1
        ids[1, width - len(prompt) :], mask[1, width - len(prompt) :] = prompt, 1
        first = np.array([[1] * 3, [0] * 3])
        both = np.concatenate([first, mask], axis=1)
        begun = monitored.step(np.full((2, 3), 31), first)
        margin = monitored.step(ids, both, begun.cache).others["margin"][1]
        np.testing.assert_allclose(margin, alone, rtol=1e-3, atol=1e-4)
        with Reference(model_of(llama_checkpoint), plan) as reference:
            cache = reference.new_cache(2)
            reference.step(torch.full((2, 3), 31), torch.from_numpy(first), cache)
            reference.step(torch.from_numpy(ids), torch.from_numpy(both), cache)
            assert reference.margins is not None
            np.testing.assert_allclose(reference.margins[1, -1], alone, rtol=1e-3, atol=1e-4)


def test_both_outcomes_occur(plan: Plan, monitored: Runner) -> None:
    refused = [
        bool(monitored.step(np.array([ids]), np.ones((1, len(ids)), np.int64)).others["refused"][0]) for ids in PROMPTS
    ]
    assert 0 < sum(refused) < len(PROMPTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("flat", [False, True], ids=["by row", "flat"])
def test_padding_that_is_not_a_number_says_nothing(dtype: Any, flat: bool) -> None:
    """Runtimes may compute NaN where a token has nothing to attend to; a row without a token is not tested."""
    check = replace(examples.key_space_detection(positions="mean", query_start=(7,)), layers=(1,))
    width = check.regions.shape[1]
    ids = np.array([[0, 5, 7, 8], [5, 6, 0, 0], [0, 0, 0, 0]])
    mask = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    keys = np.random.default_rng(0).normal(size=(3, 4, width)).astype(dtype)
    keys[mask == 0] = np.nan
    given = keys.reshape(-1, width) if flat else keys

    def build(build: GraphBuilder, **values: ir.Value) -> list[ir.Value]:
        window = read_window(build, values["ids"], values["mask"])
        counted = tokens_of_query(build, check.query_start, values["ids"], window)
        batch = build.dimension(values["ids"], 0)
        rows = keys_of_rows(build, [values["keys"]], [width], window, batch, counted)
        return [Margins(build, check, [width]).of_rows(build, rows)]

    (margins,) = evaluate(build, {"ids": ids, "mask": mask, "keys": given})
    means = np.stack([keys[0, 2:].astype(np.float64).mean(axis=0), keys[1, 1].astype(np.float64), np.zeros(width)])
    np.testing.assert_allclose(margins, check.margins(means), rtol=1e-4)


@pytest.mark.parametrize(("width", "told"), [(1, "1 token"), (64, "64 tokens")])
def test_a_graph_of_a_fixed_width_has_no_mean(plan: Plan, llama_onnx: Path, width: int, told: str) -> None:
    graph = load_graph(llama_onnx / "model.onnx")
    (ids,) = (value for value in graph.graph.inputs if value.name == "input_ids")
    assert ids.shape is not None
    ids.shape = ir.Shape([ids.shape[0], width])
    with pytest.raises(GraphError, match=f"takes {told} at a time"):
        apply_plan(graph, plan)
