"""The feed-forward layers of every architecture in the table are found, read and written where they compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bakeout.models.checkpoint.architectures import FAMILIES
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers, identity

from tests.tiny_models import FAMILIES as TINY
from tests.tiny_models import tiny_model, tiny_width

IDS = torch.tensor([[2, 30, 40, 50], [7, 8, 9, 10]])


@pytest.mark.parametrize("family", TINY)
def test_every_layer_is_found_with_its_dimensions(family: str) -> None:
    model = tiny_model(family, layers=2)
    layers = feed_forward_layers(model)
    assert [layer.layer for layer in layers] == [0, 1]
    assert {(layer.width, layer.hidden) for layer in layers} == {(tiny_width(family), 32)}
    assert [model.get_submodule(layer.gate_path) for layer in layers] == [layer.gate for layer in layers]
    known = identity(model, "digest")
    assert (known.layers, known.width, known.hidden, known.vocabulary) == (2, tiny_width(family), 32, 264)
    assert known.architecture in FAMILIES


@pytest.mark.parametrize("family", TINY)
def test_the_key_vector_follows_from_the_pre_activation(family: str) -> None:
    """A neuron whose pre-activation is zero has a zero key: every activation function here maps 0 to 0."""
    layer = feed_forward_layers(model := tiny_model(family, layers=2))[1]
    keys = []

    def silence(_module: nn.Module, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        values = layer.pre_activation(output).clone()
        assert values.shape[-1] == tiny_width(family)
        values[..., 3] = 0
        changed = layer.with_pre_activation(output, values)
        assert changed.shape == output.shape
        # Nothing else is touched: neither another neuron nor the plain branch of a fused projection.
        assert (changed != output).any(dim=tuple(range(output.ndim - 1))).nonzero().flatten().tolist() == [3]
        return changed

    layer.gate.register_forward_hook(silence)
    layer.down.register_forward_pre_hook(lambda _module, arguments: keys.append(arguments[0]))
    with torch.no_grad():
        model(IDS)
    (key,) = keys
    assert (key[..., 3] == 0).all()
    assert (key[..., 4] != 0).any()


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    model = tiny_model("llama", layers=1)
    model.config.model_type = "mixtral"
    with pytest.raises(BakeoutError, match=r"'mixtral'.*llama.*qwen3"):
        feed_forward_layers(model)


def test_modules_that_are_no_plain_linear_layers_are_refused() -> None:
    model = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)
    with pytest.raises(BakeoutError, match=r"layers\.1\.mlp\.down_proj is a Sequential"):
        feed_forward_layers(model)


def test_modules_of_other_shapes_are_refused() -> None:
    model = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.gate_proj = nn.Linear(32, 95)
    with pytest.raises(BakeoutError, match="do not belong together"):
        feed_forward_layers(model)
    model.model.layers[1].mlp.down_proj = nn.Linear(95, 32)
    with pytest.raises(BakeoutError, match=r"gate_proj and .*up_proj do not belong together"):
        feed_forward_layers(model)
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 95)
    with pytest.raises(BakeoutError, match="differ in width"):
        feed_forward_layers(model)


def test_a_missing_module_is_refused() -> None:
    model = tiny_model("llama", layers=1)
    del model.model.layers[0].mlp
    with pytest.raises(BakeoutError, match=r"no module model\.layers\.0\.mlp\.gate_proj"):
        feed_forward_layers(model)
