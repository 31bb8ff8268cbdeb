"""The feed-forward layers of every architecture are found, read and written where they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from bakeout.models.checkpoint.architectures import FAMILIES, modules_of
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import block_numbers, feed_forward_layers, identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.plan import ModelIdentity

from tests.tiny_models import FAMILIES as TINY
from tests.tiny_models import NEWER_FAMILIES, tiny_model, tiny_width

IDS = torch.tensor([[2, 30, 40, 50], [7, 8, 9, 10]])


class _Wrapped(nn.Module):
    """A product that is no linear layer of torch."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values @ self.weight.T


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


@pytest.mark.parametrize("family", TINY)
def test_structure_says_what_the_table_says(family: str) -> None:
    model = tiny_model(family, layers=2)
    by_table, known = feed_forward_layers(model), identity(model, "digest")
    model.config.model_type = "unheard_of"
    by_structure, recorded = feed_forward_layers(model), identity(model, "digest")
    for one, other in zip(by_table, by_structure, strict=True):
        assert vars(one) == vars(other)
    assert known.modules is None
    assert recorded.modules is not None
    assert list(recorded.modules) == list(modules_of(known)) == list(modules_of(recorded))
    assert ModelIdentity.from_json(recorded.as_json(), "model") == recorded


@pytest.mark.parametrize("family", NEWER_FAMILIES)
def test_newer_architectures_are_read_by_structure(family: str) -> None:
    model = tiny_model(family, layers=2)
    assert [(layer.width, layer.hidden) for layer in feed_forward_layers(model)] == [(96, 32)] * 2
    assert identity(model, "digest").modules is not None


def test_embeddings_may_be_scaled_in_place() -> None:
    model = _unknown(tiny_model("llama", layers=1))
    model.model.embed_tokens.register_forward_hook(lambda _module, _arguments, output: output.mul_(2.0))
    assert len(feed_forward_layers(model)) == 1


def test_layers_of_several_widths_are_found_by_structure() -> None:
    model = _unknown(tiny_model("llama", layers=2))
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Linear(32, 95), nn.Linear(32, 95), nn.Linear(95, 32)
    assert [layer.width for layer in feed_forward_layers(model)] == [96, 95]
    assert identity(model, "digest").widths == (96, 95)


def test_layers_are_located_anew_once_modules_are_replaced() -> None:
    model = _unknown(tiny_model("llama", layers=2))
    before = feed_forward_layers(model)
    assert feed_forward_layers(model) is before
    model.model.layers[1].mlp.gate_proj = nn.Linear(32, 96, bias=False)
    assert feed_forward_layers(model)[1].gate is model.model.layers[1].mlp.gate_proj


def test_a_layer_that_is_computed_twice_is_refused() -> None:
    model = _unknown(tiny_model("llama", layers=2))
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(BakeoutError, match="several times"):
        feed_forward_layers(model)


def test_no_structure_of_plain_linear_layers_is_refused() -> None:
    model = _unknown(tiny_model("llama", layers=2))
    for layer in model.model.layers:
        layer.mlp.down_proj = _Wrapped(layer.mlp.down_proj.weight.detach())
    with pytest.raises(BakeoutError, match="No feed-forward layer of plain linear layers"):
        feed_forward_layers(model)


