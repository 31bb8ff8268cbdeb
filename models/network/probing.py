"""Probing: forward passes that gather what the feed-forward layers compute, every layer in one pass."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
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
from bakeout.models.files.writing import disk_errors
from bakeout.models.network.devices import in_float64, input_device, tokens_at_once
from bakeout.models.network.families import feed_forward_layers, model_limits
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.processes import in_order, least, share
from bakeout.models.network.statistics import KeyMagnitudes, Moments, NeuronStatistics
from bakeout.models.plan import Floats, Keys
from bakeout.models.progress import Track, untracked

_Result = TypeVar("_Result")

# Pre-activations are widened to float64 in pieces of this many numbers (1 MiB): a piece stays in the cache.
_PIECE = 1 << 17

# Called with what goes into, or comes out of, a module in a forward pass.
Read = Callable[[Any], None]
_NOTHING: Mapping[nn.Module, Read] = {}


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
    sequences, first_counted = counted_tokens(records, scope)
    pieces: tuple[Tensor, ...] = ()
    gathered: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def prepare(batch: Batch) -> None:
        nonlocal pieces
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])
        pieces = torch.split(tokens, max(1, _PIECE // layers[0].width))

    def gather(layer: int) -> Read:
        def read(output: Tensor) -> None:
            values = layers[layer].pre_activation(output).reshape(-1, layers[layer].width)
            gathered[layer] = [_mean_and_m2(values, piece) for piece in pieces]

        return read

    def stacked(piece: int, part: int) -> Floats:
        return np.stack([layer[piece][part].cpu().numpy() for layer in gathered])

    def moments(_batch: Batch) -> list[Moments]:
        return [Moments(len(piece), stacked(number, 0), stacked(number, 1)) for number, piece in enumerate(pieces)]

    total = Moments.none((len(layers), layers[0].width))
    for of_batch in run_shared(
        moments,
        model,
        sequences,
        outputs={layer.gate: gather(layer.layer) for layer in layers},
        batch_size=batch_size,
        description="probing neurons",
        track=track,
        prepare=prepare,
    ):
        for piece_moments in of_batch:
            total = total.merge(piece_moments)
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
    sequences, first_counted = counted_tokens(records, scope)
    tokens = torch.empty(0, dtype=torch.int64)
    sums: list[Tensor] = [torch.empty(0) for _ in layers]

    def prepare(batch: Batch) -> None:
        nonlocal tokens
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])

    def gather(layer: int) -> Read:
        def read(key: Tensor) -> None:
            values = key.reshape(-1, layers[layer].width)
            pieces = torch.split(tokens, max(1, _PIECE // layers[0].width))
            sums[layer] = torch.stack(
                [in_float64(values[piece.to(values.device)]).abs().sum(dim=0) for piece in pieces]
            ).sum(dim=0)

        return read

    total = KeyMagnitudes(0, np.zeros((len(layers), layers[0].width)))
    for magnitudes in run_shared(
        lambda _: KeyMagnitudes(len(tokens), np.stack([layer.cpu().numpy() for layer in sums])),
        model,
        sequences,
        inputs={layer.down: gather(layer.layer) for layer in layers},
        batch_size=batch_size,
        description="probing neurons",
        track=track,
        prepare=prepare,
    ):
        total = total.merge(magnitudes)
    return total


def probe_keys(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    keys: Keys = "key_vector",
    first: Sequence[int] | None = None,
    batch_size: int = 8,
    track: Track = untracked,
) -> dict[int, NDArray[np.float32]]:
    """The key of each prompt's last token, or the mean (in float64) from its token ``first`` on.

    Per layer float32 [prompts, F], in the order of ``prompts``. ``keys``: key vectors of the FFLs, or of routers of
    experts their inputs [prompts, hidden] or logits [prompts, experts]. Raises ``BakeoutError`` for an empty or too
    long prompt, and for a layer that the model does not have.
    """
    available = key_sites(model, keys)
    require_layers(layers, len(available))
    require_prompts(prompts)
    tokens = torch.empty(0, dtype=torch.int64)
    counts: list[int] = []
    gathered: dict[int, Tensor] = {}

    def gather(layer: int) -> Read:
        def read(key: Tensor) -> None:
            rows = available[layer].key(key.flatten(0, -2)[tokens.to(key.device)])
            if first is not None:
                rows = torch.stack([in_float64(own).mean(dim=0) for own in rows.split(counts)])
            gathered[layer] = rows.float()

        return read

    def prepare(batch: Batch) -> None:
        nonlocal tokens, counts
        lengths = batch.attention_mask.sum(dim=1).tolist()
        starts = [length - 1 if first is None else first[row] for row, length in zip(batch.rows, lengths, strict=True)]
        tokens = batch.tokens_from(starts)
        counts = [length - start for length, start in zip(lengths, starts, strict=True)]

    probed = {layer: _on_disk((len(prompts), available[layer].width)) for layer in layers}
    for rows, of_rows in run_shared(
        lambda batch: (batch.rows, {layer: values.cpu().numpy() for layer, values in gathered.items()}),
        model,
        prompts,
        inputs={available[layer].module: gather(layer) for layer in probed},
        batch_size=batch_size,
        description="probing key vectors",
        track=track,
        prepare=prepare,
    ):
        for layer, values in of_rows.items():
            probed[layer][rows] = values
    return probed


def require_layers(layers: Sequence[int], available: int) -> None:
    """Raise ``BakeoutError`` unless a model of ``available`` layers has all of ``layers``."""
    for layer in layers:
        if not 0 <= layer < available:
            raise BakeoutError(
                f"The model has no layer {layer}.",
                f"Name layers between 0 and {available - 1}." if available else "Choose other keys.",
            )


def require_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raise ``BakeoutError`` unless there are prompts, and none is empty."""
    if not prompts or not all(prompts):
        raise BakeoutError("A prompt to take a key vector from is empty.", "Give every row a prompt.")


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
    inputs: Mapping[nn.Module, Read] = _NOTHING,
    outputs: Mapping[nn.Module, Read] = _NOTHING,
    track: Track = untracked,
    prepare: Callable[[Batch], None] | None = None,
    shared: bool = False,
) -> Iterator[Batch]:
    """Run the model as deep as something is read, and yield each batch once that has been read.

    ``inputs`` and ``outputs`` read what goes into modules, and what comes out of them. What lies behind the last of
    these is not computed; the head, which no statistic needs, never is. ``prepare`` is called with a batch before its
    forward pass. Batches hold up to ``batch_size`` sequences of similar lengths, the longest first, and fewer where
    these are long; if ``shared``, this process runs its share of them. Abandoning the iterator removes its hooks.
    Raises ``BakeoutError`` for what the model cannot read.
    """
    limits = model_limits(model)
    for sequence in sequences:
        limits.require(sequence, None, "A row")
    most_tokens = tokens_at_once(model)
    if shared:
        # Processes on unlike devices form the same batches.
        most_tokens = least(most_tokens)
    batches = batches_by_length([len(sequence) for sequence in sequences], batch_size, most_tokens=most_tokens)
    if shared:
        batches = share(batches)
    device = input_device(model)
    with _Reading(model, inputs, outputs) as reading:
        for rows in track(batches, description, len(batches)):
            padded = right_padded([sequences[row] for row in rows])
            batch = Batch(rows, *(torch.from_numpy(array).to(device) for array in padded))
            if prepare is not None:
                prepare(batch)
            reading.run(batch)
            yield batch


