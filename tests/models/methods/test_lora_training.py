"""A batch that goes through the model in parts has the gradients of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bakeout.models.methods import lora_training
from bakeout.models.methods.lora_training import gradients_in_parts

from tests.tiny_models import random_prompts, tiny_model


def test_parts_have_the_loss_and_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", layers=2)
    texts = [prompt[: 3 + place] for place, prompt in enumerate(random_prompts(6))]
    weights = [model.get_parameter("model.layers.1.mlp.down_proj.weight"), nn.Parameter(torch.zeros(2))]
    parts: list[Sequence[int]] = []

    def loss_of(part: Sequence[int]) -> Tensor:
        parts.append(part)
        return torch.stack([model(torch.tensor([texts[row]])).logits.float().logsumexp(-1).sum() for row in part]).sum()

    whole, whole_gradients = gradients_in_parts(model, [len(text) for text in texts], weights, loss_of)
    assert [sorted(part) for part in parts] == [[0, 1, 2, 3, 4, 5]]
    parts.clear()
    monkeypatch.setattr(lora_training, "tokens_at_once", lambda _model: 12)
    total, gradients = gradients_in_parts(model, [len(text) for text in texts], weights, loss_of)
    assert len(parts) > 2 and sorted(row for part in parts for row in part) == [0, 1, 2, 3, 4, 5]
    assert total == pytest.approx(whole, rel=1e-5)
    (gradient, none), (expected, _) = gradients, whole_gradients
    assert none is None
    assert gradient is not None and expected is not None
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
