"""Attacks ask the same in another form, and what is tested was never widened with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.data.variants import KINDS, Kind, Prompt, variants
from bakeout.models.errors import BakeoutError

QUESTIONS = [Prompt(f"What is {n} + {n + 1}?", f" {2 * n + 1}") for n in range(40)]
REWRITTEN: list[Kind] = ["suffix", "prefix", "whitespace", "case", "punctuation"]


@pytest.mark.parametrize("kind", [*REWRITTEN, "few_shot"])
def test_every_prompt_gets_a_variant_that_differs_and_is_the_same_next_time(kind: Kind) -> None:
    made = variants(QUESTIONS, kind, seed=1, shots=QUESTIONS)
    assert made == variants(QUESTIONS, kind, seed=1, shots=QUESTIONS)
    assert made != variants(QUESTIONS, kind, seed=2, shots=QUESTIONS)
    assert len(made) >= 38
    assert all(one.text != QUESTIONS[one.source].text for one in made)
    assert len({one.source for one in made}) == len(made)


@pytest.mark.parametrize("kind", REWRITTEN)
def test_what_is_tested_was_not_widened_with(kind: Kind) -> None:
    widening, testing = (
        {one.text for seed in range(5) for one in variants(QUESTIONS, kind, seed=seed, use=use)}
        for use in ("widening", "testing")
    )
    assert not widening & testing


@given(st.text(min_size=1, max_size=40), st.sampled_from(["suffix", "prefix"]), st.integers(0, 9))
def test_words_around_a_prompt_leave_it_whole(text: str, kind: Kind, seed: int) -> None:
    (made,) = variants([Prompt(text)], kind, seed=seed)
    assert text in made.text


@given(st.text(max_size=40), st.sampled_from(REWRITTEN), st.sampled_from(["widening", "testing"]))
def test_any_text_has_variants(text: str, kind: Kind, use: str) -> None:
    for made in variants([Prompt(text)], kind, seed=0, use=use):  # type: ignore[arg-type]
        assert made.text != text


def test_a_prompt_is_not_among_its_own_shots() -> None:
    for made in variants(QUESTIONS[:3], "few_shot", seed=0, shots=QUESTIONS[:3]):
        *shots, asked = made.text.split("\n")
        assert asked == QUESTIONS[made.source].text
        assert len(shots) == 2
        assert not any(shot.startswith(asked) for shot in shots)


def test_paraphrases_and_languages_are_those_that_are_given() -> None:
    prompts = [Prompt("Hi", paraphrases=("Hello", "Hey")), Prompt("Bye"), Prompt("Yes", translations=("Ja",))]
    assert {one.text for one in variants(prompts, "paraphrase", seed=0)} <= {"Hello", "Hey"}
    assert [(one.source, one.text) for one in variants(prompts, "language", seed=0)] == [(2, "Ja")]


def test_what_cannot_be_varied_is_refused() -> None:
    with pytest.raises(BakeoutError, match=r"No attack is called 'poem'.*suffix"):
        variants(QUESTIONS, "poem", seed=0)  # type: ignore[arg-type]
    with pytest.raises(BakeoutError, match=r"two rows with a response.*Add responses"):
        variants(QUESTIONS, "few_shot", seed=0)
    assert len(KINDS) == 8
