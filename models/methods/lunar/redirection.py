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

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.lunar.options import Aim
from bakeout.models.methods.lunar.token_rows import TokenRows, flat_positions, probe_rows, residual_stream
from bakeout.models.network.devices import in_float64
from bakeout.models.network.families import feed_forward_layers, text_config
from bakeout.models.network.probing import Batch, hooked, run_batches
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked

# How far a vector added to an FFL's output may be from what arrives behind the block: bfloat16 rounds, a norm distorts.
_ADDED = 0.1


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
    description = "probing forget prompts"
    forget_ends = _residuals(model, whole, layers, batch_size, description, track)
    forget_rows = _residuals(model, forget, layers, batch_size, description, track)
    references = _residuals(model, every, layers, batch_size, "probing reference prompts", track)
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
    scores = {}
    for layer in range(len(feed_forward_layers(model))):
        redirected = redirections(
            model,
            forget,
            reference,
            layers=[layer],
            aim=aim,
            coefficient=coefficient,
            batch_size=batch_size,
            track=track,
        )
        steering = forget, layer, redirected[layer]
        steered = _first_answers(model, forget.sequences, batch_size, f"steering layer {layer}", track, steering)
        scores[layer] = float(np.minimum(steered, ignorance).sum() - np.minimum(steered, unrelated).sum())
    return scores


def require_shiftable(model: PreTrainedModel, prompt: Sequence[int]) -> None:
    """Raise ``BakeoutError`` unless what ``down`` gives is added to the residual stream as it is.

    Where a norm follows (Gemma 2 and 3, OLMo 2, BART), no change of ``down`` shifts the residual stream by a given
    vector. It is tried: a vector added to ``down``'s output on ``prompt`` must come out behind the block, multiplied by
    the architecture's residual multiplier.
    """
    feed_forward = feed_forward_layers(model)[0]
    streams: list[Tensor] = []
    shift: list[Tensor] = []

    def add(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        return output + shift[0] if shift else output

    def read(_module: nn.Module, _arguments: Any, output: Any) -> None:
        streams.append(residual_stream(output).reshape(-1, feed_forward.hidden).float())

    def run() -> None:
        for _ in run_batches(model, [prompt], batch_size=1, description="looking for norms"):
            pass

    with hooked([feed_forward.down.register_forward_hook(add), feed_forward.block.register_forward_hook(read)]):
        run()
        vector = torch.randn(feed_forward.hidden, generator=torch.Generator().manual_seed(0)).to(streams[0].device)
        vector *= streams[0].square().mean().sqrt()
        shift.append(vector.to(model.dtype))
        run()
    expected = feed_forward.residual_multiplier * vector
    if float((streams[1] - streams[0] - expected).norm(dim=-1).max()) > _ADDED * float(expected.norm()):
        raise BakeoutError(
            f"LUNAR: {model.config.model_type!r} has a norm behind its feed-forward layers, so that no change of "
            "`down` shifts the residual stream by a given vector.",
            "Use Key Space Detection, Neuron Adjust, Selective Pruning or UNLEARN with this model.",
        )


def _residuals(
    model: PreTrainedModel, rows: TokenRows, layers: Sequence[int], batch_size: int, description: str, track: Track
) -> dict[int, Floats]:
    hidden = feed_forward_layers(model)[0].hidden
    residuals = {layer: np.empty((len(rows), hidden)) for layer in layers}
    for probed in probe_rows(model, rows, layers=layers, batch_size=batch_size, description=description, track=track):
        for layer in layers:
            residuals[layer][probed.numbers] = probed.residuals[layer]
    return residuals


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
    steering: tuple[TokenRows, int, Redirection] | None = None,
) -> Floats:
    """The distribution of the first answer token, averaged over prompts: float64 [vocabulary]."""
    batch: Batch | None = None
    seen: list[Tensor] = []

    def prepare(next_batch: Batch) -> None:
        nonlocal batch
        batch = next_batch

    def read(_module: nn.Module, _arguments: Any, output: Any) -> None:
        seen[:] = [output.last_hidden_state]

    hooks = [model.base_model.register_forward_hook(read)]
    if steering is not None:
        rows, layer, redirection = steering
        starts = rows.first_numbers

        def steer(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            assert batch is not None
            stream = residual_stream(output)
            numbers = [starts[row] + offset for row in batch.rows for offset in range(len(rows.positions[row]))]
            flat = stream.reshape(-1, stream.shape[-1]).clone()
            flat[flat_positions(rows, batch)] = torch.from_numpy(redirection.targets[numbers]).to(flat)
            steered = flat.reshape(stream.shape)
            return steered if isinstance(output, Tensor) else (steered, *output[1:])

        hooks.append(feed_forward_layers(model)[layer].block.register_forward_hook(steer))
    head = model.get_output_embeddings()
    total = np.zeros(text_config(model).vocab_size)
    with hooked(hooks):
        for ran in run_batches(
            model, prompts, batch_size=batch_size, description=description, track=track, prepare=prepare
        ):
            last = (ran.attention_mask.sum(dim=1) - 1).to(seen[0].device)
            with torch.inference_mode():
                logits = in_float64(head(seen[0][torch.arange(len(last), device=last.device), last]))
            total += torch.softmax(logits, dim=-1).sum(dim=0).cpu().numpy()
    return total / len(prompts)
