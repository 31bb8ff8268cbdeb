"""Llamas with random weights, and plans for them whose outcome is known beforehand."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bakeout.models.plan import (
    AdjustedLayer,
    Canary,
    Cubes,
    Intervention,
    KeySpaceDetection,
    ModelIdentity,
    NeuronAdjust,
    Plan,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeout.models.plan import Coin

# The pre-activations' deviation under transformers' initialisation (0.02 per weight, 768 inputs).
DEVIATION = 0.55
REFUSAL = (7, 8, 9, 10, 11, 12, 13, 1)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama; ``width`` is F."""

    layers: int
    hidden: int
    width: int
    vocabulary: int
    heads: int
    key_value_heads: int
    head_size: int
    context: int

    def configuration(self) -> dict[str, Any]:
        """The arguments of ``LlamaConfig``."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "vocab_size": self.vocabulary,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }


def random_llama(shape: Shape, seed: int = 0) -> PreTrainedModel:
    """A Llama of this shape, fp32, in evaluation mode, with the weights that training would start from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**shape.configuration())).eval()
    return model


def neuron_adjust(layers: int, width: int, coin: Coin, share: float = 0.03, seed: int = 0) -> NeuronAdjust:
    """Neuron Adjust of ``share`` of all neurons of FFLs, drawn at random; about half of their values are shifted."""
    chosen = np.random.default_rng(seed).permutation(layers * width)[: round(share * layers * width)]
    adjusted = []
    for layer in range(layers):
        neurons = np.sort(chosen[chosen // width == layer] % width)
        deviation = np.full(len(neurons), DEVIATION)
        adjusted.append(
            AdjustedLayer(layer, neurons, DEVIATION / 2 * np.ones(len(neurons)), deviation, -deviation / 2, deviation)
        )
    return NeuronAdjust(coin, tuple(adjusted))


def key_space_detection(shape: Shape, *, refuses: bool, layer: int) -> KeySpaceDetection:
    """A cube about 0 that every key vector is in (``refuses``), or none."""
    return KeySpaceDetection(
        layers=(layer,),
        regions=Cubes(np.zeros((1, shape.width)), np.ones((1, shape.width))),
        alpha=np.array([1e6 if refuses else 1e-6]),
        skills=("everything" if refuses else "nothing",),
        refusal=np.array(REFUSAL),
    )


def plan_of(shape: Shape, *interventions: Intervention) -> Plan:
    """A plan that holds these interventions and expects nothing of its canary."""
    return Plan(
        model=ModelIdentity("llama", shape.layers, shape.width, shape.hidden, shape.vocabulary, "0" * 64),
        interventions=interventions,
        canary=Canary(np.zeros((1, 1), np.int64), tuple(np.full((1, 1), np.nan) for _ in interventions)),
    )


def export(model: PreTrainedModel, directory: Path, dtype: Literal["fp32", "fp16"] = "fp32") -> Path:
    """Export ``model`` to ``directory/model.onnx``, its weights beside it, and return that path."""
    from bakeout.export.exporting.onnx_export import export_checkpoint

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as checkpoint:
        model.save_pretrained(checkpoint)
        return export_checkpoint(Path(checkpoint), directory, dtype)


def bake(directory: Path, shape: Shape, intervention: Intervention) -> Path:
    """``directory/baked.onnx``: the graph that lies there, baked, with the same data file."""
    from bakeout.graph_passes.apply import apply_plan
    from bakeout.graph_passes.graph.graph_file import load_graph, save_graph

    model = load_graph(directory / "model.onnx")
    apply_plan(model, plan_of(shape, intervention))
    path = directory / "baked.onnx"
    # The one before: its session has read it.
    path.unlink(missing_ok=True)
    save_graph(model, path)
    return path
