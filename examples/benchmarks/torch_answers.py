"""What a PyTorch model answers, and how probable other answers are, with interventions applied: no graph is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bakeout.export.evaluation.graders.reading import Reading
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.placement import Dtype, Placement
from bakeout.models.data.padding import left_padded, right_padded
from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.network.devices import input_device, tokens_at_once
from bakeout.models.network.generation import continue_prompts, end_tokens
from bakeout.models.network.probing import batches_by_length
from bakeout.models.plan import Intervention
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.weight_edits import edited_weights

BATCH = 128


def checkpoint_on(directory: Path, device: str, dtype: Dtype = "float32") -> Checkpoint:
    """In float32, whatever the device, unless another type is asked for."""
    return Checkpoint(directory, Placement(device, dtype))


@contextmanager
def applied(model: PreTrainedModel, interventions: Sequence[Intervention]) -> Iterator[Hooks]:
    """A context in which ``model`` carries weight edits and adjustments; checks are only seen."""
    with edited_weights(model, interventions), Hooks(model, interventions) as hooks:
        yield hooks


@torch.no_grad()
def read(model: PreTrainedModel, records: Sequence[Record]) -> list[Reading]:
    """Each response behind its prompt."""
    readings: dict[int, Reading] = {}
    sequences = [record.prompt_ids + record.response_ids for record in records]
    head, device = model.get_output_embeddings(), input_device(model)
    for rows in batches_by_length([len(ids) for ids in sequences], BATCH, most_tokens=tokens_at_once(model)):
        ids, mask = (torch.from_numpy(array).to(device) for array in right_padded([sequences[row] for row in rows]))
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        answered = torch.zeros_like(mask, dtype=torch.bool)
        for place, row in enumerate(rows):
            answered[place, len(records[row].prompt_ids) - 1 : len(sequences[row]) - 1] = True
        logits = head(hidden[answered]).float()
        targets = ids[:, 1:][answered[:, :-1]]
        logarithms = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0].double().cpu().numpy()
        greedy = (logits.argmax(dim=-1) == targets).cpu().numpy()
        ends = np.cumsum([len(records[row].response_ids) for row in rows])[:-1]
        for row, own, hits in zip(rows, np.split(logarithms, ends), np.split(greedy, ends), strict=True):
            readings[row] = Reading(own, bool(hits.all()))
    return [readings[row] for row in range(len(records))]


def greedy_answers(
    model: PreTrainedModel, tokenizer: Tokenizer, records: Sequence[Record], max_new_tokens: int
) -> list[str]:
    """What the model says to each prompt."""
    texts = continue_prompts(
        model,
        [record.prompt_ids for record in records],
        end=end_tokens(model, tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=4 * BATCH,
    )
    return [str(tokenizer.decode(text.ids, skip_special_tokens=True)) for text in texts]


@torch.no_grad()
def refused(
    model: PreTrainedModel, records: Sequence[Record], interventions: Sequence[Intervention], hooks: Hooks
) -> list[bool]:
    """Whether a check among ``interventions`` refuses each prompt by its last token, or its mean key."""
    places = [place for place, intervention in enumerate(interventions) if intervention.check is not None]
    if not places:
        return [False] * len(records)
    check = interventions[places[0]].check
    assert check is not None
    verdicts: dict[int, bool] = {}
    prompts = [record.prompt_ids for record in records]
    for rows in batches_by_length([len(ids) for ids in prompts], BATCH, most_tokens=tokens_at_once(model)):
        ids, mask = (
            torch.from_numpy(array).to(input_device(model)) for array in left_padded([prompts[row] for row in rows])
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        keys = hooks.seen[places[0]].reshape(len(rows), ids.shape[1], -1).cpu().numpy()
        of_prompts = zip(rows, keys, strict=True)
        decisive = [own[-len(prompts[row]) :][check.decisive(prompts[row])].mean(axis=0) for row, own in of_prompts]
        inside = check.is_inside(check.margins(np.stack(decisive)))
        verdicts.update(zip(rows, inside.tolist(), strict=True))
    return [verdicts[row] for row in range(len(records))]


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
