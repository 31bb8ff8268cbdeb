"""Probing: forward passes that gather what the feed-forward layers compute, every layer in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers, model_limits
from bakeout.models.network.statistics import KeyMagnitudes, Moments, NeuronStatistics
from bakeout.models.progress import Track, untracked

_Item = TypeVar("_Item")

# Pre-activations are widened to float64 in pieces of this many numbers (1 MiB): a piece stays in the cache.
_PIECE = 1 << 17


def probe_neurons(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    scope: Scope = "answer",
    batch_size: int = 8,
    track: Track = untracked,
) -> NeuronStatistics:
    """Count, mean and M2 of every neuron's pre-activation over the tokens of ``records`` (Neuron Adjust's probe).

    Scope ``answer`` counts the positions whose input token belongs to the response (our reading of arXiv 2503.21730,
    which probes answer texts), ``all`` those of the prompt too. Padding never counts. Given the same activations,
    neither the batching nor the order of the records changes the result beyond 1e-9 relative.

    Raises ``BakeoutError`` when no token counts, or a record is longer than the model's context.
    """
    layers = feed_forward_layers(model)
    sequences, first_counted = _counted(records, scope)
    pieces: tuple[Tensor, ...] = ()
    gathered: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def prepare(batch: Batch) -> None:
        nonlocal pieces
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])
        pieces = torch.split(tokens, max(1, _PIECE // layers[0].width))

    def gather(layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            values = layers[layer].pre_activation(output).reshape(-1, layers[layer].width)
            gathered[layer] = [_mean_and_m2(values, piece) for piece in pieces]

        return hook

    total = Moments.none((len(layers), layers[0].width))
    with hooked(layer.gate.register_forward_hook(gather(layer.layer)) for layer in layers):
        for _ in run_batches(
            model, sequences, batch_size=batch_size, description="probing neurons", track=track, prepare=prepare
        ):
            for number, piece in enumerate(pieces):
                mean = torch.stack([layer[number][0] for layer in gathered]).cpu().numpy()
                m2 = torch.stack([layer[number][1] for layer in gathered]).cpu().numpy()
                total = total.merge(Moments(len(piece), mean, m2))
    return NeuronStatistics(total)


def probe_key_magnitudes(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    scope: Scope = "answer",
    batch_size: int = 8,
    track: Track = untracked,
) -> KeyMagnitudes:
    """The sum of every neuron's |key| over the tokens of ``records`` (Selective Pruning's probe), in float64.

    The scope, the padding and the errors are those of ``probe_neurons``.
    """
    layers = feed_forward_layers(model)
    sequences, first_counted = _counted(records, scope)
    tokens = torch.empty(0, dtype=torch.int64)
    sums: list[Tensor] = [torch.empty(0) for _ in layers]

    def prepare(batch: Batch) -> None:
        nonlocal tokens
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])

    def gather(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            values = arguments[0].reshape(-1, layers[layer].width)
            pieces = torch.split(tokens, max(1, _PIECE // layers[0].width))
            sums[layer] = torch.stack([values[piece].double().abs().sum(dim=0) for piece in pieces]).sum(dim=0)

        return hook

    total = KeyMagnitudes(0, np.zeros((len(layers), layers[0].width)))
    with hooked(layer.down.register_forward_pre_hook(gather(layer.layer)) for layer in layers):
        for _ in run_batches(
            model, sequences, batch_size=batch_size, description="probing neurons", track=track, prepare=prepare
        ):
            total = total.merge(KeyMagnitudes(len(tokens), torch.stack(sums).cpu().numpy()))
    return total


def probe_keys(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    batch_size: int = 8,
    track: Track = untracked,
) -> dict[int, NDArray[np.float32]]:
    """The key vector of each prompt's last token: per layer float32 [prompts, F], in the order of ``prompts``.

    Raises ``BakeoutError`` for an empty or too long prompt, and for a layer that the model does not have.
    """
    available = feed_forward_layers(model)
    for layer in layers:
        if not 0 <= layer < len(available):
            raise BakeoutError(f"The model has no layer {layer}.", f"Name layers between 0 and {len(available) - 1}.")
    if not prompts or not all(prompts):
        raise BakeoutError("A prompt to take a key vector from is empty.", "Give every row a prompt.")
    last_tokens = torch.empty(0, dtype=torch.int64)
    gathered: dict[int, Tensor] = {}

    def gather(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            gathered[layer] = arguments[0].reshape(-1, available[layer].width)[last_tokens].float()

        return hook

    def prepare(batch: Batch) -> None:
        nonlocal last_tokens
        rows_start = torch.arange(len(batch.rows), device=model.device) * batch.input_ids.shape[1]
        last_tokens = rows_start + batch.attention_mask.sum(dim=1) - 1

    keys = {layer: np.empty((len(prompts), available[layer].width), dtype=np.float32) for layer in layers}
    with hooked(available[layer].down.register_forward_pre_hook(gather(layer)) for layer in keys):
        for batch in run_batches(
            model, prompts, batch_size=batch_size, description="probing key vectors", track=track, prepare=prepare
        ):
            for layer, rows in gathered.items():
                keys[layer][batch.rows] = rows.cpu().numpy()
    return keys


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one forward pass: ``rows`` are their indices, the tensors int64 [rows, longest], padded right."""

    rows: list[int]
    input_ids: Tensor
    attention_mask: Tensor

    def tokens_from(self, first: Sequence[int]) -> Tensor:
        """Positions, in the flattened batch, of each row's real tokens from its ``first`` on: int64 [tokens]."""
        width = self.input_ids.shape[1]
        lengths = self.attention_mask.sum(dim=1).tolist()
        return torch.tensor(
            [place * width + token for place, start in enumerate(first) for token in range(start, lengths[place])],
            dtype=torch.int64,
            device=self.input_ids.device,
        )


