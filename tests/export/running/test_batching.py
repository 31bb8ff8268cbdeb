"""Batches do not depend on which of their prompts are still to be answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.export.running.batching import batches

VOCABULARY = 10


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 4),
    st.booleans(),
    st.none() | st.integers(1, 9),
    st.data(),
)
def test_batches_are_whole_and_the_same_whichever_are_wanted(
    lengths: list[int], size: int, same_length: bool, longest: int | None, data: st.DataObject
) -> None:
    prompts = [[0] * length for length in lengths]
    wanted = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bakeout.export.running.batching.MOST_LOGITS", 12 * VOCABULARY)
        of_all = list(batches(prompts, size, VOCABULARY, same_length=same_length, longest=longest))
        some = list(batches(prompts, size, VOCABULARY, same_length=same_length, longest=longest, only=wanted))
    assert sorted(row for batch in of_all for row in batch) == list(range(len(lengths)))
    assert some == [batch for batch in of_all if wanted & set(batch)]
    for batch in of_all:
        own = [lengths[row] for row in batch]
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(own) <= 12
        assert len(set(own)) == 1 or not same_length
        assert len(batch) == 1 or longest is None or max(own) <= longest
    assert [lengths[row] for batch in of_all for row in batch] == sorted(lengths)
