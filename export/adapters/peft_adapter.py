"""A plan's low-rank updates as a PEFT LoRA adapter: what peft computes on the base model is what is baked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from bakeout.models.checkpoint.architectures import modules_of, stored_weight
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import new_directory, require_new
from bakeout.models.plan import Floats32, Plan, Role, WeightChange, WeightRole, is_of_an_end, is_of_attention
from bakeout.models.plan.arrays import Array
from bakeout.models.sources.peft_adapter import CONFIG, WEIGHTS

_REMEDY = "Bake the plan, or combine plans of low-rank updates alone."
# The rows of a fused linear.
_FUSED: tuple[Role, ...] = ("gate", "up")
Factors = tuple[Floats32, Floats32]


def export_peft_adapter(plan: Plan, output: Path, *, base: str | None = None) -> dict[str, int]:
    """Write the directory ``output`` as an adapter; gives the ranks of its modules, by their names.

    A module's factors are those of all its updates side by side; alpha is the rank, so that nothing scales them.
    ``base``: the name that the adapter gives its base model. Raises ``BakeoutError`` for a plan with anything else than
    low-rank updates.
    """
    require_new(output)
    layers = modules_of(plan.model)
    is_fused = any(layer.layout == "fused" for layer in layers)
    modules: dict[str, dict[WeightRole, list[Factors]]] = {}
    for intervention in plan.interventions:
        changes = intervention.weight_changes()
        if not changes or any(change.low_rank_factors is None for change in changes):
            raise BakeoutError(f"A PEFT adapter does not carry {intervention.title}.", _REMEDY)
        if any(is_of_an_end(change.role) for change in changes):
            raise BakeoutError("A PEFT adapter of Bakeout does not carry edits of embeddings and heads.", _REMEDY)
        if any(not is_of_attention(change.role) and plan.model.expert_of(change.layer) for change in changes):
            raise BakeoutError("A PEFT adapter does not carry edits of experts.", _REMEDY)
        for change in changes:
            _collect(modules, change, plan)
    factors = {name: _joined(own, is_fused) for name, own in modules.items()}
    tensors: dict[str, Array] = {}
    for name, (left, right) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = right
        tensors[f"base_model.model.{name}.lora_B.weight"] = left
    ranks = {name: len(right) for name, (_, right) in sorted(factors.items())}
    with new_directory(output) as directory:
        (directory / WEIGHTS).write_bytes(save_tensors(tensors, {"format": "pt"}))
        config = json.dumps(_config(ranks, any(layer.transposed for layer in layers), base), indent=2, sort_keys=True)
        (directory / CONFIG).write_text(config + "\n", encoding="utf-8")
    return ranks


def _collect(modules: dict[str, dict[WeightRole, list[Factors]]], change: WeightChange, plan: Plan) -> None:
    name = stored_weight(plan.model, change).name.removesuffix(".weight")
    assert change.low_rank_factors is not None, "changes without factors are refused before"
    modules.setdefault(name, {}).setdefault(change.role, []).append(change.low_rank_factors)


def _joined(own: dict[WeightRole, list[Factors]], is_fused: bool) -> Factors:
    """One pair of factors [out, r] and [r, in] of a module: of a fused one, gate's rows lie before up's."""
    roles: Sequence[WeightRole] = _FUSED if is_fused and own.keys() <= set(_FUSED) else tuple(own)
    columns, rows = [], []
    for role in (role for role in roles if role in own):
        for left, right in own[role]:
            above = [np.zeros((len(left), left.shape[1]), np.float32)] * roles.index(role)
            below = [np.zeros((len(left), left.shape[1]), np.float32)] * (len(roles) - 1 - roles.index(role))
            columns.append(np.concatenate([*above, left, *below]))
            rows.append(right)
    return np.ascontiguousarray(np.concatenate(columns, axis=1)), np.ascontiguousarray(np.concatenate(rows))


def _config(ranks: dict[str, int], transposed: bool, base: str | None) -> dict[str, Any]:
    largest = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != largest}
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": largest,
        "rank_pattern": others,
        "target_modules": sorted(ranks),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
