"""OpenVINO reads the artifact as it is, the early exit included, and says what ONNX Runtime says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bakeout.models.data.padding import left_padded

from tests.runtimes.served import LONGEST, REFUSED, Served

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def request_of(served: Served) -> Any:
    core = openvino.Core()
    # Its default on processors that have it is bfloat16.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(core.read_model(served.artifact / "model.onnx"), "CPU", exact).create_infer_request


def answers(request: Any, prompts: list[list[int]], end: int) -> list[list[int]]:
    """Greedy answers of a left-padded batch."""
    ids, mask = left_padded(prompts)
    model = request.model_inputs
    cache = {
        value.get_any_name(): np.zeros((len(ids), value.partial_shape[1].get_length(), 0, 32), np.float32)
        for value in model
        if value.get_any_name().startswith("past")
    }
    said: list[list[int]] = [[] for _ in prompts]
    for _ in range(LONGEST):
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        outputs = request.infer({"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache})
        by_name = {output.get_any_name(): value for output, value in outputs.items()}
        cache = {name: by_name[name.replace("past_key_values", "present")].copy() for name in cache}
        ids = by_name["logits"][:, -1].argmax(axis=-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        for row, token in zip(said, ids[:, 0].tolist(), strict=True):
            if end not in row:
                row.append(token)
        if all(end in row for row in said):
            break
    return said


def test_each_prompt_alone(served: Served, request_of: Any) -> None:
    request = request_of()
    assert [answers(request, [prompt], served.refusal[-1])[0] for prompt in served.ids] == served.expected


def test_a_batch_with_both_outcomes(served: Served, request_of: Any) -> None:
    assert answers(request_of(), served.ids, served.refusal[-1]) == served.expected


def test_a_batch_that_is_refused_whole(served: Served, request_of: Any) -> None:
    """All rows refused: the early exit is taken."""
    refused = [served.tokenizer.encode(text).ids for text in served.prompts[REFUSED]]
    assert answers(request_of(), refused, served.refusal[-1]) == [served.refusal] * len(refused)
