"""Checks of an artifact that is a checkpoint: its edited tensors, canary and parity, through ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.verification.parity import NEW_TOKENS
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.checkpoint_writer import tensor_digests
from bakeout.models.data.padding import left_padded
from bakeout.models.plan import Plan, PlanError
from bakeout.models.plan.canary_check import CanaryMatch, compare_canary, fitted_tolerance
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Where base and artifact compute in one precision, nothing but the order of sums differs.
_LOGITS = 1e-3
_CANARY = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.1}
_BATCH = 16


def check_tensors(directory: Path, receipts: Sequence[Receipt]) -> tuple[bool, str]:
    """Whether the edited tensors have the digests of their last receipts."""
    expected = {receipt.tensor: receipt.after for receipt in receipts}
    digests = tensor_digests(directory, expected)
    if wrong := sorted(name for name, digest in expected.items() if digests.get(name) != digest):
        return False, f"not as its receipt has it: {', '.join(wrong)}"
    return True, f"{len(expected)} edited tensors as their receipts have them"


def match_checkpoint_canary(directory: Path, plan: Plan, receipts: Sequence[Receipt]) -> tuple[CanaryMatch, ...]:
    """Run the plan's canary through the edited checkpoint: how near it comes, per intervention."""
    from bakeout.models.reference.canary import canary_values

    measured = canary_values(load_model(directory), plan.interventions, plan.canary.input_ids)
    tolerance = max(_CANARY[_stored_type(receipts)], fitted_tolerance(plan))
    return tuple(
        compare_canary(expected, values, intervention, tolerance)
        for expected, values, intervention in zip(plan.canary.expected, measured, plan.interventions, strict=True)
    )


def check_checkpoint_parity(
    directory: Path,
    plan: Plan,
    receipts: Sequence[Receipt],
    base: Checkpoint,
    prompts: Sequence[Sequence[int]],
    track: Track,
) -> tuple[bool, str]:
    """Whether the edited checkpoint generates what the base model generates with the edits made by their formulas.

    Both compute in float32; the edited weights of both are rounded to the type that they are stored in. Greedy text of
    up to 16 tokens after each prompt, and the logits behind it.
    """
    import torch

    from bakeout.models.network.devices import input_device
    from bakeout.models.network.generation import within_context
    from bakeout.models.reference.reference_model import Reference

    if base.digest != plan.model.digest:
        return False, f"{base.directory} is not the model that the plan was fitted on: its weights' digest differs"
    baked = load_model(directory)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    batches = [
        cut
        for start in range(0, len(order), _BATCH)
        for cut in within_context(baked, order[start : start + _BATCH], prompts, NEW_TOKENS)
    ]
    equal, largest = 0, 0.0
    model = base.load()
    device = input_device(model)
    with Reference(model, plan, stored_as=getattr(torch, _stored_type(receipts))) as reference:
        for rows, room in track(batches, "comparing with the PyTorch reference", len(batches)):
            ids, mask = map(torch.from_numpy, left_padded([prompts[row] for row in rows]))
            generated, values = reference.generate(ids.to(device), mask.to(device), room)
            tokens, expected = generated.cpu(), values.float().cpu()
            logits = _logits(baked, ids, mask, tokens)
            equal += int((logits.argmax(dim=-1) == tokens).all(dim=-1).sum())
            largest = max(largest, float((logits - expected).abs().max()))
    return equal == len(prompts) and largest <= _LOGITS, (
        f"{equal} of {len(prompts)} prompts answered alike to the token, largest logit difference {largest:.1e} "
        f"(at most {_LOGITS:g})"
    )


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """The logits [batch, n, vocabulary] with which ``model`` generates each of ``tokens`` [batch, n] after ``ids``."""
    import torch

    from bakeout.models.network.generation import is_told_positions

    # The last token is generated, not read: there may be no place left for it.
    read = tokens[:, :-1]
    attention_mask = torch.cat([mask, torch.ones_like(read)], dim=1)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=torch.cat([ids, read], dim=1),
            attention_mask=attention_mask,
            use_cache=False,
            **({"position_ids": positions} if is_told_positions(model) else {}),
        ).logits
    return logits[:, ids.shape[1] - 1 :]


def _stored_type(receipts: Sequence[Receipt]) -> str:
    """The type that the edited weights are stored in, as NumPy and torch call it."""
    name = str(receipts[0].detail.get("dtype"))
    if name not in _CANARY:
        raise PlanError(f"The receipts name no type that weights are stored in, but {name!r}.", "Bake again.")
    return name