def run_shared(result: Callable[[Batch], _Result], *arguments: Any, **options: Any) -> Iterator[_Result]:
    """``result`` of each batch of ``run_batches``, in their order, whichever process ran it."""
    return in_order(map(result, run_batches(*arguments, **options, shared=True)))


def run_up_to(model: PreTrainedModel, modules: Iterable[nn.Module], input_ids: Tensor) -> None:
    """A forward pass over rows without padding that ends in front of the last of ``modules``. Hooks see the rest."""
    with _Reading(model, dict.fromkeys(modules, _unread), {}) as reading:
        reading.forward(input_ids=input_ids)


def _unread(_value: Tensor) -> None:
    pass


class _EverythingRead(Exception):  # noqa: N818 - not an error
    """Raised in a forward pass behind the last module that is read."""


class _Reading:
    """Hooks that read a model's modules, and end the forward pass behind the last of them."""

    def __init__(
        self, model: PreTrainedModel, inputs: Mapping[nn.Module, Read], outputs: Mapping[nn.Module, Read]
    ) -> None:
        self._model = model
        self._inputs, self._outputs = inputs, outputs
        self._unread: set[tuple[nn.Module, str]] = set()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _Reading:
        for module, read in self._inputs.items():
            self._handles.append(module.register_forward_pre_hook(self._before(module, read)))
        for module, read in self._outputs.items():
            self._handles.append(module.register_forward_hook(self._behind(module, read)))
        return self

    def __exit__(self, *_exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, batch: Batch) -> None:
        with torch.inference_mode():
            self.forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    def forward(self, **inputs: Tensor) -> None:
        self._unread = {(module, "input") for module in self._inputs} | {(module, "output") for module in self._outputs}
        with suppress(_EverythingRead):
            self._model.base_model(**inputs, use_cache=False)

    def _before(self, module: nn.Module, read: Read) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            read(arguments[0])
            self._mark_read(module, "input")

        return hook

    def _behind(self, module: nn.Module, read: Read) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            read(output)
            self._mark_read(module, "output")

        return hook

    def _mark_read(self, module: nn.Module, what: str) -> None:
        self._unread.discard((module, what))
        # Where a model records its states, transformers wraps its layers until the whole pass has ended.
        config = self._model.config
        if not (self._unread or config.output_hidden_states or config.output_attentions):
            raise _EverythingRead


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """A context in which the hooks of ``handles`` are registered."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def _on_disk(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array in a temporary file that lasts as long as it: the keys of many layers need not fit into memory."""
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        size = math.prod(shape) * np.dtype(np.float32).itemsize
        # A disk that fills up later would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def counted_tokens(records: Sequence[Record], scope: Scope) -> tuple[list[list[int]], list[int]]:
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
    samples = in_float64(values.index_select(0, rows.to(values.device)))
    mean = samples.mean(dim=0)
    samples -= mean
    return mean, samples.square_().sum(dim=0)


def batches_by_length(lengths: Sequence[int], batch_size: int, *, most_tokens: int) -> Sequence[list[int]]:
    """Indices in batches of similar lengths, the longest first: what does not fit into memory shows at once.

    A batch holds up to ``batch_size`` rows, of at most ``most_tokens`` tokens with their padding, and at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    while order:
        fitting = min(batch_size, max(1, most_tokens // max(1, lengths[order[0]])))
        batches.append(order[:fitting])
        order = order[fitting:]
    return batches
