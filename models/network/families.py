"""The feed-forward layers of a PyTorch model, by the table of architectures: how to read and write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.checkpoint.architectures import Family, Layout, family_of
from bakeout.models.data.limits import Limits
from bakeout.models.errors import BakeoutError
from bakeout.models.network.blocks import block_path
from bakeout.models.network.mixtures import is_expert, routers
from bakeout.models.plan import ModelIdentity, Routing


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One feed-forward layer. Its key vector [batch, tokens, F] is the input of ``down``.

    ``gate_path`` and ``down_path`` are the modules' names in the model; ``up`` is None where gate and up are one fused
    layer, and where the FFL is ungated. ``width`` is F, ``hidden`` the size of the residual stream.
    ``block``: the layer's whole block. It gives the residual stream behind it, with ``norm_after_block`` normalised.
    ``has_norm_after_down``: a norm follows ``down``; ``residual_multiplier``: what the FFL's output is multiplied by
    before it is added to the residual stream (Granite; 1 elsewhere). Some architectures (OPT) run their FFL on
    [batch * tokens, ...]: whoever hooks these modules must expect tensors without a batch dimension.
    """

    layer: int
    block: nn.Module
    gate: nn.Module
    up: nn.Module | None
    down: nn.Module
    gate_path: str
    down_path: str
    width: int
    hidden: int
    layout: Layout
    has_norm_after_down: bool
    norm_after_block: bool
    residual_multiplier: float

    def pre_activation(self, gate_output: Tensor) -> Tensor:
        """The pre-activation in the output of ``gate``: [batch, tokens, F], a view."""
        return gate_output[..., : self.width]

    def with_pre_activation(self, gate_output: Tensor, pre_activation: Tensor) -> Tensor:
        """A copy of ``gate_output`` in which the pre-activation is replaced; shape and dtype stay."""
        replaced = gate_output.clone()
        view = replaced[..., : self.width]
        view.copy_(pre_activation.reshape(view.shape))
        return replaced


def feed_forward_layers(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The FFLs of ``model``, from the embedding upwards.

    Raises ``BakeoutError`` for an architecture outside the table, and where the modules are not the plain linear
    layers of one width that the table promises (quantised or adapter-wrapped ones).
    Of a mixture of experts, those that see every token, whatever their widths; it is raised where there are none.
    """
    kind = model.config.model_type
    if routers(model):
        if layers := _beside_experts(model):
            return layers
        raise BakeoutError(
            f"No feed-forward layer of this {kind!r} model sees every token: they are mixtures of experts.",
            "Use Key Space Detection, whose keys can be what the routers read (`keys: router_input`).",
        )
    family = family_of(kind)
    blocks = _submodule(model, family.blocks, kind)
    layers = tuple(_feed_forward(model, family, kind, index) for index in range(len(list(blocks.children()))))
    if len({(layer.width, layer.hidden) for layer in layers}) != 1:
        raise BakeoutError(
            f"The feed-forward layers of this {kind!r} model differ in width, or there are none.",
            "Use a checkpoint whose layers all have one width.",
        )
    return layers


def feed_forwards_if_any(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """As ``feed_forward_layers``; empty for a mixture of experts that has no FFL beside its experts."""
    return _beside_experts(model) if routers(model) else feed_forward_layers(model)


def model_limits(model: PreTrainedModel) -> Limits:
    """The token ids and the context that a model has."""
    embeddings = model.get_input_embeddings().get_parameter("weight")
    return Limits.of_config(model.config.to_dict(), len(embeddings))


def identity(model: PreTrainedModel, digest: str) -> ModelIdentity:
    """What a plan keeps of ``model``. ``digest`` is ``weights_digest`` of its checkpoint."""
    layers = feed_forwards_if_any(model)
    routed = routers(model)
    widths = tuple(layer.width for layer in layers)
    return ModelIdentity(
        architecture=model.config.model_type,
        layers=len(layers),
        width=max(widths, default=0),
        hidden=(layers or routed)[0].hidden,
        vocabulary=model.config.vocab_size,
        digest=digest,
        widths=widths if len(set(widths)) > 1 else None,
        routing=Routing(tuple(router.experts for router in routed), routed[0].chosen) if routed else None,
    )


def _beside_experts(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The FFLs of a mixture of experts that see every token: shared experts, dense layers, parallel MLPs."""
    names = ("gate_proj", "up_proj", "down_proj")
    paths = [
        path
        for path, module in model.named_modules()
        if not is_expert(path) and {name for name, _ in module.named_children()}.issuperset(names)
    ]
    layers = []
    for index, path in enumerate(paths):
        gate, up, down = (model.get_submodule(f"{path}.{name}") for name in names)
        width, hidden = _dimensions(down, f"{path}.down_proj")
        layers.append(
            FeedForward(
                layer=index,
                block=model.get_submodule(block_path(path)),
                gate=gate,
                up=up,
                down=down,
                gate_path=f"{path}.gate_proj",
                down_path=f"{path}.down_proj",
                width=width,
                hidden=hidden,
                layout="gated",
                has_norm_after_down=False,
                norm_after_block=False,
                residual_multiplier=1.0,
            )
        )
    return tuple(layers)


def _feed_forward(model: PreTrainedModel, family: Family, kind: str, index: int) -> FeedForward:
    gate_path = f"{family.blocks}.{index}.{family.gate}"
    down_path = f"{family.blocks}.{index}.{family.down}"
    gate = _submodule(model, gate_path, kind)
    down = _submodule(model, down_path, kind)
    gate_in, gate_out = _dimensions(gate, gate_path)
    width, hidden = _dimensions(down, down_path)
    if (gate_in, gate_out) != (hidden, 2 * width if family.layout == "fused" else width):
        raise BakeoutError(
            f"{gate_path} ({gate_in} to {gate_out}) and {down_path} ({width} to {hidden}) do not belong together.",
            f"Use a checkpoint that keeps the shapes of {kind!r}.",
        )
    up = None
    if family.up is not None:
        up_path = f"{family.blocks}.{index}.{family.up}"
        up = _submodule(model, up_path, kind)
        if _dimensions(up, up_path) != (gate_in, gate_out):
            raise BakeoutError(
                f"{gate_path} and {up_path} do not belong together: their shapes differ.",
                f"Use a checkpoint that keeps the shapes of {kind!r}.",
            )
    return FeedForward(
        layer=index,
        block=_submodule(model, f"{family.blocks}.{index}", kind),
        gate=gate,
        up=up,
        down=down,
        gate_path=gate_path,
        down_path=down_path,
        width=width,
        hidden=hidden,
        layout=family.layout,
        has_norm_after_down=family.norm_after_down,
        # Some OPT checkpoints normalise as the first transformers did.
        norm_after_block=family.norm_after_block or not getattr(model.config, "do_layer_norm_before", True),
        residual_multiplier=float(getattr(model.config, "residual_multiplier", 1.0)),
    )


def _submodule(model: PreTrainedModel, path: str, kind: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BakeoutError(
            f"This {kind!r} model has no module {path}.", "Load it with AutoModelForCausalLM, without adapters."
        ) from None


def _dimensions(module: nn.Module, path: str) -> tuple[int, int]:
    """Input and output width of a linear layer."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and weight.ndim == 2:
        return weight.shape[1], weight.shape[0]
    if isinstance(module, Conv1D):
        return weight.shape[0], weight.shape[1]
    raise BakeoutError(
        f"{path} is a {type(module).__name__}, not a plain linear layer.",
        "Use the unquantised checkpoint, with adapters merged.",
    )
