"""What methods probe of models whose feed-forward layers are not all alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.neuron_adjust.fit import fit as fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.methods.selective_pruning.fit import fit as fit_selective_pruning
from bakeout.models.methods.selective_pruning.options import SelectivePruningOptions

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
