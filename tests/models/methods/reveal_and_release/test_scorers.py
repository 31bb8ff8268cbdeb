"""Scorers tell what is to be forgotten by a description, or by its being unlike what must stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.reveal_and_release.scorers import matching, mean_hidden_states, novelty
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl

from tests.tiny_models import random_prompts, tiny_model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(checkpoint_directory())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(checkpoint_directory())


def _records(skill: str, split: str, count: int, tokenizer: Tokenizer, path: Path) -> list[Record]:
    write_jsonl(examples(skill, split, count), path / "rows.jsonl")
    return read_records(path / "rows.jsonl", tokenizer)


def test_a_description_is_found_in_question_or_answer() -> None:
    scorer = matching([r"\bbees?\b", "honey"])
    assert scorer("What do BEES make?", "wax") == 1.0
    assert scorer("What do they make?", "Honey.") == 1.0
    assert scorer("What is beer?", "A drink.") == 0.0
    assert matching(["(?-i:US)"])("about us", "") == 0.0


def test_questions_unlike_what_must_stay_are_new(model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The retain data says nothing of German, and the question is of no use without its words."""
    retain = {skill: _records(skill, "probing", 80, tokenizer, tmp_path) for skill in ("math", "facts")}
    score = novelty(model, tokenizer, retain, chat=False)
    for skill, accepted in (("math", (0.0, 0.2)), ("facts", (0.0, 0.4)), ("german", (0.8, 1.0)), ("code", (0.8, 1.0))):
        asked = [example.prompt for example in examples(skill, "selection", 20)]
        share = sum(score(question, "") >= 0.95 for question in asked) / len(asked)
        assert accepted[0] <= share <= accepted[1], (skill, share)


def test_a_retain_prompt_itself_is_not_new(model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = _records("math", "probing", 30, tokenizer, tmp_path)
    score = novelty(model, tokenizer, {"math": records}, chat=False)
    assert all(score(record.prompt, "") == 0.0 for record in records[:5])
    with pytest.raises(BakeoutError, match="fewer than two"):
        novelty(model, tokenizer, {"math": records[:1] * 3}, chat=False)


@pytest.mark.parametrize("rows", ["messages", "bare"])
def test_in_a_chat_a_retain_prompt_itself_is_not_new(model: PreTrainedModel, tmp_path: Path, rows: str) -> None:
    """Whether the rows are messages, which the template renders, or bare prompts."""
    tokenizer: Any = load_tokenizer(checkpoint_directory())
    tokenizer.chat_template = "{% for message in messages %}To me: {{ message['content'] }}\n{% endfor %}"
    asked = [example.prompt for example in examples("math", "probing", 30)]
    data: list[dict[str, Any]] = [{"prompt": text} for text in asked]
    if rows == "messages":
        data = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    score = novelty(model, tokenizer, {"math": read_records(tmp_path / "rows.jsonl", tokenizer)}, chat=True)
    assert all(score(text, "") == 0.0 for text in asked[:5])
    assert score(examples("german", "selection", 1)[0].prompt, "") > 0.9


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma3", "llama4_text"])
def test_hidden_states_are_those_of_each_text_alone(family: str) -> None:
    model, texts = tiny_model(family, layers=2), random_prompts(7)
    means = mean_hidden_states(model, texts, batch_size=3)
    for text, mean in zip(texts, means, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(mean, states[0].double().mean(dim=0), rtol=1e-4, atol=1e-5)
