"""Relearning: what fine-tuning brings back of what each weight method has forgotten."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from bench import Bench
from torch import nn
from transformers import PreTrainedModel
from weights_forgotten import Forgotten, forgotten

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.methods.reveal_and_release.release import Text, reproduced
from bakeout.models.network.generation import end_tokens
from bakeout.models.reference.weight_edits import edited_weights

STEPS = (1, 10, 100)
# AdamW on all weights.
LEARNING_RATE, BATCH = 3e-4, 8
# How many examples of what was forgotten an attacker has.
EXAMPLES = 16


def rows(bench: Bench) -> None:
    """For each method: correct answers of the base model, after the method, and after each number of steps."""
    for one in forgotten(bench):
        if _key(one) in bench.rows:
            continue
        plan = one.plan()
        asked = _texts(bench, one.asked)
        row: dict[str, Any] = {"prompts": len(asked), "base": _share(bench.model, asked)}
        with edited_weights(bench.model, plan.interventions):
            edited = copy.deepcopy(bench.model)
        row["forgotten"] = _share(edited, asked)
        for data, records in (("retain", one.retain), ("forget", _spread(one.forget, EXAMPLES))):
            row[data] = _curve(copy.deepcopy(edited), _texts(bench, records), asked)
        print(f"{_key(one)}: {row}", flush=True)
        bench.save(_key(one), row)


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    found = {key.removeprefix(_PREFIX): row for key, row in bench.rows.items() if key.startswith(_PREFIX)}
    steps = [str(step) for step in STEPS]
    columns = [*(f"retain data, {step}" for step in steps), *(f"{EXAMPLES} forget examples, {step}" for step in steps)]
    lines = [
        "Relearning: correct answers about what was forgotten, in %, after so many steps of fine-tuning.\n\n",
        f"| method | base | forgotten | {' | '.join(columns)} |\n" + "| --- " * (len(columns) + 3) + "|\n",
    ]
    for name, row in found.items():
        curve = [row[data][step] for data in ("retain", "forget") for step in steps]
        shares = [f"{100 * share:.1f}" for share in (row["base"], row["forgotten"], *curve)]
        lines.append(f"| {name} | {' | '.join(shares)} |\n")
    return "".join(lines) if found else ""


_PREFIX = "relearning "


def _key(one: Forgotten) -> str:
    return f"{_PREFIX}{one.method}: {one.subject}"


def _curve(model: PreTrainedModel, trained: Sequence[Text], asked: Sequence[Text]) -> dict[str, float]:
    """The share of correct answers after each of ``STEPS`` of fine-tuning all weights of ``model``."""
    generator = torch.Generator().manual_seed(0)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    shares = {}
    for step in range(1, max(STEPS) + 1):
        rows = torch.randperm(len(trained), generator=generator)[:BATCH].tolist()
        _loss(model, [trained[row] for row in rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            shares[str(step)] = _share(model, asked)
    return shares


def _loss(model: PreTrainedModel, texts: Sequence[Text]) -> torch.Tensor:
    """The mean cross-entropy of the answers' tokens."""
    sequences = [text.prompt_ids + text.answer_ids for text in texts]
    input_ids, mask = map(torch.from_numpy, right_padded(sequences))
    answers = mask.clone()
    for row, text in enumerate(texts):
        answers[row, : len(text.prompt_ids)] = 0
    counted = answers[:, 1:].bool()
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits[counted], input_ids[:, 1:][counted])


def _share(model: PreTrainedModel, texts: Sequence[Text]) -> float:
    return float(np.mean(reproduced(model, texts)))


def _texts(bench: Bench, records: Sequence[Record]) -> list[Text]:
    end = sorted(end_tokens(bench.model, bench.tokenizer))
    return [Text(record.prompt_ids, record.response_ids + end) for record in records]


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """So many of the records, from first to last."""
    return [records[index * len(records) // count] for index in range(count)]
