"""Where LUNAR (arXiv 2502.07218) sends the activations of what is to be forgotten, and which layer does it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.methods.lunar.options import Aim
from bakeout.models.methods.lunar.sublayers import sublayers
from bakeout.models.methods.lunar.token_rows import TokenRows, flat_positions, residual_stream, residual_streams
from bakeout.models.network.devices import in_float64, input_device, tokens_at_once
from bakeout.models.network.families import model_limits, text_config
from bakeout.models.network.probing import Batch, batches_by_length, hooked
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked

# Numbers of residual streams that are held at once (512 MiB): as many layers as that allows are probed in one pass.
_MOST_RESIDUALS = 1 << 26


@dataclass(frozen=True, eq=False)
class Redirection:
    """Where the rows of the forget prompts are sent in one layer.

    ``direction``: r, float64 [hidden]. ``targets``: the residual stream to reach behind the block, float64
    [rows, hidden].
    """

    direction: Floats
    targets: Floats


def redirections(
    model: PreTrainedModel,
    forget: TokenRows,
    reference: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    aim: Aim,
    coefficient: float,
    batch_size: int,
    with_experts: bool = False,
    track: Track = untracked,
) -> dict[int, Redirection]:
    """The targets of the forget rows in every layer of ``layers``, from the model as it is.

    The direction is the paper's: r = mean over the reference prompts - mean over the forget prompts of the residual
    stream behind block l at a prompt's last token, not normalised. With aim ``shift``, the paper's, a row's target
    is a + c r. With aim ``reference``, our reading, it is a + c (m - a), where m is the mean over the reference
    prompts' tokens that are the same input token as the row's (over all of their tokens where none is): at c = 1 rows
    that differ only in what is to be forgotten have one target, and nothing is left of the difference that a step
    back along r could bring to light. ``reference`` are the prompts' tokens.
    """
    whole = TokenRows(tuple(map(list, forget.sequences)), tuple([len(ids) - 1] for ids in forget.sequences))
    every = TokenRows(tuple(map(list, reference)), tuple(list(range(len(ids))) for ids in reference))

    def residuals(rows: TokenRows, description: str) -> dict[int, Floats]:
        return residual_streams(
            model,
            rows,
            layers=layers,
            batch_size=batch_size,
            description=description,
            with_experts=with_experts,
            track=track,
        )

    forget_ends = residuals(whole, "probing forget prompts")
    forget_rows = residuals(forget, "probing forget prompts")
    references = residuals(every, "probing reference prompts")
    ends = every.last
    by_layer = {}
    for layer in layers:
        direction = references[layer][ends].mean(axis=0) - forget_ends[layer].mean(axis=0)
        rows = forget_rows[layer]
        move = direction if aim == "shift" else _means_by_token(references[layer], every, forget) - rows
        by_layer[layer] = Redirection(direction, rows + coefficient * move)
    return by_layer


def steering_scores(
    model: PreTrainedModel,
    forget: TokenRows,
    reference: Sequence[list[int]],
    retain: Sequence[list[int]],
    *,
    aim: Aim,
    coefficient: float,
    batch_size: int,
    with_experts: bool = False,
    track: Track = untracked,
) -> dict[int, float]:
    """How well steering in each layer makes the model answer forget prompts as it answers the reference prompts.

    Our reading of the paper's choice of a layer (the steered answers closest to statements of ignorance and farthest
    from unrelated answers; its exact score is not published). p_l is the distribution of the first answer token, a
    mean over the forget prompts, while a hook puts the rows behind block l on their targets (``redirections``); p_ref
    and p_ret are those of the unsteered model over the reference and the retain prompts. The score is

        overlap(p_l, p_ref) - overlap(p_l, p_ret),    overlap(p, q) = sum_t min(p_t, q_t)

    and lies between -1 and 1.
    """
    ignorance = _first_answers(model, reference, batch_size, "reading reference answers", track)
    unrelated = _first_answers(model, retain, batch_size, "reading retain answers", track)
    every = sublayers(model, with_experts=with_experts)
    rows = len(forget.sequences) + 2 * len(forget) + sum(map(len, reference))
    at_once = max(1, _MOST_RESIDUALS // (rows * every[0].hidden))
    scores = {}
    for start in range(0, len(every), at_once):
        redirected = redirections(
            model,
            forget,
            reference,
            layers=range(len(every))[start : start + at_once],
            aim=aim,
            coefficient=coefficient,
            batch_size=batch_size,
            with_experts=with_experts,
            track=track,
        )
        for layer, redirection in redirected.items():
            steering = forget, every[layer].block, redirection
            steered = _first_answers(model, forget.sequences, batch_size, f"steering layer {layer}", track, steering)
            scores[layer] = float(np.minimum(steered, ignorance).sum() - np.minimum(steered, unrelated).sum())
    return scores


def _means_by_token(residuals: Floats, rows: TokenRows, asked: TokenRows) -> Floats:
    """For each row of ``asked`` the mean of the rows of the same input token, or of all: float64 [asked, hidden]."""
    kinds, kind_of = np.unique(rows.tokens, return_inverse=True)
    sums = np.zeros((len(kinds), residuals.shape[1]))
    np.add.at(sums, kind_of, residuals)
    means = sums / np.bincount(kind_of)[:, None]
    places = np.minimum(np.searchsorted(kinds, asked.tokens), len(kinds) - 1)
    known: NDArray[np.bool_] = kinds[places] == asked.tokens
    return np.where(known[:, None], means[places], residuals.mean(axis=0))


def _first_answers(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    batch_size: int,
    description: str,
    track: Track,
    steering: tuple[TokenRows, nn.Module, Redirection] | None = None,
) -> Floats:
    """The distribution of the first answer token, averaged over prompts: float64 [vocabulary]."""
    limits = model_limits(model)
    for prompt in prompts:
        limits.require(prompt, None, "A prompt")
    batches = batches_by_length([len(prompt) for prompt in prompts], batch_size, most_tokens=tokens_at_once(model))
    device = input_device(model)
    batch: Batch | None = None

    def keep_last(_module: nn.Module, arguments: Any) -> Any:
        assert batch is not None
        hidden = arguments[0]
        last = (batch.attention_mask.sum(dim=1) - 1).to(hidden.device)
        return hidden[torch.arange(len(last), device=hidden.device), last][:, None]

    # All tokens' logits would be gigabytes; and the head's own are not the model's, which may scale or cap them.
    hooks = [model.get_output_embeddings().register_forward_pre_hook(keep_last)]
    if steering is not None:
        rows, block, redirection = steering
        starts = rows.first_numbers

        def steer(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            assert batch is not None
            stream = residual_stream(output)
            numbers = [starts[row] + offset for row in batch.rows for offset in range(len(rows.positions[row]))]
            flat = stream.reshape(-1, stream.shape[-1]).clone()
            flat[flat_positions(rows, batch)] = torch.from_numpy(redirection.targets[numbers]).to(flat)
            steered = flat.reshape(stream.shape)
            return steered if isinstance(output, Tensor) else (steered, *output[1:])

        hooks.append(block.register_forward_hook(steer))
    total = np.zeros(text_config(model).vocab_size)
    with hooked(hooks), torch.inference_mode():
        for of_batch in track(batches, description, len(batches)):
            padded = right_padded([prompts[row] for row in of_batch])
            batch = Batch(of_batch, *(torch.from_numpy(array).to(device) for array in padded))
            output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            total += torch.softmax(in_float64(output.logits[:, 0]), dim=-1).sum(dim=0).cpu().numpy()
    return total / len(prompts)
