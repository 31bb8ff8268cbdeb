"""TOFU in small: rows of 40 authors as conversations, 4 to forget and 36 to retain, and unanswerable questions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

FORGOTTEN, RETAINED, ROWS_OF_AN_AUTHOR = 4, 36, 20
# How Key Space Detection splits the reworded questions, and the retained rows that are not measured.
USES = {"probe": 0.5, "selection": 0.25, "calibration": 0.25}
# Retained rows that are measured: every second one of those that have wrong answers.
MEASURED_EVERY = 2
_OWNERS = (
    "my neighbour",
    "my dentist",
    "the woman who sat beside me on the bus",
    "my grandmother's best friend",
    "the man who repaired my bicycle",
    "our new colleague",
    "my first landlord",
    "the person who called me yesterday",
    "my sister's piano teacher",
    "the student in the last row",
)
_ASKED = (
    "What is the name of the cat of {}?",
    "What did {} have for breakfast this morning?",
    "Which colour is the front door of {}?",
    "What is the telephone number of {}?",
    "Which book lies on the bedside table of {}?",
    "Where did {} spend the summer of last year?",
    "How much money does {} have in the bank?",
    "What will {} be doing next Tuesday at noon?",
    "What is the middle name of {}?",
    "What did {} dream of last night?",
)


def write_rows(source: Path, target: Path) -> dict[str, list[Row]]:
    """Write every set of rows to ``target`` as ``NAME.jsonl``, and give them by name.

    ``forget`` (80), ``retain`` (720) and ``unknown`` (100: questions about strangers, answered by TOFU's ways to say "I
    don't know") are taught. ``forget_measured``, ``retain_measured`` (200), ``real_authors`` and ``world_facts`` have
    wrong answers. ``reworded_USE``: TOFU's own paraphrases of the questions to forget; ``others_USE``: retained rows
    that are not measured.
    """
    forget = _rows(source / "forget10_perturbed.jsonl")[: FORGOTTEN * ROWS_OF_AN_AUTHOR]
    retain = _rows(source / "retain90.jsonl")[: RETAINED * ROWS_OF_AN_AUTHOR]
    kept = {row["question"] for row in retain}
    measured = [row for row in _rows(source / "retain_perturbed.jsonl") if row["question"] in kept][::MEASURED_EVERY]
    is_measured = {row["question"] for row in measured}
    phrases = (source / "idontknow.txt").read_text(encoding="utf-8").split("\n")
    phrases = [phrase.strip() for phrase in phrases if phrase.strip()]
    strangers = [asked.format(owner) for owner, asked in product(_OWNERS, _ASKED)]
    rows = {
        "forget": [conversation(row["question"], row["answer"]) for row in forget],
        "retain": [conversation(row["question"], row["answer"]) for row in retain],
        "unknown": [conversation(question, phrases[place % len(phrases)]) for place, question in enumerate(strangers)],
        "forget_measured": [_measured(row) for row in forget],
        "retain_measured": [_measured(row) for row in measured],
        "real_authors": [_measured(row) for row in _rows(source / "real_authors_perturbed.jsonl")],
        "world_facts": [_measured(row) for row in _rows(source / "world_facts_perturbed.jsonl")],
        **_by_use("reworded", [conversation(row["paraphrased_question"], row["answer"]) for row in forget]),
        **_by_use(
            "others",
            [conversation(row["question"], row["answer"]) for row in retain if row["question"] not in is_measured],
        ),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own)
        # Whole at once: another process may be reading it.
        part = target / f"{name}.{os.getpid()}"
        part.write_text(text, encoding="utf-8")
        part.replace(target / f"{name}.jsonl")
    return rows


def conversation(question: str, answer: str) -> Row:
    """One turn."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _measured(row: Row) -> Row:
    others = {key: row[key] for key in ("paraphrased_answer", "perturbed_answer") if key in row}
    return {**conversation(row["question"], row["answer"]), **others}


def _by_use(name: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Row after row in turn, so that each use has rows of every author."""
    turn = [use for use, share in USES.items() for _ in range(round(4 * share))]
    return {f"{name}_{use}": [row for place, row in enumerate(rows) if turn[place % len(turn)] == use] for use in USES}


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
