"""Plans that edit weights, of any tiny model: random updates, zeroed columns, and a canary that is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from bakeout.models.network.ends import ends_of
from bakeout.models.network.families import experts, feed_forward_layers, feed_forwards_if_any, identity
from bakeout.models.plan import (
    Intervention,
    LowRankUpdate,
    Plan,
    Role,
    UpdatedVector,
    VectorUpdate,
    WeightUpdate,
    ZeroColumns,
    ZeroedColumns,
)
from bakeout.models.plan.attention_modules import block_of
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.weight_edits import edited_weights, weight_of

from tests.tiny_models import random_prompts

PROMPTS = random_prompts(24, seed=3, shortest=4, longest=9)


def low_rank_update(
    model: PreTrainedModel,
    *,
    layers: Sequence[int] = (0, 2),
    roles: Sequence[Role] | None = None,
    rank: int = 2,
    scale: float = 0.3,
    seed: int = 0,
) -> LowRankUpdate:
    """Random updates, ``scale`` times as large as the weights: of all the weights of ``layers``, or of ``roles``."""
    random = np.random.default_rng(seed)
    found = feed_forward_layers(model)
    updates = []
    for layer in layers:
        gated: tuple[Role, ...] = ("down", "gate", "up")
        for role in roles or (gated[:2] if found[layer].layout == "ungated" else gated):
            weight = weight_of(found[layer], role)
            left, right = random.normal(size=(len(weight), rank)), random.normal(size=(rank, weight.shape[1]))
            left *= scale * float(weight.detach().double().norm()) / np.linalg.norm(left @ right)
            updates.append(WeightUpdate(layer, role, left.astype(np.float32), right.astype(np.float32)))
    return LowRankUpdate("random", tuple(updates), RetainReport(details={"seed": seed}))


def vary_vectors(model: PreTrainedModel, seed: int = 5) -> PreTrainedModel:
    """The model, its norms and biases no longer ones and zeros: as a trained one's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, vector in _vectors(model):
            vector.add_(0.1 * torch.randn(vector.shape, generator=generator))
    return model


def vector_update(model: PreTrainedModel, *, scale: float = 0.4, seed: int = 0) -> VectorUpdate:
    """Noise on all norms and biases, those outside of blocks included."""
    random = np.random.default_rng(seed)
    last = len(feed_forward_layers(model)) - 1
    vectors = []
    for name, vector in _vectors(model):
        block = block_of(name)
        added = scale * random.normal(size=len(vector))
        before = vector.detach().float().numpy().copy()
        vectors.append(UpdatedVector(last if block is None else block, name, before, added))
    vectors.sort(key=lambda vector: (vector.layer, vector.parameter))
    return VectorUpdate("random", tuple(vectors), RetainReport(details={"seed": seed}))


def ends_update(model: PreTrainedModel, *, rank: int = 2, scale: float = 0.3, seed: int = 0) -> LowRankUpdate:
    """Random updates of the embedding and the head, or of the weight that is both."""
    random = np.random.default_rng(seed)
    last = len(feed_forward_layers(model)) - 1
    updates = []
    for module, role in ends_of(model).items():
        weight = model.get_parameter(f"{module}.weight").detach().double()
        left, right = random.normal(size=(len(weight), rank)), random.normal(size=(rank, weight.shape[1]))
        left *= scale * float(weight.norm()) / np.linalg.norm(left @ right)
        factors = left.astype(np.float32), right.astype(np.float32)
        updates.append(WeightUpdate(last if role == "head" else 0, role, *factors, module))
    return LowRankUpdate("random", tuple(updates), RetainReport(details={"seed": seed}))


def _vectors(model: PreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim == 1]


def zero_columns(*layers: int, columns: Sequence[int] = (1, 5, 8, 90)) -> ZeroColumns:
    """The same few columns of several layers."""
    return ZeroColumns(tuple(ZeroedColumns(layer, np.array(columns)) for layer in layers))


def edits_of_experts(model: PreTrainedModel, *, rank: int = 2, seed: int = 0) -> tuple[ZeroColumns, LowRankUpdate]:
    """A third of the columns of every second expert, and random updates of all the weights of the others."""
    random = np.random.default_rng(seed)
    first = len(feed_forwards_if_any(model))
    numbered = list(enumerate(experts(model), start=first))
    zeroed = (ZeroedColumns(layer, np.arange(0, expert.width, 3)) for layer, expert in numbered[::2])
    roles: tuple[Role, ...] = ("down", "gate", "up")
    updates = []
    for layer, expert in numbered[1::2]:
        for role in roles:
            weight = expert.weight(role).detach()
            left, right = random.normal(size=(len(weight), rank)), random.normal(size=(rank, weight.shape[1]))
            left *= 0.5 * float(weight.double().norm()) / np.linalg.norm(left @ right)
            updates.append(WeightUpdate(layer, role, left.astype(np.float32), right.astype(np.float32)))
    return ZeroColumns(tuple(zeroed)), LowRankUpdate("random", tuple(updates))


def plan_of(model: PreTrainedModel, digest: str, *interventions: Intervention) -> Plan:
    """A plan whose canary was measured with all interventions in force."""
    with edited_weights(model, interventions):
        canary = measure_canary(model, interventions, PROMPTS)
    names = {name for one in interventions for name in one.forgets}
    provenance = {"data": {name: {} for name in sorted(names)}, "versions": {"bakeout": "0"}}
    return Plan(identity(model, digest), interventions, canary, provenance)
