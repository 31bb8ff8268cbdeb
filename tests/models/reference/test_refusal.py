"""What each position of a refused conversation says, against the definition taken literally."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.plan import Positions
from bakeout.models.reference.refusal import RowRefusal, positions_tested, refuse_row, said_after

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


@pytest.mark.parametrize(
    ("positions", "has_past", "real", "tested"),
    [
        ("query", False, [1, 1, 1], [0, 0, 1]),
        ("query", False, [1], [1]),
        ("query", True, [1], [0]),
        ("query", True, [1, 1], [0, 1]),
        ("query", False, [0, 1, 1], [0, 0, 1]),
        ("query", False, [1, 1, 0], [0, 1, 0]),
        ("query", False, [0, 0], [0, 0]),
        ("step", True, [1], [1]),
        ("step", True, [1, 0], [1, 0]),
        ("step", True, [0], [0]),
        ("every", True, [0, 1, 1], [0, 1, 1]),
    ],
)
def test_which_positions_are_tested(positions: Positions, has_past: bool, real: list[int], tested: list[int]) -> None:
    found = positions_tested(positions, has_past=has_past, real=[bool(r) for r in real])
    assert found == [bool(t) for t in tested]


@pytest.mark.parametrize("positions", ["query", "step"])
def test_a_query_inside_refuses_the_whole_run_and_latches_from_the_tested_token_on(positions: Positions) -> None:
    # Right padding: the third token is none.
    row = refuse_row(
        [5, 6, 1], positions, past_said=0, tokens=[9, 5, 0], real=[True, True, False], inside=[False, True, False]
    )
    assert row == RowRefusal([1, 1, 1], [0, 1, 1])


def test_every_refuses_causally_and_each_later_position_continues() -> None:
    row = refuse_row(
        [5, 6, 1], "every", past_said=0, tokens=[5, 9, 5, 6], real=[True] * 4, inside=[False, True, False, True]
    )
    assert row == RowRefusal([0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("positions", ["query", "step", "every"])
def test_a_latched_row_stays_refused_and_padding_is_no_part_of_the_conversation(positions: Positions) -> None:
    row = refuse_row(
        [5, 6, 7, 1], positions, past_said=2, tokens=[0, 6, 7], real=[False, True, True], inside=[False] * 3
    )
    assert row.said[1:] == [3, 4]
    assert row.latched == row.said


@pytest.mark.parametrize("positions", ["query", "step", "every"])
def test_a_row_outside_speaks_for_itself(positions: Positions) -> None:
    row = refuse_row([5, 6, 1], positions, past_said=0, tokens=[5, 6], real=[True, True], inside=[False, False])
    assert row == RowRefusal([0, 0], [0, 0])
