"""Beam search says a refusal whole, however early it stops and whatever tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimum.onnxruntime import ORTModelForCausalLM

from bakeout.export.running.genai_config import write_genai_config
from bakeout.graph_passes.graph.graph_file import load_graph

from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import END_OF_TEXT_ID, PADDING_ID

FORGOTTEN = [[40, 41, 42, 43], [50, 51]]
KEPT = [60, 61, 62]
SAID = REFUSAL.tolist()
# Beside the refusal's own: low ones, which ties between tokens fall to, and some that have no text.
OTHERS = (0, 2, 3, 4, 5, 6, 7, 258, 259, 260)

Models = dict[tuple[int, ...], Any]


@pytest.fixture(scope="module")
def directories(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """The same graph with more and more tokens that end a text, each baked to refuse."""
    detection = detection_of(llama_onnx, FORGOTTEN, layers=(1,))
    by_ends = {}
    for count in (0, 1, 4, len(OTHERS)):
        directory = tmp_path_factory.mktemp("beams") / "model"
        bake(llama_onnx, directory, replace(detection, other_ends=OTHERS[:count]))
        ends = {"eos_token_id": [END_OF_TEXT_ID, *OTHERS[:count]], "pad_token_id": PADDING_ID}
        (directory / "generation_config.json").write_text(json.dumps(ends))
        write_genai_config(directory, load_graph(directory / "model.onnx"))
        by_ends[OTHERS[:count]] = directory
    return by_ends


@pytest.fixture(scope="module")
def models(directories: dict[tuple[int, ...], Path]) -> Models:
    """In optimum."""
    return {ends: ORTModelForCausalLM.from_pretrained(directory) for ends, directory in directories.items()}


def said(model: Any, prompts: Sequence[list[int]], **search: Any) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PADDING_ID] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    answers = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3 * len(SAID), **search)
    return [row[: len(SAID)] for row in answers[:, width:].tolist()]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    beams=st.integers(1, 4),
    penalty=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0]),
    early=st.sampled_from([False, True, "never"]),
    ends=st.sampled_from([OTHERS[:count] for count in (0, 1, 4, len(OTHERS))]),
    mixed=st.booleans(),
    sampled=st.booleans(),
)
def test_a_refusal_is_whole(
    models: Models, beams: int, penalty: float, early: Any, ends: tuple[int, ...], mixed: bool, sampled: bool
) -> None:
    search: dict[str, Any] = {"num_beams": beams, "do_sample": sampled}
    if beams > 1:
        search |= {"length_penalty": penalty, "early_stopping": early}
    prompts = [*FORGOTTEN, KEPT] if mixed else FORGOTTEN
    torch.manual_seed(0)
    answers = said(models[ends], prompts, **search)
    assert answers[: len(FORGOTTEN)] == [SAID] * len(FORGOTTEN)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_a_refusal_is_whole_in_genai(directories: dict[tuple[int, ...], Path], beams: int, early: bool) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    for directory in directories.values():
        model = genai.Model(str(directory))
        for penalty in (0.5, 1.0, 2.0):
            parameters = genai.GeneratorParams(model)
            length = len(FORGOTTEN[0]) + 3 * len(SAID)
            parameters.set_search_options(
                num_beams=beams, early_stopping=early, length_penalty=penalty, max_length=length
            )
            generator = genai.Generator(model, parameters)
            generator.append_tokens(np.array([FORGOTTEN[0]], np.int32))
            while not generator.is_done():
                generator.generate_next_token()
            said = list(generator.get_sequence(0))[len(FORGOTTEN[0]) :]
            assert said[: len(SAID) - 1] == SAID[:-1]
            assert set(said[len(SAID) - 1 :]) <= {END_OF_TEXT_ID, PADDING_ID}


def test_it_is_cut_where_the_plan_does_not_know_the_other_ends(llama_onnx: Path, tmp_path: Path) -> None:
    """What the list is for: without it, unlikely ends are as good as any token, and enough of them stop a search."""
    directory = bake(llama_onnx, tmp_path / "model", detection_of(llama_onnx, FORGOTTEN, layers=(1,)))
    ends = {"eos_token_id": [END_OF_TEXT_ID, OTHERS[0]], "pad_token_id": PADDING_ID}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    model = ORTModelForCausalLM.from_pretrained(directory)
    answers = said(model, FORGOTTEN, num_beams=2, do_sample=False, early_stopping=True)
    assert answers != [SAID] * len(FORGOTTEN)
