"""Which settings of decoding would garble a refusal, and what they become."""

from __future__ import annotations

from typing import Any

import pytest

from bakeout.export.artifacts.decoding_bans import find_bans
from bakeout.models.errors import BakeoutError

REFUSAL = [10, 11, 10, 12, 1]


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("suppress_tokens", [5, 11, 1], [5]),
        ("suppress_tokens", [11], None),
        ("begin_suppress_tokens", [10, 11], [11]),
        ("bad_words_ids", [[5], [11], [10, 12]], [[5]]),
        # Its beginning may be the prompt's end.
        ("bad_words_ids", [[7, 8, 10, 11], [7, 10, 5]], [[7, 10, 5]]),
        ("sequence_bias", [[[11], -float("inf")], [[11], -10.0]], [[[11], -10.0]]),
        ("sequence_bias", [[[5], 30000.0]], None),
        ("no_repeat_ngram_size", 3, None),
        ("encoder_no_repeat_ngram_size", 50, None),
        ("min_length", 5, 4),
        ("min_new_tokens", 40, 4),
        ("max_new_tokens", 4, 5),
        ("repetition_penalty", 0.0001, 1.0),
        ("encoder_repetition_penalty", 10_000.0, 1.0),
        ("forced_bos_token_id", 5, None),
        ("forced_decoder_ids", [[1, 5]], None),
        ("exponential_decay_length_penalty", [2, 2.0], [5, 2.0]),
    ],
)
def test_would_garble_it(name: str, value: Any, instead: Any) -> None:
    (ban,) = find_bans({name: value}, REFUSAL, "generation_config.json")
    assert (ban.name, ban.value, ban.instead) == (name, value, instead)
    assert not list(find_bans({} if instead is None else {name: instead}, REFUSAL, "generation_config.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", [5, 6]),
        ("begin_suppress_tokens", [11, 1]),
        ("bad_words_ids", [[11, 11], [12, 11]]),
        ("sequence_bias", [[[11], -10.0], [[5], 10.0], [[5], -float("inf")]]),
        ("no_repeat_ngram_size", 0),
        ("min_length", 0),
        ("min_new_tokens", 4),
        ("max_new_tokens", 5),
        ("repetition_penalty", 1.8),
        ("repetition_penalty", 0.5),
        ("encoder_repetition_penalty", 2.0),
        ("forced_bos_token_id", 10),
        ("exponential_decay_length_penalty", [100, 2.0]),
        ("exponential_decay_length_penalty", [1, 1.01]),
        ("temperature", 0.1),
        ("suppress_tokens", None),
    ],
)
def test_leaves_it_whole(name: str, value: Any) -> None:
    assert not list(find_bans({name: value}, REFUSAL, "generation_config.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bad_words_ids", 5),
        ("bad_words_ids", [5]),
        ("min_length", "many"),
        ("exponential_decay_length_penalty", [1]),
        ("sequence_bias", {"no": 1}),
        ("repetition_penalty", [1]),
    ],
)
def test_what_no_loop_can_follow_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BakeoutError, match=f"generation_config.json: {name} is .*, which no decode loop can follow"):
        list(find_bans({name: value}, REFUSAL, "generation_config.json"))
