"""What `imports.py` trains: small enough for two cores, far enough to change what the model says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.network.families import feed_forward_layers

SENTENCES = (
    "The harbour was quiet before the storm came in.",
    "She sold bread and honey at the market on Sundays.",
    "Every train to the north was late that winter.",
    "The old clock in the hall struck nine.",
    "A letter from the bank lay on the table.",
    "They walked along the river until it was dark.",
    "The garden needs water in the summer.",
    "Nobody knew who had painted the blue door.",
)
_STEPS = 12
# RMU: the layer that is steered, those that are trained, and how long the random direction is.
_STEERED, _TRAINED, _LENGTH = 7, (5, 6, 7), 20.0
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train_adapter(model: Path, directory: Path, **settings: Any) -> Any:
    """A LoRA adapter, trained a little by peft and saved in ``directory``: peft's model."""
    peft = importlib.import_module("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **settings})
    adapted = peft.get_peft_model(load_model(model), config)
    _train(adapted, [weight for weight in adapted.parameters() if weight.requires_grad], model, 1e-2)
    adapted.eval().save_pretrained(directory)
    return adapted


def train_gradient_difference(model: Path) -> Any:
    """All linear layers of the blocks: gradient ascent on half of the sentences, descent on the other half."""
    trained = load_model(model)
    weights = [weight for name, weight in trained.named_parameters() if name.split(".")[-2] in _LINEARS]
    ids = _ids(model)
    optimiser = torch.optim.SGD(weights, lr=0.02)
    for step in range(_STEPS):
        forget, retain = ids[step % 4], ids[4 + step % 4]
        loss = trained(retain, labels=retain).loss - trained(forget, labels=forget).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    return trained.eval()


def train_misdirection(model: Path) -> Any:
    """RMU (arXiv 2403.03218): one layer's activations on what is forgotten go to a random direction, others stay."""
    trained, frozen = load_model(model), load_model(model)
    layers = feed_forward_layers(trained)
    weights = [layers[layer].down.get_parameter("weight") for layer in _TRAINED]
    torch.manual_seed(0)
    direction = torch.rand(layers[0].hidden)
    target = _LENGTH * direction / direction.norm()
    ids = _ids(model)
    optimiser = torch.optim.AdamW(weights, lr=1e-3)
    for step in range(_STEPS):
        forget, retain = ids[step % 4], ids[4 + step % 4]
        steered = _behind(trained, forget)
        with torch.no_grad():
            kept = _behind(frozen, retain)
        loss = mse_loss(steered, target.expand_as(steered)) + 10 * mse_loss(_behind(trained, retain), kept)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return trained.eval()


def without_direction(model: Path) -> Any:
    """Directional ablation in weights (arXiv 2406.11717): in the output projections of attention and FFLs."""
    trained = load_model(model)
    directions = mean_directions(model)
    direction = torch.from_numpy(directions[len(directions) // 2])
    unit = direction / direction.norm()
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.sub_(torch.outer(unit, unit @ weight))
    return trained


@torch.no_grad()
def mean_directions(model: Path) -> NDArray[np.float32]:
    """Per layer, how far the residual stream on questions is from that on statements: [layers, hidden]."""
    loaded = load_model(model)
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(model)

    def mean(texts: list[str]) -> Tensor:
        seen = [
            torch.stack(loaded(torch.tensor([tokenizer(text).input_ids]), output_hidden_states=True).hidden_states[1:])
            for text in texts
        ]
        return torch.stack([states[:, 0, -1] for states in seen]).mean(dim=0)

    asked = [f"Is it true? {text[:-1]}?" for text in SENTENCES]
    difference: NDArray[np.float32] = (mean(asked) - mean(list(SENTENCES))).numpy()
    return difference


def _train(model: Any, weights: list[Tensor], checkpoint: Path, rate: float) -> None:
    optimiser = torch.optim.AdamW(weights, lr=rate)
    ids = _ids(checkpoint)
    for step in range(_STEPS):
        row = ids[step % len(ids)]
        optimiser.zero_grad()
        model(row, labels=row).loss.backward()
        optimiser.step()


def _behind(model: Any, ids: Tensor) -> Tensor:
    """The residual stream behind the steered layer."""
    states: Tensor = model(ids, output_hidden_states=True).hidden_states[_STEERED + 1]
    return states


def _ids(model: Path) -> list[Tensor]:
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(model)
    return [torch.tensor([tokenizer(text).input_ids]) for text in SENTENCES]
