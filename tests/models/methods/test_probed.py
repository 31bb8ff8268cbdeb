"""What methods probe of models whose feed-forward layers are not all alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.neuron_adjust.fit import fit as fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.methods.selective_pruning.fit import fit as fit_selective_pruning
from bakeout.models.methods.selective_pruning.options import SelectivePruningOptions
from bakeout.models.plan import NeuronAdjust

from tests.conftest import CheckpointOf
from tests.tiny_models import byte_tokenizer, random_prompts, tiny_model

FITS = [(fit_neuron_adjust, NeuronAdjustOptions), (fit_selective_pruning, SelectivePruningOptions)]


def _fitting(model: PreTrainedModel) -> Fitting:
    records = [Record("", "", prompt[:2], prompt[2:]) for prompt in random_prompts(12, seed=5)]
    rows: dict[str, Any] = {"forget": {"probe": records[:6]}, "retain": {"probe": records[6:]}}
    return Fitting(model, byte_tokenizer(), list(rows), rows)


@pytest.mark.parametrize(("fit", "options"), FITS)
def test_experts_that_are_not_read_are_not_left_out_silently(fit: Callable[..., Any], options: Any) -> None:
    model = tiny_model("qwen2_moe", layers=2)
    for name, module in list(model.named_modules()):
        if name.endswith(".down_proj") and ".experts." in name:
            module.__class__ = type("Compressed", (type(module),), {})
    with pytest.raises(BakeoutError, match=r"experts of this 'qwen2_moe' model .* `experts: false`"):
        fit(options(forget=["forget"]), _fitting(model))
    fitted = fit(options(forget=["forget"], ratio=0.1, experts=False), _fitting(model))
    assert {layer.layer for layer in fitted.layers} <= {0, 1}


@pytest.mark.parametrize(("fit", "options"), FITS)
def test_experts_that_are_left_alone_are_not_read(
    fit: Callable[..., Any], options: Any, checkpoint_of: CheckpointOf
) -> None:
    """Offloaded stacks of them cannot be."""
    device_map = {"model.layers.1": "disk", "model.layers.2": "cpu", "model.layers.3": "cpu", "model.layers.0": "cpu"}
    device_map |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    checkpoint = checkpoint_of("llama4_text")
    offloaded = load_model(checkpoint, Placement(dtype="float32", device_map=device_map))
    with pytest.raises(BakeoutError, match="is a mixture of experts, and offloaded"):
        fit(options(forget=["forget"], ratio=0.1), _fitting(offloaded))
    left_alone = options(forget=["forget"], ratio=0.1, experts=False)
    fitted, expected = (fit(left_alone, _fitting(model)) for model in (offloaded, load_model(checkpoint)))
    assert {layer.layer for layer in fitted.layers} <= {0, 1, 2, 3}
    assert fitted.structure().keys() == expected.structure().keys()
    for name, values in expected.arrays().items():
        np.testing.assert_allclose(fitted.arrays()[name], values)


@pytest.mark.parametrize(("fit", "options"), FITS)
def test_layers_of_several_widths_are_fitted(fit: Callable[..., Any], options: Any) -> None:
    model = tiny_model("llama", layers=2)
    model.config.model_type = "unheard_of"
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Linear(32, 200), nn.Linear(32, 200), nn.Linear(200, 32)
    fitted = fit(options(forget=["forget"], ratio=0.5), _fitting(model))
    assert fitted.report.neurons == 148
    assert [layer.layer for layer in fitted.layers] == [0, 1]
    for layer, width in zip(fitted.layers, (96, 200), strict=True):
        numbers = layer.neurons if isinstance(fitted, NeuronAdjust) else layer.columns
        assert numbers.min() >= 0 and width - 20 < numbers.max() < width
