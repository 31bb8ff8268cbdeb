"""How well a model still predicts text that it should keep: perplexity, and divergence from the base model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bakeout.export.evaluation.intervals import bootstrap
from bakeout.export.evaluation.rows import TextRow
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.models.data.row_source import DataError, Source
from bakeout.models.data.rows import read_records
from bakeout.models.errors import BakeoutError
from bakeout.models.progress import Track, untracked


@dataclass(frozen=True, eq=False)
class Predicted:
    """How well a model predicts each text of one file.

    ``surprise``: float64 [texts], the sum of -log p over the ``tokens``, int64 [texts], that count; ``first``: log p of
    every token at the first place, float32 [texts, vocabulary]; ``refused``: bool [texts].
    """

    surprise: NDArray[np.float64]
    tokens: NDArray[np.int64]
    first: NDArray[np.float32]
    refused: NDArray[np.bool_]


def predict(
    runner: Runner, source: Source, *, batch_size: int = 32, track: Track = untracked, description: str = "reading"
) -> Predicted:
    """Read every text of ``source`` with one model.

    A text is read in one run, so that a Key Space Detection with ``positions: query`` tests its last token there, and
    with ``mean`` the mean key from its last query on; the first token is asked for with the prompt alone. Raises
    ``DataError`` for texts of fewer than two tokens.
    """
    records = read_records(source, runner.tokenizer, runner.limits)
    for record in records:
        if len(record.prompt_ids) + len(record.response_ids) < 2 or not record.response_ids:
            raise DataError(f"{record.where}: the row has nothing to predict.", "Give it a response, or a longer text.")
    whole = [record.prompt_ids + record.response_ids for record in records]
    surprise, tokens = np.zeros(len(records)), np.zeros(len(records), dtype=np.int64)
    refused = np.zeros(len(records), dtype=bool)
    first: dict[int, NDArray[np.float32]] = {}
    for row, logits in track(runner.each_logits(whole, batch_size=batch_size), description, total=len(records)):
        if len(logits) != len(whole[row]):
            raise BakeoutError(
                "This graph gives the logits of the last token alone, so perplexity cannot be measured.",
                "Evaluate without --text, or export the graph with all logits.",
            )
        start = max(len(records[row].prompt_ids), 1)
        targets = np.array(whole[row][start:])
        surprise[row] = -log_probabilities(logits[start - 1 : -1])[np.arange(len(targets)), targets].sum()
        tokens[row] = len(targets)
        refused[row] = is_refused(logits[-1])
        first[row] = log_probabilities(logits[-1]).astype(np.float32)
    prompted = [row for row, record in enumerate(records) if record.prompt_ids]
    prompts = [records[row].prompt_ids for row in prompted]
    read = runner.each_logits(prompts, batch_size=batch_size)
    for index, logits in track(read, f"{description}: first tokens", total=len(prompts)):
        first[prompted[index]] = log_probabilities(logits[-1]).astype(np.float32)
        refused[prompted[index]] |= is_refused(logits[-1])
    return Predicted(surprise, tokens, np.stack([first[row] for row in range(len(records))]), refused)


def text_row(model: str, data: str, predicted: Predicted, base: Predicted | None) -> TextRow:
    """One model's row, beside the base model's where that is known."""
    answered = ~predicted.refused
    row = TextRow(
        model, data, len(answered), int(predicted.refused.sum()), _perplexity(predicted, np.flatnonzero(answered))
    )
    if base is None:
        return row
    both = np.flatnonzero(answered & ~base.refused)
    if len(both) < 2:
        return row
    gap, tokens = predicted.surprise[both] - base.surprise[both], base.tokens[both]
    distance = divergence(base.first[both], predicted.first[both])

    def ratio(chosen: NDArray[np.int64]) -> float:
        return float(np.exp(gap[chosen].sum() / tokens[chosen].sum()))

    return TextRow(
        model,
        data,
        row.texts,
        row.refused,
        row.perplexity,
        ratio(np.arange(len(both))),
        bootstrap(len(both), ratio),
        float(distance.mean()),
        bootstrap(len(both), lambda chosen: float(distance[chosen].mean())),
    )


def divergence(base: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(base || other) in nats of each row: log-probabilities [n, vocabulary] to float64 [n], never negative."""
    wide = base.astype(np.float64)
    distance: NDArray[np.float64] = (np.exp(wide) * (wide - other)).sum(axis=1)
    return np.maximum(distance, 0.0)


def _perplexity(predicted: Predicted, rows: NDArray[np.intp]) -> float | None:
    if len(rows) == 0:
        return None
    return float(np.exp(predicted.surprise[rows].sum() / predicted.tokens[rows].sum()))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)
