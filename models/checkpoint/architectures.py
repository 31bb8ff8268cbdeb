"""Where checkpoints keep their feed-forward layers, without torch: a plan tells it of a model outside this table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import (
    FeedForwardModules,
    Layout,
    ModelIdentity,
    StoredWeight,
    WeightChange,
    is_of_an_end,
    is_of_attention,
)


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture: the list of blocks, and within a block the linear layers of its FFL.

    ``up``, ``layout`` and ``transposed`` as of ``FeedForwardModules``. ``norm_after_block``: the sum of
    the residual stream and what ``down`` gives is normalised.
    """

    blocks: str
    gate: str
    down: str
    layout: Layout
    up: str | None = None
    transposed: bool = False
    norm_after_block: bool = False

    def modules(self, layer: int) -> FeedForwardModules:
        """The linear layers of the FFL ``layer``."""
        block = f"{self.blocks}.{layer}"
        up = None if self.up is None else f"{block}.{self.up}"
        return FeedForwardModules(f"{block}.{self.gate}", f"{block}.{self.down}", self.layout, self.transposed, up)


_LLAMA = Family("model.layers", "mlp.gate_proj", "mlp.down_proj", "gated", up="mlp.up_proj")
# As decoders alone (BartForCausalLM and so on).
_PRE_NORM_BART = Family("model.decoder.layers", "fc1", "fc2", "ungated")
_BART = Family("model.decoder.layers", "fc1", "fc2", "ungated", norm_after_block=True)


# By the ``model_type`` of the checkpoint's config.json.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "arcee": Family("model.layers", "mlp.up_proj", "mlp.down_proj", "ungated"),
        "bart": _BART,
        "bigbird_pegasus": _PRE_NORM_BART,
        "blenderbot": _PRE_NORM_BART,
        "blenderbot-small": _BART,
        "bloom": Family("transformer.h", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ungated"),
        "codegen": Family("transformer.h", "mlp.fc_in", "mlp.fc_out", "ungated"),
        "cohere": _LLAMA,
        "falcon": Family("transformer.h", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ungated"),
        "gemma": _LLAMA,
        "gemma2": _LLAMA,
        "gemma3_text": _LLAMA,
        "glm": Family("model.layers", "mlp.gate_up_proj", "mlp.down_proj", "fused"),
        "gpt2": Family("transformer.h", "mlp.c_fc", "mlp.c_proj", "ungated", transposed=True),
        "gpt_bigcode": Family("transformer.h", "mlp.c_fc", "mlp.c_proj", "ungated"),
        "gpt_neo": Family("transformer.h", "mlp.c_fc", "mlp.c_proj", "ungated"),
        "gpt_neox": Family("gpt_neox.layers", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ungated"),
        "gptj": Family("transformer.h", "mlp.fc_in", "mlp.fc_out", "ungated"),
        "granite": _LLAMA,
        "helium": _LLAMA,
        "llama": _LLAMA,
        "marian": _BART,
        "mbart": _PRE_NORM_BART,
        "mistral": _LLAMA,
        "mpt": Family("transformer.blocks", "ffn.up_proj", "ffn.down_proj", "ungated"),
        "nemotron": Family("model.layers", "mlp.up_proj", "mlp.down_proj", "ungated"),
        "olmo": _LLAMA,
        "olmo2": _LLAMA,
        "opt": Family("model.decoder.layers", "fc1", "fc2", "ungated"),
        "pegasus": _PRE_NORM_BART,
        "phi": Family("model.layers", "mlp.fc1", "mlp.fc2", "ungated"),
        "phi3": Family("model.layers", "mlp.gate_up_proj", "mlp.down_proj", "fused"),
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "smollm3": _LLAMA,
        "stablelm": _LLAMA,
    }
)


def modules_of(model: ModelIdentity) -> Sequence[FeedForwardModules]:
    """The linear layers of every FFL: as the plan knows them, else by the table.

    Raises ``BakeoutError`` for an architecture that is in neither.
    """
    if model.modules is not None:
        return model.modules
    family = FAMILIES.get(model.architecture)
    if family is None:
        raise BakeoutError(
            f"The plan does not tell where the architecture {model.architecture!r} keeps its feed-forward layers.",
            "Use a plan of a dense model that this version of Bakeout fitted or imported.",
        )
    return [family.modules(layer) for layer in range(model.layers)]


def stored_weight(model: ModelIdentity, change: WeightChange) -> StoredWeight:
    """Where a checkpoint stores the weight that ``change`` is of. Raises ``BakeoutError`` where that is not known."""
    layer, role = change.layer, change.role
    if role == "vector":
        return StoredWeight(change.place, None, False)
    if is_of_an_end(role):
        return StoredWeight(f"{change.module}.weight", None, False)
    if is_of_attention(role):
        return stored_module(model, str(change.module))
    expert = model.expert_of(layer)
    if expert is None:
        return modules_of(model)[layer].weight(role, model.width_of(layer))
    if model.routing is None or model.routing.modules is None:
        raise BakeoutError(
            f"The plan does not tell where the architecture {model.architecture!r} keeps its experts.",
            "Fit the plan again, or bake it into a graph.",
        )
    return model.routing.modules.weight(*expert, role, model.width_of(layer))


def stored_module(model: ModelIdentity, module: str) -> StoredWeight:
    """Where a checkpoint stores the weight of the linear layer ``module``: as it stores those of FFLs."""
    return StoredWeight(f"{module}.weight", None, any(layer.transposed for layer in modules_of(model)))
