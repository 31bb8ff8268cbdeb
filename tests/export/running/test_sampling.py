from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from bakeout.export.running.sampling import Sampling, greedy
from bakeout.models.errors import BakeoutError

LOGITS = arrays.arrays(np.float32, (3, 7), elements=st.integers(-2000, 2000).map(lambda value: value / 100))


@given(LOGITS, st.integers(0, 99))
def test_a_tiny_temperature_is_greedy_up_to_ties(logits: NDArray[np.float32], seed: int) -> None:
    drawn = Sampling(temperature=1e-6, seed=seed).chooser([0, 1, 2])(logits)
    rows = np.arange(3)
    assert (logits[rows, drawn] == logits[rows, greedy(logits)]).all()


@given(LOGITS, st.floats(0.05, 1.0), st.integers(0, 99))
def test_only_the_likeliest_tokens_that_reach_top_p_are_drawn(
    logits: NDArray[np.float32], top_p: float, seed: int
) -> None:
    drawn = Sampling(top_p=top_p, seed=seed).chooser([0, 1, 2])(logits)
    for row, token in zip(logits.astype(np.float64), drawn, strict=True):
        likelihood = np.exp(row - row.max())
        likelihood /= likelihood.sum()
        assert likelihood[likelihood > likelihood[token]].sum() < top_p + 1e-9


def test_tokens_are_drawn_as_often_as_softmax_says() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    choose = Sampling(seed=1).chooser([0])
    counts = np.bincount([int(choose(logits)[0]) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 4 * np.sqrt(0.25 / 4000)


def test_the_stream_belongs_to_the_row_and_the_seed() -> None:
    logits = np.zeros((1, 50), dtype=np.float32)

    def said(seed: int, rows: list[int], at: int) -> list[int]:
        choose = Sampling(seed=seed).chooser(rows)
        return [int(choose(np.repeat(logits, len(rows), axis=0))[at]) for _ in range(20)]

    assert said(0, [4], 0) == said(0, [2, 4, 9], 1)
    assert said(0, [4], 0) != said(0, [5], 0)
    assert said(0, [4], 0) != said(1, [4], 0)


def test_several_draws_in_a_batch_are_those_of_a_batch_each() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)

    def drawn(sampling: Sampling, rows: list[int]) -> list[int]:
        choose = sampling.chooser(rows)
        return [int(token) for _ in range(9) for token in choose(np.repeat(logits, len(rows), axis=0))]

    assert drawn(Sampling(seed=3, prompts=2), [4, 5]) == drawn(Sampling(seed=5), [0, 1])


def test_rare_tokens_are_drawn_too() -> None:
    logits = np.full((1, 100_000), -10.0, dtype=np.float32)
    logits[0, 7] = 0
    for top_p in (1.0, 0.99):
        choose = Sampling(top_p=top_p).chooser([0])
        tokens = np.array([int(choose(logits)[0]) for _ in range(200)])
        # Together they have a share of 0.82.
        assert 0.7 < (tokens != 7).mean() < 0.95


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(BakeoutError):
        Sampling(**options)
