"""Where each architecture keeps its feed-forward layers: a table of module paths, and how to read and write there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import ModelIdentity

# gated: act(gate(z)) * up(z). fused: gate and up are one linear layer of width 2F, the gate's half first.
# ungated: act(in(z)); "gate" then names the in-projection.
Layout = Literal["gated", "fused", "ungated"]


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture: the list of blocks, and within a block the two ends of its FFL."""

    blocks: str
    gate: str
    down: str
    layout: Layout


_LLAMA = Family("model.layers", "mlp.gate_proj", "mlp.down_proj", "gated")

# By the ``model_type`` of the checkpoint's config.json.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "falcon": Family("transformer.h", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ungated"),
        "gemma": _LLAMA,
        "gemma2": _LLAMA,
        "gemma3_text": _LLAMA,
        "gpt2": Family("transformer.h", "mlp.c_fc", "mlp.c_proj", "ungated"),
        "gpt_bigcode": Family("transformer.h", "mlp.c_fc", "mlp.c_proj", "ungated"),
        "gpt_neox": Family("gpt_neox.layers", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ungated"),
        "granite": _LLAMA,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "olmo2": _LLAMA,
        "opt": Family("model.decoder.layers", "fc1", "fc2", "ungated"),
        "phi": Family("model.layers", "mlp.fc1", "mlp.fc2", "ungated"),
        "phi3": Family("model.layers", "mlp.gate_up_proj", "mlp.down_proj", "fused"),
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "smollm3": _LLAMA,
        "stablelm": _LLAMA,
    }
)


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One feed-forward layer. Its key vector [batch, tokens, F] is the input of ``down``.

    ``gate_path`` and ``down_path`` are the modules' names in the model; ``width`` is F, ``hidden`` the size of the
    residual stream. Some architectures (OPT) run their FFL on [batch * tokens, ...]: whoever hooks these modules
    must expect tensors without a batch dimension.
    """

    layer: int
    gate: nn.Module
    down: nn.Module
    gate_path: str
    down_path: str
    width: int
    hidden: int
    layout: Layout

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
    layers of one width that the table promises (quantised or adapter-wrapped ones, mixtures of experts).
    """
    kind = model.config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        raise BakeoutError(
            f"The architecture {kind!r} is not one whose feed-forward layers are known.",
            f"Use one of: {', '.join(sorted(FAMILIES))}; or add a row to models/families.py.",
        )
    blocks = _submodule(model, family.blocks, kind)
    layers = tuple(_feed_forward(model, family, kind, index) for index in range(len(list(blocks.children()))))
    if len({(layer.width, layer.hidden) for layer in layers}) != 1:
        raise BakeoutError(
            f"The feed-forward layers of this {kind!r} model differ in width, or there are none.",
            "Use a checkpoint whose layers all have one width.",
        )
    return layers


def identity(model: PreTrainedModel, digest: str) -> ModelIdentity:
    """What a plan keeps of ``model``. ``digest`` is ``models.checkpoint.weights_digest`` of its checkpoint."""
    layers = feed_forward_layers(model)
    return ModelIdentity(
        architecture=model.config.model_type,
        layers=len(layers),
        width=layers[0].width,
        hidden=layers[0].hidden,
        vocabulary=model.config.vocab_size,
        digest=digest,
    )


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
    return FeedForward(index, gate, down, gate_path, down_path, width, hidden, family.layout)


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
