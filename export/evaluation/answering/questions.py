"""The rows of a data name as they are asked when it is measured: some of them, with all of their fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bakeout.export.evaluation.graders.grader import Grader, Question
from bakeout.export.running.refusals import answer_text
from bakeout.models.data.limits import Limits
from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import DataError, RowsInMemory, Source, source_lines, source_name
from bakeout.models.data.rows import json_rows, read_records
from bakeout.models.data.spreading import spread

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


def as_asked(source: Source, grader: Grader) -> Source:
    """Every row as the grader asks it, in a known layout. Raises ``DataError``."""
    places, lines = [], []
    for where, written in json_rows(source):
        places.append(where)
        lines.append(json.dumps(grader.asked(in_known_layout(written, where), where), ensure_ascii=False).encode())
    return RowsInMemory(source_name(source), tuple(lines), tuple(places))


def read_questions(source: Source, grader: Grader, tokenizer: Tokenizer, limits: Limits) -> list[Question]:
    """Every row as the grader asks it. Raises ``DataError`` for rows that are not asked, or cannot be judged."""
    asked = as_asked(source, grader)
    records = read_records(asked, tokenizer, limits)
    questions = []
    for record, (_, row) in zip(records, json_rows(asked), strict=True):
        if not record.prompt_ids:
            raise DataError(
                f"{record.where}: the row has no prompt.",
                "Evaluate on rows with `prompt` and `response`, or with `messages` that end with the answer.",
            )
        expected = None if record.response is None else answer_text(tokenizer, record.response_ids)
        questions.append(Question(record, row, expected))
        grader.require(questions[-1])
    return questions


@dataclass(frozen=True)
class Chosen:
    """Rows to measure, out of ``available``; the source itself where they are all of them."""

    source: Source
    available: int


def choose_rows(source: Source, most: int | None) -> Chosen:
    """At most ``most`` rows of a source, in their order and spread evenly over them."""
    rows: Sequence[tuple[str, bytes]] = list(source_lines(source))
    if most is None or len(rows) <= most:
        return Chosen(source, len(rows))
    kept = spread(rows, most)
    chosen = RowsInMemory(source_name(source), tuple(line for _, line in kept), tuple(where for where, _ in kept))
    return Chosen(chosen, len(rows))
