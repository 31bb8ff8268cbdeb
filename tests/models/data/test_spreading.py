from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.data.spreading import spread


@given(total=st.integers(0, 200), count=st.integers(1, 60))
def test_rows_are_spread_evenly_over_all_of_them(total: int, count: int) -> None:
    chosen = spread(range(total), count)
    assert len(chosen) == min(total, count)
    assert chosen[:1] == ([0] if total else [])
    gaps = [after - before for before, after in pairwise([*chosen, total])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_fewer_than_twice_as_many_rows_are_not_cut_off_at_the_end() -> None:
    assert spread(range(5), 3) == [0, 1, 3]
