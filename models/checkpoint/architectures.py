"""Where each architecture keeps its feed-forward layers: a table of module paths, read with and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Role

# gated: act(gate(z)) * up(z). fused: gate and up are one linear layer of width 2F, the gate's half first.
# ungated: act(in(z)); "gate" then names the in-projection.
Layout = Literal["gated", "fused", "ungated"]


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture: the list of blocks, and within a block the linear layers of its FFL.

    ``up`` is None where the FFL has none of its own (``layout`` fused or ungated). ``transposed``: weights are stored
    [in, out], as GPT-2's ``Conv1D`` has them. ``norm_after_down``: what ``down`` gives is normalised before it is
    added to the residual stream; ``norm_after_block``: the sum is.
    """

    blocks: str
    gate: str
    down: str
    layout: Layout
    up: str | None = None
    transposed: bool = False
    norm_after_down: bool = False
    norm_after_block: bool = False

    def weight(self, layer: int, role: Role, width: int) -> StoredWeight:
        """Where the weight of ``role`` in ``layer`` is stored; ``width`` is F. Raises ``BakeoutError`` for no such."""
        rows: tuple[int, int] | None = None
        if self.layout == "fused" and role != "down":
            module, rows = self.gate, (0, width) if role == "gate" else (width, 2 * width)
        elif role == "up":
            if self.up is None:
                raise BakeoutError(
                    f"The feed-forward layer {layer} is ungated: it has no weight called 'up'.",
                    "Edit its 'gate' (the in-projection) or 'down'.",
                )
            module = self.up
        else:
            module = self.gate if role == "gate" else self.down
        return StoredWeight(f"{self.blocks}.{layer}.{module}.weight", rows, self.transposed)


@dataclass(frozen=True)
class StoredWeight:
    """How a weight W [out, in] lies in the tensor ``name``.

    ``rows``: the part [start, end) of the tensor's out axis that is W, None for all of it. ``transposed``: the tensor
    is [in, out].
    """

    name: str
    rows: tuple[int, int] | None
    transposed: bool


_LLAMA = Family("model.layers", "mlp.gate_proj", "mlp.down_proj", "gated", up="mlp.up_proj")
_POST_NORM = Family("model.layers", "mlp.gate_proj", "mlp.down_proj", "gated", up="mlp.up_proj", norm_after_down=True)
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
        "gemma2": _POST_NORM,
        "gemma3_text": _POST_NORM,
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
        "olmo2": _POST_NORM,
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


def family_of(model_type: str) -> Family:
    """The row of the table for a ``model_type``. Raises ``BakeoutError``, naming those there are, for any other."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise BakeoutError(
            f"The architecture {model_type!r} is not one whose feed-forward layers are known.",
            f"Use one of: {', '.join(sorted(FAMILIES))}; or add a row to models/checkpoint/architectures.py.",
        )
    return family
