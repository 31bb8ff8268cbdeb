"""What each position of a refused conversation says, against the definition taken literally."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.refusal import said_after

# Few different tokens, so that refusals repeat themselves and conversations fall back into their middle.
_TOKENS = st.integers(0, 2)
_REFUSALS = st.lists(_TOKENS, min_size=2, max_size=8)


def _by_definition(refusal: list[int], conversation: list[int]) -> int:
    lengths = range(min(len(refusal) - 1, len(conversation)) + 1)
    return 1 + max(n for n in lengths if conversation[len(conversation) - n :] == refusal[:n])


@given(_REFUSALS, st.data(), st.lists(_TOKENS, max_size=12))
def test_the_state_is_the_longest_proper_prefix_that_the_conversation_ends_with(
    refusal: list[int], data: st.DataObject, tokens: list[int]
) -> None:
    previous_said = data.draw(st.integers(1, len(refusal)))
    conversation = refusal[: previous_said - 1]
    expected = [_by_definition(refusal, conversation + tokens[: n + 1]) for n in range(len(tokens))]
    assert said_after(refusal, previous_said, tokens) == expected


@given(_REFUSALS, st.data(), st.lists(_TOKENS, max_size=12))
def test_a_window_and_single_steps_agree(refusal: list[int], data: st.DataObject, tokens: list[int]) -> None:
    said = data.draw(st.integers(1, len(refusal)))
    whole = said_after(refusal, said, tokens)
    stepped = []
    for token in tokens:
        (said,) = said_after(refusal, said, [token])
        stepped.append(said)
    assert stepped == whole


def test_a_plain_loop_says_the_whole_refusal() -> None:
    refusal = [7, 7, 8, 7, 7, 9, 1]
    said = [1]
    while said[-1] < len(refusal):
        said += said_after(refusal, said[-1], [refusal[said[-1] - 1]])
    assert [refusal[s - 1] for s in said] == refusal


def test_each_position_of_a_window_that_continues_says_its_own_token() -> None:
    assert said_after([5, 6, 7, 8, 1], 1, [5, 6, 7, 8]) == [2, 3, 4, 5]


def test_other_input_starts_the_refusal_again() -> None:
    assert said_after([5, 6, 7, 1], 3, [9, 9]) == [1, 1]


def test_after_the_whole_refusal_was_said_and_fed_it_starts_again() -> None:
    assert said_after([5, 6, 1], 3, [1, 4, 5]) == [1, 1, 2]


def test_a_mismatch_keeps_what_still_matches() -> None:
    assert said_after([5, 5, 6, 1], 3, [5]) == [3]


@pytest.mark.parametrize("previous_said", [0, 4])
def test_a_state_that_cannot_be_is_refused(previous_said: int) -> None:
    with pytest.raises(ValueError, match="previous_said"):
        said_after([5, 6, 1], previous_said, [5])
