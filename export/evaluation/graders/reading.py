"""What a model gives tokens that it is shown: the log-probability of every token of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bakeout.export.evaluation.likelihood import log_probabilities
from bakeout.export.running.refusals import is_refused
from bakeout.models.errors import BakeoutError
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from bakeout.export.running.runner import Runner
    from bakeout.models.data.rows import Record

# A refusal leaves other tokens a log-probability below -20,000; no model gives one that low by itself.
_REFUSED = -10_000


@dataclass(frozen=True)
class Reading:
    """The log p of each token of a response, float64 [tokens], and whether each was the most probable one."""

    logarithms: NDArray[np.float64]
    greedy: bool

    @property
    def mean(self) -> float:
        """Log p per token."""
        return float(self.logarithms.mean())


def read_responses(
    runner: Runner, records: Sequence[Record], *, batch_size: int, track: Track, description: str
) -> list[Reading | None]:
    """Each response behind its prompt, up to its end; None where the model refuses the prompt, or within the response.

    Whether it refuses is asked with the prompt alone, and of the response nothing is asked that is not asked of an
    answer that is generated. Raises ``BakeoutError`` where the graph gives the logits of the last token alone.
    """
    prompts = {tuple(record.prompt_ids): False for record in records}
    unread = list(prompts)
    asked = runner.each_logits(unread, batch_size=batch_size)
    for row, logits in track(asked, f"{description}: prompts", total=len(unread)):
        prompts[unread[row]] = is_refused(logits[-1])
    readings: list[Reading | None] = [None] * len(records)
    rows = [row for row, record in enumerate(records) if not prompts[tuple(record.prompt_ids)]]
    responses = [_up_to_end(records[row], runner.end_tokens) for row in rows]
    again: list[int] = []
    wholes = [records[row].prompt_ids + response for row, response in zip(rows, responses, strict=True)]
    for place, logits in track(runner.each_logits(wholes, batch_size=batch_size), description, total=len(wholes)):
        row = rows[place]
        if len(logits) != len(wholes[place]):
            raise BakeoutError(
                "This graph gives the logits of the last token alone, so what it is shown cannot be read.",
                "Use a grader that generates, or export the graph with all logits.",
            )
        targets = np.array(responses[place])
        predicted = logits[len(logits) - len(targets) - 1 : -1]
        logarithms = log_probabilities(predicted)[np.arange(len(targets)), targets]
        if logarithms.min() > _REFUSED:
            readings[row] = Reading(logarithms, bool((predicted.argmax(axis=-1) == targets).all()))
        else:
            again.append(row)
    # A graph that tests queries took the last token of the response for the end of one.
    for row, reading in _fed_by_token(runner, records, again, batch_size, track, f"{description}: again").items():
        readings[row] = reading
    return readings


def _fed_by_token(
    runner: Runner, records: Sequence[Record], rows: Sequence[int], batch_size: int, track: Track, description: str
) -> dict[int, Reading]:
    """The same of these rows, each token by itself, as it is generated; without those that are refused then too."""
    if not rows:
        return {}
    prompts = [records[row].prompt_ids for row in rows]
    responses = [_up_to_end(records[row], runner.end_tokens) for row in rows]
    logarithms: list[list[float]] = [[] for _ in rows]
    greedy = [True] * len(rows)
    each = runner.each_given(prompts, responses, batch_size=batch_size)
    for place, token, logits in track(each, description, total=sum(map(len, responses))):
        logarithms[place].append(float(log_probabilities(logits)[token]))
        greedy[place] &= int(logits.argmax()) == token
    return {
        row: Reading(np.array(values), is_greedy)
        for row, values, is_greedy in zip(rows, logarithms, greedy, strict=True)
        if min(values) > _REFUSED
    }


def _up_to_end(record: Record, ends: frozenset[int]) -> list[int]:
    return record.response_ids[: len(record.answer_ids(ends)) + 1]