def test_blocks_that_compute_their_layer_otherwise_are_refused() -> None:
    """Gemma 3n's first layers keep the largest pre-activations alone: their keys depend on the spread of all."""
    settings = transformers.Gemma3nTextConfig(
        vocab_size=264,
        vocab_size_per_layer_input=264,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=0,
        laurel_rank=8,
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"] * 2,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with pytest.raises(BakeoutError, match=r"^model\.layers\.0 of .*\(2 in all\) computes .* than the 2 that were"):
        feed_forward_layers(model)


@pytest.mark.parametrize("place", ["gate_proj", "down_proj"])
def test_a_block_whose_layer_is_wrapped_is_refused(place: str) -> None:
    model = _unknown(tiny_model("llama", layers=3))
    mlp = model.model.layers[1].mlp
    setattr(mlp, place, _Wrapped(getattr(mlp, place).weight.detach()))
    with pytest.raises(BakeoutError, match=r"^model\.layers\.1 of .*\(1 in all\)"):
        feed_forward_layers(model)


def test_a_second_layer_of_the_same_kind_in_each_block_is_refused() -> None:
    model = _unknown(tiny_model("llama", layers=2))
    for layer in model.model.layers:
        layer.other = type(layer.mlp)(model.config)
    with pytest.raises(BakeoutError, match=r"^model\.layers\.0 of .*\(2 in all\)"):
        feed_forward_layers(model)


def test_blocks_without_a_feed_forward_layer_are_passed_over() -> None:
    class NoLayer(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(values)

    model = _unknown(tiny_model("llama", layers=3))
    model.model.layers[1].mlp = NoLayer()
    layers = feed_forward_layers(model)
    assert [layer.down_path for layer in layers] == [f"model.layers.{block}.mlp.down_proj" for block in (0, 2)]
    assert [layer.layer for layer in layers] == [0, 1]


def test_lists_of_parts_of_blocks_are_refused() -> None:
    """XLM keeps its feed-forward layers in a list of their own, and adds to the residual stream outside of it."""
    settings = transformers.XLMConfig(vocab_size=264, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with pytest.raises(BakeoutError, match=r"^transformer\.ffns\.0\.lin2 lies in no numbered block"):
        feed_forward_layers(model)


def test_a_block_is_no_norm_because_its_class_names_one() -> None:
    settings = transformers.RobertaPreLayerNormConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        is_decoder=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(settings)
    layers = feed_forward_layers(model)
    assert [layer.block for layer in layers] == list(model.roberta_prelayernorm.encoder.layer)
    assert not any(layer.norm_after_block for layer in layers)


def test_blocks_that_give_lists_are_read() -> None:
    """The blocks of OpenAI's GPT end with a norm."""
    settings = transformers.OpenAIGPTConfig(vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    layers = feed_forward_layers(model)
    assert [layer.block for layer in layers] == list(model.transformer.h)
    assert all(layer.norm_after_block for layer in layers)


def test_blocks_are_numbered_in_their_own_list() -> None:
    """A list around the decoder, and one within each block, hold no blocks."""
    model: Any = _unknown(tiny_model("llama", layers=3))
    embeddings = model.model.embed_tokens
    for layer in model.model.layers:
        layer.mlp = _Listed(layer.mlp)
    model.model = _Listed(model.model)
    model.get_input_embeddings = lambda: embeddings
    layers = feed_forward_layers(model)
    assert [layer.down_path for layer in layers] == [
        f"model.members.0.layers.{block}.mlp.members.0.down_proj" for block in range(3)
    ]
    assert [layer.block for layer in layers] == list(model.model.members[0].layers)
    assert block_numbers(model) == [site.block for site in key_sites(model)] == [0, 1, 2]


class _Listed(nn.Module):
    """A list of one module, which computes what this does."""

    def __init__(self, member: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList([member])

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.members[0](*arguments, **named)


def test_blocks_in_several_lists_are_refused() -> None:
    class Longer(nn.Module):
        def __init__(self, block: nn.Module, norm: nn.Module) -> None:
            super().__init__()
            self.blocks, self.norm = nn.ModuleList([block]), norm

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.norm(self.blocks[0](values))  # type: ignore[no-any-return]

    class Added(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values + self.mlp(values)  # type: ignore[no-any-return]

    model = _unknown(tiny_model("llama", layers=2))
    mlp = model.model.layers[0].mlp
    model.model.norm = Longer(Added(type(mlp)(model.config)), model.model.norm)
    with pytest.raises(BakeoutError, match=r"several lists of blocks: model\.layers, model\.norm\.blocks\."):
        feed_forward_layers(model)


@pytest.mark.parametrize(
    ("halves", "readable"),
    [
        (lambda values: (values[..., :96], values[..., 96:]), True),
        (lambda values: values.chunk(2, dim=-1), True),
        (lambda values: values.split([96, 96], dim=-1), True),
        (lambda values: (values[..., ::2], values[..., 1::2]), False),
        (lambda values: (values[..., ::2], values[..., 96:]), False),
        (lambda values: (values[..., :96], values[..., 8:104]), False),
        (lambda values: [half.squeeze(-1) for half in values.unflatten(-1, (96, 2)).split(1, dim=-1)], False),
    ],
)
def test_only_halves_of_a_fused_linear_are_read(halves: Callable[..., Any], readable: bool) -> None:
    """Other parts of it have their weights elsewhere than where they would be changed."""
    model = _unknown(tiny_model("phi3", layers=1))
    mlp = model.model.layers[0].mlp

    def forward(values: torch.Tensor) -> torch.Tensor:
        gate, up = halves(mlp.gate_up_proj(values))
        return mlp.down_proj(up * nn.functional.silu(gate))  # type: ignore[no-any-return]

    mlp.forward = forward
    if readable:
        assert [layer.layout for layer in feed_forward_layers(model)] == ["fused"]
    else:
        with pytest.raises(BakeoutError, match="No feed-forward layer of plain linear layers"):
            feed_forward_layers(model)


def test_locating_leaves_a_model_as_it_was() -> None:
    model = _unknown(tiny_model("llama", layers=2)).requires_grad_(False)
    with torch.inference_mode():
        assert len(feed_forward_layers(model)) == 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_a_plan_that_knows_no_modules_of_an_unknown_architecture_is_refused() -> None:
    known = identity(tiny_model("llama", layers=2), "digest")
    with pytest.raises(BakeoutError, match="'unheard_of'"):
        modules_of(replace(known, architecture="unheard_of"))
    with pytest.raises(BakeoutError, match="modules of 2 of 1"):
        replace(known, layers=1, modules=tuple(modules_of(known)))


def _unknown(model: PreTrainedModel) -> PreTrainedModel:
    """The model, of an architecture that is in no table."""
    model.config.model_type = "unheard_of"
    return model


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