def run_batches(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    description: str,
    track: Track = untracked,
    prepare: Callable[[Batch], None] | None = None,
) -> Iterator[Batch]:
    """Run the model up to its head, which no statistic needs, and yield each batch once its hooks have seen it.

    ``prepare`` is called with a batch before its forward pass. Batches hold sequences of similar lengths, the longest
    first. Raises ``BakeoutError`` for what the model cannot read.
    """
    limits = model_limits(model)
    for sequence in sequences:
        limits.require(sequence, None, "A row")
    batches = _batches([len(sequence) for sequence in sequences], batch_size)
    for rows in track(batches, description, len(batches)):
        padded = right_padded([sequences[row] for row in rows])
        batch = Batch(rows, *(torch.from_numpy(array).to(model.device) for array in padded))
        if prepare is not None:
            prepare(batch)
        with torch.inference_mode():
            model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        yield batch


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """A context in which the hooks of ``handles`` are registered."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def _counted(records: Sequence[Record], scope: Scope) -> tuple[list[list[int]], list[int]]:
    """The sequences that have a token in scope, and the first such token of each."""
    sequences = [record.prompt_ids + record.response_ids for record in records]
    first_counted = [0 if scope == "all" else len(record.prompt_ids) for record in records]
    counted = [index for index, first in enumerate(first_counted) if first < len(sequences[index])]
    if not counted:
        raise BakeoutError(
            f"None of the {len(records)} records has {'a token' if scope == 'all' else 'a response'} to probe.",
            "Give rows with a response, or probe all tokens.",
        )
    return [sequences[index] for index in counted], [first_counted[index] for index in counted]


def _mean_and_m2(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 over some rows of values [tokens, F], float64 [F] each, in two passes."""
    samples = values.index_select(0, rows).double()
    mean = samples.mean(dim=0)
    samples -= mean
    return mean, samples.square_().sum(dim=0)


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar lengths, the longest first: what does not fit into memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
