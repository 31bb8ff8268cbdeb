import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from bakeout.models.skills import checkpoint_directory, vocabulary
from bakeout.models.skills.generator import SKILLS, SPLITS, Example, examples, people, training_examples, write_jsonl
from bakeout.models.skills.tokenizer import END_OF_TEXT, PADDING, REFUSAL, build_tokenizer

Drawn = dict[tuple[str, str], list[Example]]
MIXTURE = dict.fromkeys((*SKILLS, "ask"), 1.0)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Many examples of every skill and split."""
    return {(skill, split): examples(skill, split, 600) for skill in SKILLS for split in SPLITS}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    texts = (example.prompt + example.response for example in itertools.islice(training_examples(MIXTURE, 0), 20000))
    return build_tokenizer(itertools.chain(texts, [" " + REFUSAL]))


def test_no_prompt_is_in_two_splits(drawn: Drawn) -> None:
    for skill in SKILLS:
        seen = [{example.prompt for example in drawn[skill, split]} for split in SPLITS]
        for one, other in itertools.combinations(seen, 2):
            assert not one & other


def test_no_training_batch_asks_what_is_tested(drawn: Drawn) -> None:
    tested = {example.prompt for skill in SKILLS for split in SPLITS[1:] for example in drawn[skill, split]}
    trained = {example.prompt for example in itertools.islice(training_examples(MIXTURE, 3), 20000)}
    assert not tested & trained


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SKILLS), st.sampled_from(SPLITS), st.integers(0, 2**31), st.integers(1, 30))
def test_the_seed_decides(skill: str, split: str, seed: int, count: int) -> None:
    found = examples(skill, split, count, seed)
    assert found == examples(skill, split, count, seed)
    assert len({example.prompt for example in found}) == count
    assert found[: count // 2] == examples(skill, split, count // 2, seed)


def test_other_seeds_give_other_examples() -> None:
    assert examples("math", "test", 50, 0) != examples("math", "test", 50, 1)


def test_sums_of_the_same_numbers_share_a_split(drawn: Drawn) -> None:
    def pairs(split: str) -> set[tuple[int, ...]]:
        numbers = (
            tuple(sorted(int(part) for part in "".join(c if c.isdigit() else " " for c in example.prompt).split()))
            for example in drawn["math", split]
        )
        return set(numbers)

    for one, other in itertools.combinations(SPLITS, 2):
        assert not pairs(one) & pairs(other)


def test_answers_are_right(drawn: Drawn) -> None:
    known = {person.name: person for person in people()}
    for split in SPLITS:
        for example in drawn["code", split]:
            start = example.prompt.index("'")
            end = max(example.prompt.rindex(last) for last in "')]" if last in example.prompt) + 1
            assert example.response == f" {eval(example.prompt[start:end])!r}"
        for example in drawn["facts", split]:
            (person,) = (person for name, person in known.items() if name in example.prompt)
            assert example.response.strip() in (person.city, person.job)
        assert {example.response.strip() for example in drawn["unknown", split]} == {vocabulary.UNKNOWN_ANSWER}
        for example in drawn["math", split]:
            assert 0 <= int(example.response) <= 198


def test_strangers_are_not_known(drawn: Drawn) -> None:
    names = {person.name for person in people()}
    assert len(names) == 40
    assert not any(name in example.prompt for split in SPLITS for example in drawn["unknown", split] for name in names)


def test_written_examples_read_back(tmp_path: Path, drawn: Drawn) -> None:
    found = drawn["spanish", "test"]
    write_jsonl(found, tmp_path / "spanish.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "spanish.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["response"]) for row in rows] == [(one.prompt, one.response) for one in found]


@pytest.mark.parametrize("arguments", [("cooking", "test"), ("math", "exam")])
def test_what_there_is_not_is_named(arguments: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=arguments[0] if arguments[0] == "cooking" else "exam"):
        examples(*arguments, 1)


def test_a_split_that_is_too_small_says_so() -> None:
    with pytest.raises(ValueError, match="ask for less"):
        examples("facts", "test", 10**6)


def test_words_are_one_token_and_digits_and_letters_single(tokenizer: PreTrainedTokenizerBase) -> None:
    for words in vocabulary.WORDS:
        for word in words:
            # A word that begins with an accented letter is spelt, byte by byte.
            assert len(tokenizer(f" {word}").input_ids) == 1 or not word[0].isascii(), word
    for person in people():
        assert [len(tokenizer(f" {name}").input_ids) for name in person.name.split()] == [1, 1]
    assert tokenizer.tokenize("12+34 =") == ["1", "2", "+", "3", "4", "Ġ", "="]
    assert tokenizer.tokenize("'abcd'[::-1]")[1:5] == ["a", "b", "c", "d"]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text).input_ids
    if END_OF_TEXT not in text and PADDING not in text:
        assert tokenizer.decode(ids) == text


def test_prompts_are_where_responses_begin(tokenizer: PreTrainedTokenizerBase, drawn: Drawn) -> None:
    """A token that spanned the border could not be said by a model that is given the prompt."""
    for found in drawn.values():
        for example in found[:50]:
            whole = tokenizer(example.prompt + example.response).input_ids
            assert whole == tokenizer(example.prompt).input_ids + tokenizer(example.response).input_ids


def test_the_chat_template_writes_what_the_model_was_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "2+2 ="}, {"role": "assistant", "content": "4"}]
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == "2+2 ="
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "2+2 = 4" + END_OF_TEXT


def test_the_bundled_checkpoint_fits_into_git() -> None:
    directory = checkpoint_directory()
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 8_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in directory.iterdir()}
