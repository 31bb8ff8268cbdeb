"""Mixtures of experts whose blocks a trace gets right.

transformers' own blocks run the experts that some token was sent to, and a trace keeps just those that its example
happened to reach: the graph would be silently wrong for every other prompt. Here every expert runs on the tokens that
are sent to it, which can be none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@contextmanager
def traceable_mixtures(model: PreTrainedModel) -> Iterator[None]:
    """A context in which every expert is part of what is traced."""
    with ExitStack() as stack:
        for block in model.modules():
            name = type(block).__name__
            if name == "DeepseekV3MoE":
                stack.enter_context(patch.object(block, "moe", partial(_every_expert, block)))
            elif name in ("MixtralSparseMoeBlock", "Qwen2MoeSparseMoeBlock"):
                stack.enter_context(patch.object(block, "forward", partial(_sparse_block, block)))
        yield


def _sparse_block(block: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass of Mixtral's and Qwen2-MoE's blocks, and the router's logits."""
    import torch

    rows = hidden_states.view(-1, hidden_states.shape[-1])
    logits = block.gate(rows)
    weights, selected = torch.topk(torch.softmax(logits, dim=1, dtype=torch.float), block.top_k, dim=-1)
    # Mixtral's weights always have the sum 1.
    if getattr(block, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    result = _every_expert(block, rows, selected, weights.to(rows.dtype))
    if hasattr(block, "shared_expert"):
        result = result + torch.sigmoid(block.shared_expert_gate(rows)) * block.shared_expert(rows)
    return result.view(hidden_states.shape), logits


def _every_expert(block: Any, rows: Tensor, selected: Tensor, weights: Tensor) -> Tensor:
    """The sum of the selected experts' outputs: rows [tokens, hidden], selected and weights [tokens, chosen]."""
    import torch

    result = torch.zeros_like(rows, dtype=weights.dtype)
    experts: nn.ModuleList = block.experts
    for number, expert in enumerate(experts):
        token, place = torch.where(selected == number)
        result = result.index_add(0, token, expert(rows[token]).to(weights.dtype) * weights[token, place, None])
    return result.to(rows.dtype)
