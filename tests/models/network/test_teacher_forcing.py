"""Answers are scored in one pass, wherever batches end; a model that never answers exactly is not asked on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.network import teacher_forcing
from bakeout.models.network.generation import continue_prompts
from bakeout.models.network.teacher_forcing import answers, exactly_answered

from tests.tiny_models import END_OF_TEXT_ID, random_prompts, tiny_model

_END = frozenset({END_OF_TEXT_ID})


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """A tiny Llama of two layers."""
    return tiny_model("llama", layers=2)


def _answered(model: PreTrainedModel, count: int, tokens: int = 3) -> list[Record]:
    """Rows whose responses are what the model itself generates."""
    prompts = random_prompts(count)
    texts = continue_prompts(model, prompts, end=frozenset(), max_new_tokens=tokens)
    return [Record("p", "r", prompt, text.ids) for prompt, text in zip(prompts, texts, strict=True)]


def _wrong(record: Record) -> Record:
    return replace(record, response_ids=[(token + 1) % 200 + 5 for token in record.response_ids])


def _forward_passes(model: PreTrainedModel, passes: list[torch.Size]) -> torch.utils.hooks.RemovableHandle:
    head = model.get_output_embeddings()
    handle: torch.utils.hooks.RemovableHandle = head.register_forward_hook(
        lambda _module, arguments, output: passes.append(output.shape)
    )
    return handle


@pytest.mark.parametrize("family", ["llama", "opt", "bart"])
def test_the_batches_do_not_change_what_is_answered(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family, layers=2)
    records = [record if row % 3 else _wrong(record) for row, record in enumerate(_answered(model, 12))]
    whole = answers(model, records, end=frozenset())
    assert whole.correct.tolist() == [row % 3 != 0 for row in range(12)]
    passes: list[torch.Size] = []
    handle = _forward_passes(model, passes)
    longest = max(len(record.prompt_ids) + len(record.response_ids) for record in records)
    monkeypatch.setattr(teacher_forcing, "_BATCH_LOGITS", 2 * longest * model.config.vocab_size)
    parts = answers(model, records, end=frozenset())
    handle.remove()
    assert max(shape[0] * shape[1] for shape in passes) <= 2 * longest
    assert len(passes) > 1
    np.testing.assert_array_equal(parts.correct, whole.correct)
    np.testing.assert_array_equal(parts.tokens, whole.tokens)
    np.testing.assert_allclose(parts.first.logarithms, whole.first.logarithms, atol=1e-4)


def test_the_head_runs_on_the_answers_alone(llama: PreTrainedModel) -> None:
    records = _answered(llama, 4)
    passes: list[torch.Size] = []
    handle = _forward_passes(llama, passes)
    answers(llama, records, end=_END)
    handle.remove()
    assert passes == [(4, 3 + 1, llama.config.vocab_size)]


def test_rows_that_the_model_answers_exactly_are_told_apart(llama: PreTrainedModel) -> None:
    records = [record if row % 7 == 5 else _wrong(record) for row, record in enumerate(_answered(llama, 70))]
    correct = exactly_answered(llama, records, end=frozenset())
    np.testing.assert_array_equal(correct, answers(llama, records, end=frozenset()).correct)
    assert correct.sum() == 10


def test_an_answer_ends_where_its_text_ends(llama: PreTrainedModel) -> None:
    """Chat templates write the end of text, and often a line break behind it, which no model is asked to say."""
    (record,) = _answered(llama, 1)
    (longer,) = _answered(llama, 1, tokens=4)
    end = frozenset({longer.response_ids[-1]} - set(record.response_ids))
    assert end
    written = replace(record, response_ids=[*longer.response_ids, 7])
    assert answers(llama, [record, written], end=end).correct.tolist() == [True, True]
    assert exactly_answered(llama, [written], end=end).tolist() == [True]
    other = frozenset({END_OF_TEXT_ID})
    ends_early = replace(record, response_ids=[*record.response_ids, END_OF_TEXT_ID, 7])
    assert not answers(llama, [ends_early], end=other).correct.any()


def test_a_model_that_never_answers_exactly_is_tried_on_a_few_rows(llama: PreTrainedModel) -> None:
    records = [_wrong(record) for record in _answered(llama, 70)]
    passes: list[torch.Size] = []
    handle = _forward_passes(llama, passes)
    assert not exactly_answered(llama, records, end=frozenset()).any()
    handle.remove()
    assert sum(shape[0] for shape in passes) == 32


def test_long_answers_are_read_on_where_they_begin_right(llama: PreTrainedModel) -> None:
    right, wrong_later, wrong = _answered(llama, 3, tokens=12)
    wrong_later = replace(wrong_later, response_ids=[*wrong_later.response_ids[:10], 5, 6])
    passes: list[torch.Size] = []
    handle = _forward_passes(llama, passes)
    correct = exactly_answered(llama, [right, wrong_later, _wrong(wrong)], end=frozenset())
    handle.remove()
    assert correct.tolist() == [True, False, False]
    assert [shape[:2] for shape in passes] == [(3, 8 + 1), (2, 12 + 1)]
