"""The artifact in ONNX's own reference evaluator, operator by operator in NumPy: it is plain ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.runtimes.served import KEPT, REFUSED, WRONG, Served

# It takes seconds a token.
TOKENS = 2


@pytest.fixture(scope="module")
def evaluator(served: Served) -> ReferenceEvaluator:
    model = onnx.load(served.artifact / "model.onnx")
    assert not model.functions
    return ReferenceEvaluator(model)


@pytest.mark.parametrize("skill", [REFUSED, WRONG, KEPT])
def test_the_first_tokens(served: Served, evaluator: ReferenceEvaluator, skill: str) -> None:
    index = served.skills.index(skill)
    ids = np.array([served.ids[index]])
    past = [name for name in evaluator.input_names if name.startswith("past")]
    cache = {name: np.zeros((1, 4, 0, 32), np.float32) for name in past}
    length, said = 0, []
    for _ in range(TOKENS):
        length += ids.shape[1]
        fed = {
            "input_ids": ids,
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length - ids.shape[1], length)[None],
        }
        outputs = dict(zip(evaluator.output_names, evaluator.run(None, {**fed, **cache}), strict=True))
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        said.append(int(outputs["logits"][0, -1].argmax()))
        ids = np.array([said[-1:]])
    assert said == served.expected[index][:TOKENS]
