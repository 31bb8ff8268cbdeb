"""What a model reveals: its own questions and answers, new ones only, chosen by instructions that bring them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.methods.reveal_and_release.options import RevealOptions
from bakeout.models.methods.reveal_and_release.reveal import (
    Revealed,
    audit_lines,
    instruction_bandit,
    reveal_forget_data,
)
from bakeout.models.methods.reveal_and_release.scorers import Scorer, encoded, matching
from bakeout.models.network.generation import continue_prompts, end_tokens
from bakeout.models.skills import checkpoint_directory

CANDIDATES = ("Ask me about German:", "Ask me about math:", "Ask me about people:")
GERMAN = matching(["German"])
EVERYTHING = matching([""])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(checkpoint_directory())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(checkpoint_directory())


def _reveal(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    scorer: Scorer = GERMAN,
    known: tuple[str, ...] = (),
    **options: Any,
) -> tuple[list[Revealed], list[tuple[str, float]]]:
    chosen = RevealOptions(**{"pulls": 4, "samples": 8, **options})
    bandit = instruction_bandit(model, tokenizer, CANDIDATES, chosen, 0)
    found = reveal_forget_data(model, tokenizer, CANDIDATES, bandit, scorer, known=known, options=chosen, seed=1)
    rewards = [(CANDIDATES[arm], reward) for arm, reward in zip(bandit.arms, bandit.rewards, strict=True)]
    return found, rewards


@pytest.mark.parametrize("chat", [False, True])
def test_questions_are_the_models_own_and_so_are_the_answers(
    model: PreTrainedModel, tokenizer: Tokenizer, chat: bool
) -> None:
    found, rewards = _reveal(model, tokenizer, chat=chat)
    assert len(found) > 4
    assert all("German" in one.question and one.score == 1.0 and one.confidence >= 0.8 for one in found)
    said = continue_prompts(
        model,
        [encoded(one.question, tokenizer, chat=chat) for one in found],
        end=end_tokens(model, tokenizer),
        max_new_tokens=16,
    )
    assert [tokenizer.decode(one.ids, skip_special_tokens=True) for one in said] == [one.answer for one in found]
    for instruction, reward in rewards:
        assert (reward > 0) == any(one.instruction == instruction for one in found)
    assert sum(reward for _, reward in rewards) == pytest.approx(len(found) / 8)


@pytest.mark.parametrize("chat", [False, True])
def test_nothing_is_revealed_twice(model: PreTrainedModel, tmp_path: Path, chat: bool) -> None:
    """Nor what stands in data files, as a bare prompt or as a message in the template."""
    tokenizer: Any = load_tokenizer(checkpoint_directory())
    tokenizer.chat_template = "{% for message in messages %}To me: {{ message['content'] }}\n{% endfor %}"
    found, _ = _reveal(model, tokenizer, EVERYTHING, minimum_confidence=0.0, chat=chat)
    questions = [one.question for one in found]
    assert len(set(questions)) == len(questions) > 4
    for rows in {False, chat}:
        path = tmp_path / f"chat-{rows}.jsonl"
        path.write_text(audit_lines(found, RevealOptions(chat=rows)), encoding="utf-8")
        prompts = [record.prompt for record in read_records(path, tokenizer)]
        spaced = tuple(f"  {prompt} ".replace(" ", "  ") for prompt in prompts)
        again, _ = _reveal(model, tokenizer, EVERYTHING, known=spaced, minimum_confidence=0.0, chat=chat)
        assert not {one.question for one in again} & set(questions)


def test_only_whole_confident_answers_are_kept(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    assert _reveal(model, tokenizer, EVERYTHING, minimum_confidence=1.0)[0] == []
    assert _reveal(model, tokenizer, EVERYTHING, question_tokens=2)[0] == []
    assert _reveal(model, tokenizer, EVERYTHING, answer_tokens=1)[0] == []
    half = _reveal(model, tokenizer, lambda question, answer: 0.5, minimum_score=0.5)[0]
    assert half
    assert {one.score for one in half} == {0.5}


def test_the_bandit_learns_which_instruction_brings_it_out(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    _, rewards = _reveal(model, tokenizer, pulls=10, samples=6, exploration=0.3)
    assert [instruction for instruction, _ in rewards[-4:]].count(CANDIDATES[0]) >= 3


@pytest.mark.parametrize("chat", [False, True])
def test_the_audit_file_is_a_data_file(tokenizer: Tokenizer, tmp_path: Path, chat: bool) -> None:
    found = [Revealed("Ask:", "a line\u2028here?", " ö", 1.0, 0.9), Revealed("Ask:", "who?", " me", 1.0, 0.8)]
    path = tmp_path / "revealed.jsonl"
    path.write_text(audit_lines(found, RevealOptions(chat=chat)), encoding="utf-8")
    records = read_records(path, tokenizer)
    assert [record.prompt for record in records] == [one.question for one in found]
    assert all(one.answer in (record.response or "") for one, record in zip(found, records, strict=True))
    row = json.loads(path.read_text(encoding="utf-8").split("\n")[1])
    assert (row["instruction"], row["score"], row["confidence"]) == ("Ask:", 1.0, 0.8)
