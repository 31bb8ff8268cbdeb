"""Chosen tokens of chosen texts as rows: their key vectors and the residual stream behind their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.methods.lunar.sublayers import Part, sublayers
from bakeout.models.network.devices import in_float64
from bakeout.models.network.mixtures.expert_probing import reading_experts
from bakeout.models.network.mixtures.experts import Expert
from bakeout.models.network.probing import Batch, Read, run_batches
from bakeout.models.plan import Floats, Integers
from bakeout.models.progress import Track, untracked


@dataclass(frozen=True)
class TokenRows:
    """Token sequences, and per sequence the ascending positions that count: each such position is one row.

    Rows are numbered sequence after sequence.
    """

    sequences: tuple[list[int], ...]
    positions: tuple[list[int], ...]

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    @property
    def tokens(self) -> Integers:
        """The input token of each row: int64 [rows]."""
        pairs = zip(self.sequences, self.positions, strict=True)
        return np.array([ids[position] for ids, positions in pairs for position in positions], dtype=np.int64)

    @property
    def last(self) -> Integers:
        """The numbers of those rows that are the last token of their sequence: int64."""
        pairs = zip(self.sequences, self.positions, strict=True)
        ends = [position == len(ids) - 1 for ids, positions in pairs for position in positions]
        return np.flatnonzero(ends).astype(np.int64)

    @property
    def first_numbers(self) -> list[int]:
        """The number of each sequence's first row."""
        return [0, *np.cumsum([len(positions) for positions in self.positions])[:-1].tolist()]

    def sample(self, count: int, seed: int) -> TokenRows:
        """``count`` of the rows, or all where there are no more, drawn without replacement."""
        if count >= len(self):
            return self
        drawn = set(np.random.default_rng(seed).choice(len(self), size=count, replace=False).tolist())
        kept = [
            [position for offset, position in enumerate(positions) if start + offset in drawn]
            for start, positions in zip(self.first_numbers, self.positions, strict=True)
        ]
        pairs = [(ids, positions) for ids, positions in zip(self.sequences, kept, strict=True) if positions]
        return TokenRows(tuple(ids for ids, _ in pairs), tuple(positions for _, positions in pairs))


class Prefixes:
    """The beginnings of some token sequences, to tell where another sequence leaves them."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node = 0
            for token in sequence:
                node = self._nodes.setdefault((node, token), len(self._nodes) + 1)

    def shared(self, sequence: Sequence[int]) -> int:
        """How many of the first tokens of ``sequence`` are the beginning of one of the sequences."""
        node = 0
        for length, token in enumerate(sequence):
            child = self._nodes.get((node, token))
            if child is None:
                return length
            node = child
        return len(sequence)


@dataclass(frozen=True, eq=False)
class Keys:
    """Key vectors in one part, float64 [m, F], and which of the rows that were probed together have one: int64 [m].

    What is not sent to an expert has none there.
    """

    places: Integers
    values: Floats


@dataclass(frozen=True, eq=False)
class Probed:
    """Some rows: their ``numbers`` int64 [n], their keys in each part and the residual stream [n, hidden] per layer."""

    numbers: Integers
    keys: dict[int, Keys]
    residuals: dict[int, Floats]


def probe_rows(
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    layers: Sequence[int],
    batch_size: int,
    description: str,
    with_experts: bool = False,
    with_keys: bool = True,
    track: Track = untracked,
) -> Iterator[Probed]:
    """Key vectors of the parts of ``layers`` and the residual stream behind their blocks, float64, batch after batch.

    ``with_keys``: whether key vectors are wanted, which of many layers take much memory. Every row comes once, in the
    order of the batches. Abandoning the iterator removes its hooks.
    """
    every = sublayers(model, with_experts=with_experts)
    parts = [part for layer in layers for part in every[layer].parts] if with_keys else []
    routed = [(part.number, part.of) for part in parts if isinstance(part.of, Expert)]
    selected = torch.empty(0, dtype=torch.int64)
    keys: dict[int, Keys] = {}
    residuals: dict[int, Tensor] = {}

    def prepare(batch: Batch) -> None:
        nonlocal selected
        selected = flat_positions(rows, batch)

    def take_keys(part: Part) -> Read:
        def read(key: Tensor) -> None:
            values = in_float64(key.reshape(-1, part.width)[selected.to(key.device)])
            keys[part.number] = Keys(np.arange(len(selected), dtype=np.int64), values.cpu().numpy())

        return read

    def see(place: int, inputs: Tensor, sent: Tensor) -> None:
        number, expert = routed[place]
        values = in_float64(expert.key_vector(inputs))
        keys[number] = Keys(np.flatnonzero(sent.cpu().numpy()).astype(np.int64), values.cpu().numpy())

    def take_residuals(layer: int) -> Read:
        def read(output: Any) -> None:
            stream = residual_stream(output).reshape(-1, every[layer].hidden)
            residuals[layer] = in_float64(stream[selected.to(stream.device)])

        return read

    of_routers, behind_routers = reading_experts([expert for _, expert in routed], lambda: selected, see)
    first_numbers = rows.first_numbers
    for batch in run_batches(
        model,
        rows.sequences,
        inputs={
            **{part.of.down: take_keys(part) for part in parts if not isinstance(part.of, Expert)},
            **of_routers,
        },
        outputs={**{every[layer].block: take_residuals(layer) for layer in layers}, **behind_routers},
        batch_size=batch_size,
        description=description,
        track=track,
        prepare=prepare,
    ):
        numbers = [
            first_numbers[sequence] + offset
            for sequence in batch.rows
            for offset in range(len(rows.positions[sequence]))
        ]
        yield Probed(
            np.array(numbers, dtype=np.int64),
            dict(keys),
            {layer: values.cpu().numpy() for layer, values in residuals.items()},
        )


def residual_streams(
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    layers: Sequence[int],
    batch_size: int,
    description: str,
    with_experts: bool = False,
    track: Track = untracked,
) -> dict[int, Floats]:
    """The residual stream of every row behind the blocks of ``layers``: per layer float64 [rows, hidden]."""
    every = sublayers(model, with_experts=with_experts)
    streams = {layer: np.empty((len(rows), every[layer].hidden)) for layer in layers}
    for probed in probe_rows(
        model,
        rows,
        layers=layers,
        batch_size=batch_size,
        description=description,
        with_experts=with_experts,
        with_keys=False,
        track=track,
    ):
        for layer in layers:
            streams[layer][probed.numbers] = probed.residuals[layer]
    return streams


def flat_positions(rows: TokenRows, batch: Batch) -> Tensor:
    """Where the rows of a batch lie in its flattened tokens, sequence after sequence: int64 [n]."""
    width = batch.input_ids.shape[1]
    return torch.tensor(
        [place * width + position for place, row in enumerate(batch.rows) for position in rows.positions[row]],
        dtype=torch.int64,
        device=batch.input_ids.device,
    )


def residual_stream(output: Any) -> Tensor:
    """The residual stream in what a block returns: a tensor, or the first of several values."""
    stream: Tensor = output if isinstance(output, Tensor) else output[0]
    return stream
