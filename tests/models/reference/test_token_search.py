"""A canary's sequences are synthesised: inside and just outside of the cubes, and nothing of the user's data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import Cubes, KeySpaceDetection, NeuronAdjust, Positions, first_of_mean
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.reference.canary import MOST_SEQUENCES, canary_values, synthesise_canary
from bakeout.models.reference.ngrams import NGrams, common_frame
from bakeout.models.reference.reference_model import Reference
from bakeout.models.reference.search_vocabulary import Vocabulary

from tests.baked_parity import plan_of
from tests.fitted_regions import cubes_of
from tests.plan_examples import adjusted_layer
from tests.tiny_models import random_prompts, tiny_model

LAYER, WIDTH, FRAME = 1, 96, 9
ROWS = random_prompts(40, shortest=10, longest=10)
VOCABULARY = Vocabulary(np.arange(2, 258), private=NGrams(ROWS, 2))


def _cubes(count: int = 1) -> KeySpaceDetection:
    """Equal cubes around the keys of random rows, narrow enough to let most random text pass."""
    probed = probe_keys(tiny_model("llama"), ROWS, layers=[LAYER])[LAYER]
    keys = np.asarray(probed, dtype=np.float64)
    shape = (count, WIDTH)
    return KeySpaceDetection(
        layers=(LAYER,),
        regions=Cubes(
            np.broadcast_to(keys.mean(axis=0), shape).copy(), np.broadcast_to(keys.std(axis=0), shape).copy()
        ),
        alpha=np.full(count, 2.4),
        skills=("sums",) * count,
        refusal=np.array([7, 1]),
    )


def test_sequences_lie_inside_and_just_outside() -> None:
    model, cubes = tiny_model("llama"), _cubes()
    canary = synthesise_canary(model, [cubes], VOCABULARY)
    (margins,) = canary_values(model, [cubes], canary.input_ids)
    nearness = cubes.nearness(margins)
    assert canary.refused == (True, True, False)
    assert canary.uncovered == ()
    assert nearness[0] <= 0.9
    assert 0.95 < nearness[1] < 1 < nearness[2] < 1.05
    again = synthesise_canary(model, [cubes], VOCABULARY)
    np.testing.assert_array_equal(again.input_ids, canary.input_ids)


def _half_space(positions: Positions) -> KeySpaceDetection:
    """A half-space that holds the first key of every prompt, and half of the last ones."""
    first = np.asarray(probe_keys(tiny_model("llama"), [[FRAME]], layers=[LAYER])[LAYER], dtype=np.float64)[0]
    last = np.asarray(probe_keys(tiny_model("llama"), ROWS, layers=[LAYER])[LAYER], dtype=np.float64)
    direction = first - last.mean(axis=0)
    weight = direction / (last @ direction).std()
    half_space = HalfSpaces(weight[None], np.array([-float(weight @ last.mean(axis=0))]))
    assert half_space.margins(first[None])[0, 0] < -1
    return KeySpaceDetection((LAYER,), half_space, np.array([0.2]), ("sums",), np.array([7, 1]), positions)


def test_tokens_of_all_prompts_can_lie_in_a_half_space() -> None:
    """Where the last token is checked they do not matter; where every one is, all is refused and none can be shown."""
    model, framed = tiny_model("llama"), replace(VOCABULARY, prefix=(FRAME,))
    check = _half_space("query")
    canary = synthesise_canary(model, [check], framed)
    (margins,) = canary_values(model, [check], canary.input_ids)
    nearness = check.nearness(margins)
    assert canary.refused == (True, True, False)
    assert nearness[0] <= 0.9
    assert 0.95 < nearness[1] < 1 < nearness[2] < 1.05
    assert synthesise_canary(model, [_half_space("every")], framed).uncovered == (0,)


@pytest.mark.parametrize("opening", [(), (FRAME, 8)])
def test_the_mean_key_is_searched_for(opening: tuple[int, ...]) -> None:
    """Sequences lie by their mean keys from the opening of the query on, and the reference refuses by these."""
    model, framed = tiny_model("llama"), replace(VOCABULARY, prefix=(5, 4, FRAME, 8))
    rows = [[*framed.prefix, *row] for row in ROWS]
    first = [first_of_mean(row, opening) for row in rows]
    keys = np.asarray(probe_keys(model, rows, layers=[LAYER], first=first)[LAYER], dtype=np.float64)
    cubes = Cubes(keys.mean(axis=0)[None], keys.std(axis=0)[None])
    check = replace(_cubes(), regions=cubes, positions="mean", query_start=opening)
    canary = synthesise_canary(model, [check], framed)
    nearness = check.nearness(canary_values(model, [check], canary.input_ids)[0])
    assert canary.refused == (True, True, False)
    assert nearness[0] <= 0.9
    assert 0.95 < nearness[1] < 1 < nearness[2] < 1.05
    plan = plan_of(model, [check], rows)
    with Reference(model, plan) as reference:
        ids = torch.from_numpy(canary.input_ids)
        reference.step(ids, torch.ones_like(ids), reference.new_cache(len(ids)))
    assert reference.said is not None
    assert (reference.said[:, -1] > 0).tolist() == [True, True, False]


def test_no_run_of_the_data_is_in_them() -> None:
    canary = synthesise_canary(tiny_model("llama"), [_cubes()], VOCABULARY)
    runs = {tuple(row[start : start + 2]) for row in ROWS for start in range(len(row) - 1)}
    for row in canary.input_ids.tolist():
        assert not runs & {tuple(row[start : start + 2]) for start in range(len(row) - 1)}


def test_of_many_cubes_some_are_sampled_and_the_others_told() -> None:
    canary = synthesise_canary(tiny_model("llama"), [_cubes(20)], VOCABULARY)
    assert len(canary.input_ids) <= MOST_SEQUENCES
    assert len(canary.uncovered) >= 10


def test_cubes_out_of_reach_are_told_and_the_canary_is_random() -> None:
    cubes = _cubes()
    far = replace(cubes, regions=Cubes(cubes_of(cubes).centre + 1e6, cubes_of(cubes).deviation))
    canary = synthesise_canary(tiny_model("llama"), [far], VOCABULARY)
    assert canary.refused == (False,) * 4
    assert canary.uncovered == (0,)


def test_a_search_in_vain_reads_little() -> None:
    """Large models take seconds for a thousand tokens."""
    model, cubes, read = tiny_model("llama"), _cubes(5), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].numel()))
    far = replace(cubes, regions=Cubes(cubes_of(cubes).centre + 1e6, cubes_of(cubes).deviation))
    assert synthesise_canary(model, [far], VOCABULARY).uncovered == (0, 1, 2, 3, 4)
    assert sum(read) < 15_000


def test_a_canary_without_a_check_is_random_tokens() -> None:
    adjust = NeuronAdjust("threshold", (adjusted_layer(),))
    canary = synthesise_canary(tiny_model("llama"), [adjust], VOCABULARY)
    assert canary.input_ids.shape == (4, 8)
    assert canary.refused is None
    assert not VOCABULARY.private.are_in(canary.input_ids).any()


def test_what_all_prompts_share_is_their_frame() -> None:
    prompts = [[1, 9, *row, 3, 4] for row in ROWS]
    assert common_frame(prompts) == ([1, 9], [3, 4])
    # So few may share their own words.
    assert common_frame(prompts[:4]) == ([], [])


def test_runs_of_the_data_are_recognised() -> None:
    private = NGrams([[1, 2, 3, 4, 5], [6, 7]], 3)
    assert private.are_in(np.array([[9, 2, 3, 4], [1, 2, 4, 3], [6, 7, 1, 2]])).tolist() == [True, False, False]
    assert private.are_in(np.array([[1, 2]])).tolist() == [False]
