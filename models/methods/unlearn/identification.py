"""The low-rank matrices of a task, found layer by layer: what UNLEARN and LEARN (arXiv 2408.04140) share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.lora_modules import Module, adapted, linear_layers, summed
from bakeout.models.methods.unlearn.subspaces import input_second_moments, principal_directions, without
from bakeout.models.plan import Floats, LowRankUpdate
from bakeout.models.progress import Track
from bakeout.models.reference.weight_edits import edited_weights

Method = Literal["UNLEARN", "LEARN"]
_AIMS: dict[Method, str] = {"UNLEARN": "improbable", "LEARN": "certain"}


@dataclass(frozen=True)
class IdentificationOptions:
    """How a task's matrices are found: ``rank`` of each weight's, and for each layer AdamW's ``steps``.

    ``learning_rate`` falls to 0 over a layer's steps. UNLEARN is done with a layer before that once a batch's loss is
    under ``until``. LEARN is not: a batch may hold only what the model knows already.
    """

    rank: int = 4
    steps: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-2
    until: float = 0.02

    def __post_init__(self) -> None:
        if min(self.rank, self.steps, self.batch_size) < 1 or self.learning_rate <= 0 or self.until < 0:
            raise BakeoutError(
                "UNLEARN: rank, steps, batch_size and learning_rate must be positive, and until not negative.",
                "Leave them at their defaults.",
            )


def fit_tasks(
    model: PreTrainedModel,
    method: Method,
    tasks: Mapping[str, Sequence[Record]],
    similar: Mapping[str, Sequence[Record]],
    energy: float,
    scale: float,
    options: IdentificationOptions,
    seed: int,
    track: Track,
) -> LowRankUpdate:
    """The matrices of ``tasks``, found one after the other: taken away (UNLEARN) or added (LEARN)."""
    if not tasks or not scale > 0:
        raise BakeoutError(f"{method}: {len(tasks)} tasks at scale {scale}.", "Name a task, and a scale above 0.")
    end = _end_of_text(model) if method == "LEARN" else []
    texts = {name: _texts(method, name, records, end) for name, records in tasks.items()}
    kept = {name: [prompt + answer for prompt, answer in _texts(method, name, similar[name], [])] for name in similar}
    found: list[tuple[float, Module]] = []
    figures: dict[str, Any] = {}
    for name, task in texts.items():
        earlier = [LowRankUpdate(method, summed(model, found)[0])] if found else []
        with edited_weights(model, earlier):
            module, figures[name] = _identify(model, method, name, task, kept, energy, options, seed, track)
        found.append((scale, module))
    every, residual = summed(model, found)
    # A layer that found nothing left to do has zeros alone: no change of its weights, and no part of the plan.
    updates = tuple(update for update in every if update.left.any() and update.right.any())
    if not updates:
        raise BakeoutError(
            f"{method}: the model's answers to {', '.join(texts)} are {_AIMS[method]} already.",
            "Look at the data, or lower `until`.",
        )
    report = {
        "energy": energy if similar else None,
        "scale": scale,
        "seed": seed,
        **asdict(options),
        "truncation_residual": residual,
        "tasks": figures,
    }
    return LowRankUpdate(method, updates, report)


_Text = tuple[list[int], list[int]]


def _identify(
    model: PreTrainedModel,
    method: Method,
    name: str,
    texts: Sequence[_Text],
    similar: Mapping[str, Sequence[list[int]]],
    energy: float,
    options: IdentificationOptions,
    seed: int,
    track: Track,
) -> tuple[Module, dict[str, Any]]:
    """What is added to the weights for one task (for UNLEARN: -T), and per layer its last loss and free directions."""
    generator = torch.Generator().manual_seed(seed)
    losses: dict[str, float] = {}
    free: dict[str, int] = {}
    layers = _by_layer(model)
    with adapted(model, options.rank, seed) as adapters:
        for layer, modules in layers.items():
            bases = _protected(model, modules, similar, energy, track)
            for module in modules:
                right = adapters[module][1]
                basis = bases.get(module)
                free[module] = right.shape[1] - (0 if basis is None else basis.shape[1])
                if free[module] == 0:
                    raise BakeoutError(
                        f"{method}: the similar tasks take up every direction that {module} reads.",
                        "Choose a smaller energy, or fewer similar tasks.",
                    )
                _leave_alone(right, basis)
            trained = [(adapters[module], bases.get(module)) for module in modules]
            steps = range(options.steps)
            losses[str(layer)] = _train(
                model, method, texts, trained, options, generator, track(steps, f"{name}: layer {layer}", options.steps)
            )
        matrices = {
            module: (left.detach().float().cpu().clone(), right.detach().float().cpu().clone())
            for module, (left, right) in adapters.items()
        }
    return matrices, {"losses": losses, "free_directions": free}


def _train(
    model: PreTrainedModel,
    method: Method,
    texts: Sequence[_Text],
    trained: Sequence[tuple[tuple[Tensor, Tensor], Tensor | None]],
    options: IdentificationOptions,
    generator: torch.Generator,
    steps: Any,
) -> float:
    """Train one layer's matrices, in the directions that are free, and return the last loss."""
    weights = [weight for pair, _ in trained for weight in pair]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)
    last = 0.0
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 - step / options.steps)
        rows = torch.randint(len(texts), (options.batch_size,), generator=generator).tolist()
        with torch.enable_grad():
            loss = _loss(model, method, [texts[row] for row in rows])
            gradients = torch.autograd.grad(loss, weights)
        last = float(loss.detach())
        if method == "UNLEARN" and last < options.until:
            break
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        for (_, right), basis in trained:
            _leave_alone(right, basis)
    return last


