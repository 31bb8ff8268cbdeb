"""The low-rank matrices of a task, identified layer by layer: shared by UNLEARN and LEARN (arXiv 2408.04140)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.lora_modules import LinearLayer, Module, adapted, linear_layers, summed
from bakeout.models.methods.lora_training import gradients_in_parts
from bakeout.models.methods.method import Method
from bakeout.models.methods.search_space import tuned
from bakeout.models.methods.unlearn.options import UnlearnOptions
from bakeout.models.methods.unlearn.subspaces import input_second_moments, principal_directions, without
from bakeout.models.methods.unlearn.trained_layers import TrainedLayer, TrainedLayers
from bakeout.models.network.devices import input_device
from bakeout.models.network.families import block_numbers
from bakeout.models.network.generation import named_ends
from bakeout.models.network.probe_cache import ProbeCache
from bakeout.models.plan import Floats, LowRankUpdate
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.progress import Track
from bakeout.models.reference.weight_edits import edited_weights

# What the answers' tokens become: improbable when UNLEARN subtracts the task's matrices, certain when LEARN adds them.
Aim = Literal["improbable", "certain"]

_REPORTED = {"rank", "steps", "batch_size", "learning_rate", "until"}


def fit_tasks(
    model: PreTrainedModel,
    method: Method,
    aim: Aim,
    tasks: Mapping[str, Sequence[Record]],
    similar: Mapping[str, Sequence[Record]],
    options: UnlearnOptions | LearnOptions,
    until: float | None,
    tokenizer: Tokenizer | None,
    track: Track,
    cache: ProbeCache | None,
) -> LowRankUpdate:
    """The update that makes the answers of ``tasks`` improbable or certain (``aim``), one task after the other.

    Each is identified with the earlier ones' matrices in force whole; the scale multiplies the sum of all. An answer's
    end becomes certain with it, and is no part of what becomes improbable: all answers end alike. The tokens that end
    one are those that the model's configurations and its ``tokenizer``, if given, name. Training of a layer ends early
    once a batch's loss is under ``until``, if that is given. ``cache`` keeps every layer that is trained.
    """
    ends = named_ends(model, tokenizer).tokens
    if aim == "certain" and not ends:
        raise BakeoutError(
            f"{method.title}: the model's configuration names no end-of-text token.", "Set `eos_token_id`."
        )
    aimed_at: Callable[[Record, Sequence[int]], list[int]] = Record.ended_ids if aim == "certain" else Record.answer_ids
    texts = {
        name: [(record.prompt_ids, aimed_at(record, ends)) for record in _answered(method, name, records)]
        for name, records in tasks.items()
    }
    kept = {
        name: [record.prompt_ids + record.response_ids for record in _answered(method, name, records)]
        for name, records in similar.items()
    }
    trained = _kept_layers(cache, method, texts, kept, options)
    modules: list[tuple[float, Module]] = []
    figures: dict[str, Any] = {}
    for name, task in texts.items():
        earlier = [LowRankUpdate(method.name, summed(model, modules)[0])] if modules else []
        with edited_weights(model, earlier):
            module, figures[name] = _identify(model, method, aim, name, task, kept, options, until, track, trained)
        modules.append((1.0, module))
    every, residual = summed(model, modules)
    # A layer with nothing left to do has only zeros: its weights do not change, and it is not part of the plan.
    updates = tuple(update for update in every if update.left.any() and update.right.any())
    if not updates:
        raise BakeoutError(
            f"{method.title}: the model's answers to {', '.join(texts)} are {aim} already.",
            "Look at the data." if until is None else "Look at the data, or lower `until`.",
        )
    report = {
        "energy": options.energy if similar else None,
        "scale": tuned(options.scale),
        "seed": options.seed,
        **options.model_dump(include=_REPORTED),
        "truncation_residual": residual,
        "tasks": figures,
    }
    return LowRankUpdate(method.name, updates, RetainReport(details=report)).scaled(tuned(options.scale))


_Text = tuple[list[int], list[int]]


def _kept_layers(
    cache: ProbeCache | None,
    method: Method,
    texts: Mapping[str, Sequence[_Text]],
    similar: Mapping[str, Sequence[list[int]]],
    options: UnlearnOptions | LearnOptions,
) -> TrainedLayers:
    """What is trained with ``options``, apart from their scale, on these tasks."""
    settings = {
        "method": method.name,
        "options": options.model_dump(include=_REPORTED | {"energy", "experts", "seed"}),
        "rows": [*(len(task) for task in texts.values()), "similar", *(len(task) for task in similar.values())],
    }
    of_tasks = [ids for task in texts.values() for text in task for ids in text]
    return TrainedLayers(cache, settings, of_tasks + [ids for task in similar.values() for ids in task])


def _identify(
    model: PreTrainedModel,
    method: Method,
    aim: Aim,
    name: str,
    texts: Sequence[_Text],
    similar: Mapping[str, Sequence[list[int]]],
    options: UnlearnOptions | LearnOptions,
    until: float | None,
    track: Track,
    trained: TrainedLayers,
) -> tuple[Module, dict[str, Any]]:
    """What is added to the weights for one task (for UNLEARN: -T), and per layer its last loss and free directions."""
    generator = torch.Generator().manual_seed(options.seed)
    losses: dict[str, float] = {}
    free: dict[str, int] = {}
    layers = _by_layer(model, options)
    with adapted(model, options.rank, options.seed, with_experts=options.experts) as adapters:

        def train(layer: int, linears: Sequence[LinearLayer]) -> TrainedLayer:
            bases = _protected(model, linears, similar, options.energy, track)
            directions = {}
            for module in (linear.name for linear in linears):
                right = adapters[module][1]
                basis = bases.get(module)
                directions[module] = right.shape[1] - (0 if basis is None else basis.shape[1])
                if directions[module] == 0:
                    raise BakeoutError(
                        f"{method.title}: the similar tasks take up every direction that {module} reads.",
                        "Choose a smaller energy, or fewer similar tasks.",
                    )
                _leave_alone(right, basis)
            pairs = [(adapters[linear.name], bases.get(linear.name)) for linear in linears]
            steps = track(range(options.steps), f"{name}: layer {layer}", options.steps)
            loss = _train(model, aim, texts, pairs, options, until, generator, steps)
            matrices = {linear.name: _copied(adapters[linear.name]) for linear in linears}
            return TrainedLayer(matrices, directions, loss, generator.get_state())

        for layer, linears in layers.items():
            done = trained.layer([linear.name for linear in linears], partial(train, layer, linears))
            _set(adapters, done.matrices)
            generator.set_state(done.random_state)
            losses[str(layer)] = done.loss
            free |= done.free_directions
        matrices = {module: _copied(pair) for module, pair in adapters.items()}
    return matrices, {"losses": losses, "free_directions": free}


def _train(
    model: PreTrainedModel,
    aim: Aim,
    texts: Sequence[_Text],
    trained: Sequence[tuple[tuple[Tensor, Tensor], Tensor | None]],
    options: UnlearnOptions | LearnOptions,
    until: float | None,
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
        last, gradients = _gradients(model, aim, [texts[row] for row in rows], weights)
        if until is not None and last < until:
            break
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        for (_, right), basis in trained:
            _leave_alone(right, basis)
    return last


def _gradients(
    model: PreTrainedModel, aim: Aim, texts: Sequence[_Text], weights: Sequence[Tensor]
) -> tuple[float, list[Tensor | None]]:
    """The mean over the answers' tokens of -log p (certain) or -log(1 - p) (improbable), and its gradients."""
    lengths = [len(prompt) + len(answer) for prompt, answer in texts]
    tokens = sum(len(answer) for _, answer in texts)
    return gradients_in_parts(
        model, lengths, weights, lambda part: _loss(model, aim, [texts[row] for row in part]) / tokens
    )


