"""Beam search says a refusal whole, however early it stops and whatever tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimum.onnxruntime import ORTModelForCausalLM

from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import END_OF_TEXT_ID, PADDING_ID

FORGOTTEN = [[40, 41, 42, 43], [50, 51]]
KEPT = [60, 61, 62]
SAID = REFUSAL.tolist()
# Beside the refusal's own: low ones, which ties between tokens fall to, and some that have no text.
OTHERS = (0, 2, 3, 4, 5, 6, 7, 258, 259, 260)

Models = dict[tuple[int, ...], Any]


@pytest.fixture(scope="module")
def models(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The same graph with more and more tokens that end a text, each baked to refuse."""
    detection = detection_of(llama_onnx, FORGOTTEN, layers=(1,))
    by_ends: Models = {}
    for count in (0, 1, 4, len(OTHERS)):
        directory = tmp_path_factory.mktemp("beams") / "model"
        bake(llama_onnx, directory, replace(detection, other_ends=OTHERS[:count]))
        ends = {"eos_token_id": [END_OF_TEXT_ID, *OTHERS[:count]], "pad_token_id": PADDING_ID}
        (directory / "generation_config.json").write_text(json.dumps(ends))
        by_ends[OTHERS[:count]] = ORTModelForCausalLM.from_pretrained(directory)
    return by_ends


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


def test_it_is_cut_where_the_plan_does_not_know_the_other_ends(llama_onnx: Path, tmp_path: Path) -> None:
    """What the list is for: without it, unlikely ends are as good as any token, and enough of them stop a search."""
    directory = bake(llama_onnx, tmp_path / "model", detection_of(llama_onnx, FORGOTTEN, layers=(1,)))
    ends = {"eos_token_id": [END_OF_TEXT_ID, OTHERS[0]], "pad_token_id": PADDING_ID}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    model = ORTModelForCausalLM.from_pretrained(directory)
    answers = said(model, FORGOTTEN, num_beams=2, do_sample=False, early_stopping=True)
    assert answers != [SAID] * len(FORGOTTEN)