def _loss(model: PreTrainedModel, method: Method, texts: Sequence[_Text]) -> Tensor:
    """The mean over the answers' tokens of -log p (LEARN) or -log(1 - p) (UNLEARN)."""
    padded = right_padded([prompt + answer for prompt, answer in texts])
    input_ids, mask = (torch.from_numpy(array).to(model.device) for array in padded)
    answers = torch.zeros_like(mask, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(texts):
        answers[row, len(prompt) : len(prompt) + len(answer)] = True
    output = model(input_ids=input_ids, attention_mask=mask, use_cache=False)
    logits = output.logits[:, :-1][answers[:, 1:]].float()
    tokens = input_ids[:, 1:][answers[:, 1:]]
    if method == "LEARN":
        return nn.functional.cross_entropy(logits, tokens)
    # log(1 - p) from the other tokens' logits: where p is nearly 1, 1 - p has no digits left.
    others = logits.scatter(1, tokens[:, None], -torch.inf)
    improbability: Tensor = logits.logsumexp(dim=-1) - others.logsumexp(dim=-1)
    return improbability.mean()


def _protected(
    model: PreTrainedModel,
    modules: Sequence[str],
    similar: Mapping[str, Sequence[list[int]]],
    energy: float,
    track: Track,
) -> dict[str, Tensor]:
    """Q of every module of a layer, float32 [in, k], from what the similar tasks send into it; none without any."""
    total: dict[str, Floats] = {}
    for name, sequences in similar.items():
        moments = input_second_moments(model, modules, sequences, description=f"inputs on {name}", track=track)
        for module, moment in moments.items():
            # Every task weighs alike, however many tokens it has and however large its activations are.
            total[module] = total.get(module, 0.0) + moment / np.trace(moment)
    return {
        module: torch.from_numpy(principal_directions(moment, energy)).float().to(model.device)
        for module, moment in total.items()
    }


@torch.no_grad()
def _leave_alone(right: Tensor, basis: Tensor | None) -> None:
    if basis is not None:
        right.copy_(without(right, basis))


def _by_layer(model: PreTrainedModel) -> dict[int, list[str]]:
    layers: dict[int, list[str]] = {}
    for name, layer, _ in linear_layers(model):
        layers.setdefault(layer, []).append(name)
    return layers


def _texts(method: Method, name: str, records: Sequence[Record], end: list[int]) -> list[_Text]:
    texts = [(record.prompt_ids, record.response_ids + end) for record in records if record.response_ids]
    if not texts or any(not prompt for prompt, _ in texts):
        raise BakeoutError(
            f"{method}: {name} has no row with a prompt and a response, or a row without a prompt.",
            "Give rows with `prompt` and `response`.",
        )
    return texts


def _end_of_text(model: PreTrainedModel) -> list[int]:
    end: Any = model.config.eos_token_id
    if end is None:
        raise BakeoutError("LEARN: the model's configuration names no end-of-text token.", "Set `eos_token_id`.")
    return [end[0] if isinstance(end, list) else end]
