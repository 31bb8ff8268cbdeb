"""The mixtures of experts of a PyTorch model: their routers and their experts, found by structure.

A mixture is a module with a child ``experts`` (a list of FFLs, or one module that holds them as 3-D tensors) and
beside it a router, which scores every expert from the mixture's input. FFLs outside of ``experts`` see every token:
shared experts, the dense layers that some models begin with, and MLPs parallel to the mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError

EXPERTS = "experts"
# To how many experts a token is sent, as configurations call it.
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k")


@dataclass(frozen=True, eq=False)
class Router:
    """The router of one mixture; ``index`` counts routers from the embedding upwards.

    Its input is what ``module`` reads, [batch, tokens, hidden] or [batch * tokens, hidden]. ``experts`` of them are
    scored, and a token is sent to ``chosen`` of these. ``path`` is the mixture's name in the model. ``correction``:
    what a mixture adds to its router's probabilities before it chooses, [experts], where the router does not itself.
    """

    index: int
    module: nn.Module
    path: str
    experts: int
    chosen: int
    hidden: int
    correction: Tensor | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """The score of every expert before any normalisation: [..., hidden] to [..., experts].

        Raises ``BakeoutError`` where the weight is offloaded.
        """
        weight, bias = self.module.get_parameter("weight"), getattr(self.module, "bias", None)
        require_in_memory(weight, self.path)
        # Some models route in float32, whatever their own type.
        return linear(inputs.float(), weight.float(), None if bias is None else bias.float())

    def choice(self, output: Any) -> Tensor:
        """Which experts an output of ``module`` sends each token to: bool [tokens, experts].

        Some routers give the experts' numbers, others their scores.
        """
        parts = output if isinstance(output, tuple) else (output,)
        numbers = next((part for part in parts if isinstance(part, Tensor) and not part.is_floating_point()), None)
        if numbers is None:
            scores = parts[0].flatten(0, -2)
            if self.correction is not None:
                scores = scores.float().softmax(dim=-1) + self.correction
            numbers = scores.topk(self.chosen, dim=-1).indices
        chosen = torch.zeros(len(numbers), self.experts, dtype=torch.bool, device=numbers.device)
        return chosen.scatter_(1, numbers, True)


def routers(model: PreTrainedModel) -> tuple[Router, ...]:
    """The routers of ``model``, from the embedding upwards; none of a dense model.

    Raises ``BakeoutError`` for a mixture whose router is not a single matrix, and where the configuration does not say
    to how many experts a token is sent.
    """
    return tuple(_router(model, path, number) for number, path in enumerate(_mixtures(model)))


def require_in_memory(weight: Tensor, path: str) -> None:
    """Raise ``BakeoutError`` where a ``weight`` of the mixture ``path`` is offloaded: its module alone can read it."""
    if weight.is_meta:
        raise BakeoutError(
            f"{path} is a mixture of experts, and offloaded.", "Use a `device_map` that keeps it in memory."
        )


def is_expert(path: str) -> bool:
    """Whether the module called ``path`` is an expert of a mixture, or in one: not every token goes through it."""
    return EXPERTS in path.split(".")


def _mixtures(model: PreTrainedModel) -> Iterator[str]:
    for path, module in model.named_modules():
        if path.endswith(f".{EXPERTS}") and any(True for _ in module.parameters()):
            yield path.removesuffix(f".{EXPERTS}")


def _router(model: PreTrainedModel, path: str, index: int) -> Router:
    mixture = model.get_submodule(path)
    experts: Any = mixture.get_submodule(EXPERTS)
    count = len(experts) if isinstance(experts, nn.ModuleList) else len(next(experts.parameters()))
    for name, module in mixture.named_children():
        weight = getattr(module, "weight", None)
        if name != EXPERTS and isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == count:
            return Router(index, module, path, count, _chosen(model, path), weight.shape[1], _correction(mixture, name))
    raise BakeoutError(
        f"{path} has {count} experts, and no router that is one matrix.",
        "Use a model whose mixtures are routed by one linear layer.",
    )


def _chosen(model: PreTrainedModel, path: str) -> int:
    """To how many experts a token is sent."""
    config = model.config.get_text_config()
    for name in _CHOSEN:
        if isinstance(chosen := getattr(config, name, None), int):
            return chosen
    raise BakeoutError(
        f"{path} is a mixture of experts, and the configuration does not say to how many of them a token is sent.",
        f"Use a model whose configuration has one {' or '.join(_CHOSEN)}.",
    )


def _correction(mixture: nn.Module, router: str) -> Tensor | None:
    """The bias of a mixture that stands outside of its router (ERNIE 4.5): [experts]."""
    for name, value in mixture.named_parameters():
        if name.endswith("correction_bias") and name.split(".")[0] not in (EXPERTS, router):
            return value.detach().flatten()
    return None
