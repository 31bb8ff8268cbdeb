"""TOFU in small: rows of 40 authors as conversations, 4 to forget and 36 to retain, and unanswerable questions."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

FORGOTTEN, RETAINED, ROWS_OF_AN_AUTHOR = 4, 36, 20
# Of four retained rows that are not measured, and of four reworded questions to forget: what Key Space Detection uses
# them for. All other rows are probed, as other methods train on them.
_USES_OF_OTHERS = ("", "", "selection", "calibration")
_USES_OF_REWORDED = ("selection", "calibration", "calibration", "calibration")
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
    wrong answers. ``asked_USE``: the questions to forget, to probe, and TOFU's own paraphrases of them, to select and
    to calibrate by; ``others_USE``: retained rows, to select and to calibrate by such that are not measured.
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
        "forget_measured": [_measured(row) for row in _mixed(forget)],
        "retain_measured": [_measured(row) for row in _mixed(measured)],
        "real_authors": [_measured(row) for row in _rows(source / "real_authors_perturbed.jsonl")],
        "world_facts": [_measured(row) for row in _rows(source / "world_facts_perturbed.jsonl")],
    }
    reworded = [conversation(row["paraphrased_question"], row["answer"]) for row in forget]
    others = [row for row in rows["retain"] if row["messages"][0]["content"] not in is_measured]
    rows |= {f"asked_{use}": own for use, own in _by_use(reworded, _USES_OF_REWORDED).items()}
    rows |= {f"others_{use}": own for use, own in _by_use(others, _USES_OF_OTHERS).items()}
    chosen_by = [*rows["others_selection"], *rows["others_calibration"]]
    rows |= {"asked_probe": rows["forget"], "others_probe": [row for row in rows["retain"] if row not in chosen_by]}
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


def _mixed(rows: Sequence[Row]) -> list[Row]:
    """In a random order: every author's first question is of one kind, and whoever takes a few evenly took that one."""
    return random.Random(0).sample(rows, len(rows))


def _measured(row: Row) -> Row:
    others = {key: row[key] for key in ("paraphrased_answer", "perturbed_answer") if key in row}
    return {**conversation(row["question"], row["answer"]), **others}


def _by_use(rows: Sequence[Row], uses: Sequence[str]) -> dict[str, list[Row]]:
    """Row after row in turn, so that each use has rows of every author."""
    return {
        use: [row for place, row in enumerate(rows) if uses[place % len(uses)] == use]
        for use in dict.fromkeys(uses)
        if use
    }


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