def _loss(model: PreTrainedModel, aim: Aim, texts: Sequence[_Text]) -> Tensor:
    """The sum over the answers' tokens of -log p (certain) or -log(1 - p) (improbable)."""
    padded = right_padded([prompt + answer for prompt, answer in texts])
    input_ids, mask = (torch.from_numpy(array).to(input_device(model)) for array in padded)
    answers = torch.zeros_like(mask, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(texts):
        answers[row, len(prompt) : len(prompt) + len(answer)] = True
    output = model(input_ids=input_ids, attention_mask=mask, use_cache=False)
    logits = output.logits[:, :-1][answers[:, 1:]].float()
    tokens = input_ids[:, 1:][answers[:, 1:]]
    if aim == "certain":
        return nn.functional.cross_entropy(logits, tokens, reduction="sum")
    # log(1 - p) from the other tokens' logits: where p is nearly 1, 1 - p has no digits left.
    others = logits.scatter(1, tokens[:, None], -torch.inf)
    improbability: Tensor = logits.logsumexp(dim=-1) - others.logsumexp(dim=-1)
    return improbability.sum()


def _protected(
    model: PreTrainedModel,
    linears: Sequence[LinearLayer],
    similar: Mapping[str, Sequence[list[int]]],
    energy: float,
    track: Track,
) -> dict[str, Tensor]:
    """Q of every module of a layer, float32 [in, k], from what the similar tasks send into it; none without any."""
    total: dict[str, Floats] = {}
    for name, sequences in similar.items():
        moments = input_second_moments(model, linears, sequences, description=f"inputs on {name}", track=track)
        for module, moment in moments.items():
            # Every task has the same weight, whatever its number of tokens and the size of its activations. What sends
            # nothing into a module, as through neurons that are all off, is left alone by any change of it.
            if (size := np.trace(moment)) > 0:
                total[module] = total.get(module, 0.0) + moment / size
    return {
        module: torch.from_numpy(principal_directions(moment, energy)).float().to(model.device)
        for module, moment in total.items()
    }


def _copied(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """B and A as they are now, float32 on the CPU."""
    left, right = (matrix.detach().float().cpu().clone() for matrix in pair)
    return left, right


@torch.no_grad()
def _set(adapters: Module, matrices: Module) -> None:
    """Give the adapters of a layer the matrices that were trained."""
    for module, trained in matrices.items():
        for parameter, matrix in zip(adapters[module], trained, strict=True):
            parameter.copy_(matrix)


@torch.no_grad()
def _leave_alone(right: Tensor, basis: Tensor | None) -> None:
    if basis is not None:
        right.copy_(without(right, basis))


def _by_layer(model: PreTrainedModel, options: UnlearnOptions | LearnOptions) -> dict[int, list[LinearLayer]]:
    """What is trained together: an FFL, or with its experts all that a mixture's block holds, named by the first."""
    linears = linear_layers(model, with_experts=options.experts)
    if all(linear.expert is None for linear in linears):
        of_layer = {linear.layer: linear.layer for linear in linears}
    else:
        of_layer = dict(enumerate(block_numbers(model)))
    together: dict[int, list[LinearLayer]] = {}
    for linear in sorted(linears, key=lambda linear: (of_layer[linear.layer], linear.layer)):
        together.setdefault(of_layer[linear.layer], []).append(linear)
    return {linears[0].layer: linears for linears in together.values()}


def _answered(method: Method, name: str, records: Sequence[Record]) -> list[Record]:
    """The rows with a response. Raises ``BakeoutError`` for data without any, and for one without a prompt."""
    answered = [record for record in records if record.response_ids]
    if not answered or any(not record.prompt_ids for record in answered):
        raise BakeoutError(
            f"{method.title}: {name} has no row with a prompt and a response, or a row without a prompt.",
            "Give rows with `prompt` and `response`.",
        )
    return answered
