"""The choice of layers and cubes: as good as the best, as shallow as can be."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bakeout.models.data.forms.kinds import MIXTURE, PLAIN
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.choosing.candidate import Candidate, Choice
from bakeout.models.methods.key_space_detection.choosing.structure import choose, choose_structure, layer_sets
from bakeout.models.methods.key_space_detection.choosing.unseen_forms import GROUPS, Forms
from bakeout.models.methods.key_space_detection.detection import (
    conformal_quantile,
    fit_key_space_detection,
    queries_beyond,
)
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions, Region, Structure
from bakeout.models.methods.key_space_detection.regions.cube import nearest_margins
from bakeout.models.methods.key_space_detection.regions.registry import FITTERS
from bakeout.models.methods.key_space_detection.separation import Share, auroc, distance
from bakeout.models.plan import Cubes
from bakeout.models.plan import Keys as KindOfKeys

WIDTH = 24
Keys = dict[int, np.ndarray]


def _keys(count: int, seed: int, centre: dict[int, float]) -> Keys:
    generator = np.random.default_rng(seed)
    return {layer: (at + generator.normal(size=(count, WIDTH))).astype(np.float32) for layer, at in centre.items()}


def _choose(**settings: Any) -> Choice:
    return choose_structure(**{"floor": "auto", "epsilon": 0.005, "seed": 0, **settings})


def _data(separated: dict[int, float]) -> dict[str, Any]:
    """Math lies around 0 in every layer, poems as far away as ``separated`` says."""
    here = dict.fromkeys(separated, 0.0)
    return {
        "probe": {"math": _keys(200, 1, here)},
        "selection": {"math": _keys(300, 2, here), "poems": _keys(300, 3, separated)},
        "layers": "auto",
        "cubes": 1,
    }


def test_of_layers_that_separate_alike_the_shallowest_is_taken() -> None:
    choice = _choose(**_data({0: 0.0, 1: 12.0, 2: 12.0, 3: 30.0}))
    assert choice.chosen.structure.layers == (1,)
    assert choice.chosen.error <= 0.5
    assert choice.chosen.worst_auroc.value == 1.0


def test_a_layer_that_separates_less_is_not_taken_for_being_shallow() -> None:
    choice = _choose(**_data({0: 0.5, 1: 1.0, 2: 12.0}))
    assert choice.chosen.structure.layers == (2,)


def test_layers_are_taken_jointly_where_no_single_one_separates() -> None:
    """Half of the poems are far away in one layer, half in the other."""
    data = _data({0: 0.0, 1: 0.0})
    poems = data["selection"]["poems"]
    poems[0][:150] += 12
    poems[1][150:] += 12
    choice = _choose(**data)
    assert choice.chosen.structure.layers == (0, 1)
    assert choice.chosen.refused["poems"].count == 0


def test_cubes_are_taken_where_one_covers_too_much() -> None:
    data = _data({0: 0.0})
    for keys in (data["probe"]["math"], data["selection"]["math"]):
        keys[0][::2] += 20
        keys[0][1::2] -= 20
    one = _choose(**data)
    several = _choose(**{**data, "cubes": "auto"})
    assert one.chosen.refused["poems"].count == 300
    assert several.chosen.structure.cubes == 2
    assert several.chosen.refused["poems"].count == 0


@pytest.mark.parametrize(("widths", "jointly"), [((24, 24, 24, 24, 24), True), ((24, 24, 24, 24, 8), False)])
def test_half_spaces_alone_are_tried_in_all_depths_jointly(widths: tuple[int, ...], jointly: bool) -> None:
    """Each layer tells a little; keys of several widths are not joined."""
    data = _data(dict.fromkeys(range(5), 1.0))
    data["against"] = {"poems": _keys(200, 4, dict.fromkeys(range(5), 1.0))}
    for queries in (data["probe"], data["selection"], data["against"]):
        for name, keys in queries.items():
            queries[name] = {layer: rows[:, : widths[layer]] for layer, rows in keys.items()}
    choice = _choose(**data, region="auto")
    structures = [candidate.structure for candidate in choice.candidates]
    tried = {(structure.region, len(structure.layers)) for structure in structures}
    assert (("linear", 5) in tried) == jointly
    assert max(count for shape, count in tried if shape != "linear") == 3
    if jointly:
        assert choice.chosen.structure.region == "linear"
        assert choice.chosen.structure.layers == (0, 1, 2, 3, 4)


def test_retained_keys_of_another_model_are_an_error() -> None:
    data = _data({0: 1.0, 1: 1.0})
    wide = {layer: np.zeros((50, WIDTH + 1), dtype=np.float32) for layer in (0, 1)}
    with pytest.raises(BakeoutError, match=f"retained queries have {WIDTH + 1} numbers, not {WIDTH}"):
        _choose(**data, region="linear", against={"poems": wide})
    some = {0: _keys(50, 5, {0: 1.0})[0]}
    with pytest.raises(BakeoutError, match="probe queries of songs have no keys of layer 1"):
        _choose(
            **{**data, "layers": [0, 1]}, region="linear", against={"poems": _keys(50, 4, {0: 1, 1: 1}), "songs": some}
        )


def test_queries_that_the_model_answers_wrongly_cost_nothing() -> None:
    data = _data({0: 0.0, 1: 12.0})
    data["selection"]["poems"][0][:60] += 12
    correct = {"poems": np.arange(300) < 60}
    assert _choose(**data).chosen.structure.layers == (1,)
    assert _choose(**data, correct=correct).chosen.structure.layers == (0,)


def test_the_worst_of_several_retain_names_counts() -> None:
    data = _data({0: 12.0, 1: 12.0})
    data["selection"]["songs"] = _keys(300, 4, {0: 0.0, 1: 12.0})
    choice = _choose(**data)
    assert choice.chosen.structure.layers == (1,)
    shallow = next(one for one in choice.candidates if one.structure.layers == (0,))
    assert shallow.worst_auroc == shallow.auroc["songs"]
    assert shallow.refused["songs"].count > 250


def test_several_skills_have_one_structure_and_their_own_alphas() -> None:
    data = _data({0: 12.0})
    data["probe"]["code"] = _keys(200, 5, {0: -20.0})
    data["selection"]["code"] = _keys(300, 6, {0: -20.0})
    choice = _choose(**data)
    assert set(choice.chosen.alpha) == {"math", "code"}
    assert set(choice.chosen.refused) == {"poems"}


def test_a_given_option_is_kept_and_auto_epsilon_is_one_that_can_be_guaranteed() -> None:
    data = {**_data({0: 12.0, 1: 12.0}), "layers": [1], "floor": 0.7}
    assert _choose(**data, epsilon=0.02).chosen.structure == Structure((1,), 1, 0.7, 0.02)
    assert _choose(**data, epsilon="auto").chosen.structure.epsilon == 0.005
    # Two queries lie beyond alpha where there are enough: one alone must not decide where it goes.
    for queries, epsilon in ((99, 0.03), (250, 0.0125), (599, 0.005), (98, 0.0125)):
        chosen = _choose(**data, epsilon="auto", calibration_queries=queries).chosen.structure
        assert chosen.epsilon == epsilon
        margins = np.arange(queries, dtype=float)
        beyond = int((margins > conformal_quantile(margins, epsilon, "math")).sum())
        assert beyond == queries_beyond(epsilon, queries)
        assert (beyond >= 2) == (queries != 98)
    assert _choose(**data, epsilon="auto", calibration_queries=5).chosen.structure.epsilon == 0.03


def test_the_choice_does_at_fitting_what_it_said() -> None:
    data = _data({0: 2.0, 1: 3.0})
    chosen = _choose(**data, floor=0.1).chosen
    check = fit_key_space_detection(
        data["probe"],
        {},
        {"poems": data["selection"]["poems"]},
        KeySpaceDetectionOptions(forget=["math"], alpha=chosen.alpha["math"]).with_structure(chosen.structure),
        refusal=[3, 1],
    )
    assert check.report.as_json()["retain"]["poems"]["refused"] == chosen.refused["poems"].count


def test_the_same_queries_give_the_same_choice_and_it_is_json() -> None:
    one, other = (_choose(**{**_data({0: 3.0, 1: 4.0}), "cubes": "auto"}, seed=3) for _ in range(2))
    assert json.dumps(one.figures().as_json()) == json.dumps(other.figures().as_json())
    assert isinstance(one, Choice)


def test_margins_are_the_nearest_cube_s() -> None:
    generator = np.random.default_rng(0)
    keys = generator.normal(size=(150, WIDTH)).astype(np.float32)
    cubes = Cubes(generator.normal(size=(3, WIDTH)), generator.uniform(0.1, 2, size=(3, WIDTH)))
    expected = np.min(
        [np.abs((keys - c) / d).max(axis=1) for c, d in zip(cubes.centre, cubes.deviation, strict=True)], axis=0
    )
    np.testing.assert_allclose(nearest_margins(keys, cubes), expected, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 6, 12, 32, 80])
def test_layer_sets_are_of_layers_that_exist_and_reach_the_last(layers: int) -> None:
    sets = layer_sets(layers)
    assert len(set(sets)) == len(sets) <= 34
    assert (layers - 1,) in sets
    depths = sorted({layers_of[0] for layers_of in sets if len(layers_of) == 1})
    assert tuple(depths) in sets
    assert all(0 <= layer < layers for one in sets for layer in one)
    assert all(list(one) == sorted(set(one)) for one in sets)
    if layers <= 12:
        assert {one[0] for one in sets if len(one) == 1} == set(range(layers))


def _candidate(
    layer: int,
    refused: int,
    misordered: int = 0,
    cubes: int = 1,
    queries: int = 1000,
    region: Region = "cube",
    apart: float = 9,
    keys: KindOfKeys = "key_vector",
    block: int | None = None,
) -> Candidate:
    retain = np.ones(queries)
    retain[:misordered] = -1
    spread = np.resize([-1.0, 1.0], queries)
    return Candidate(
        Structure((layer,), cubes, 0.3, 0.005, region, keys),
        layer if block is None else block,
        {"math": 1.0},
        Share(1, queries),
        {"poems": Share(refused, queries)},
        {"poems": auroc(np.zeros(queries), retain)},
        {"poems": distance(spread, spread + apart)},
    )


def test_a_cube_is_taken_where_it_does_as_well() -> None:
    best, shallow = _candidate(2, 0, region="linear"), _candidate(1, 2, region="ellipsoid")
    # Within the best one's interval: 1 of 1,000 missed reaches up to 5.6, as bad as 2.8 refused.
    within, beyond = _candidate(5, 2), _candidate(0, 40)
    assert choose([best, shallow, within, beyond]) is within
    # A half-space comes last: what it has not seen may be in it.
    assert choose([best, shallow, beyond]) is shallow
    assert choose([best, beyond]) is best
    mixed_up = _candidate(5, 2, misordered=100)
    assert choose([best, mixed_up]) is best


def test_a_report_says_how_far_apart_each_shape_is_where_that_is_a_number() -> None:
    far, near = _candidate(1, 0, region="linear"), _candidate(2, 0, apart=3)
    without = replace(_candidate(3, 0, region="ellipsoid"), distance={"poems": float("inf")})
    figures = Choice(far, (far, near, without)).figures()
    json.dumps(figures.as_json(), allow_nan=False)
    told = {text.partition(",")[0]: text.partition("falsely, ")[2] for text in figures.regions()}
    assert told == {"linear": "4.5 deviations apart", "cube": "1.5 deviations apart", "ellipsoid": ""}


def test_a_cube_that_spares_others_by_a_hair_is_not_as_good() -> None:
    """On Gemma 3, one that refused nothing falsely on the selection queries refused 12 % of fresh instructions."""
    far = _candidate(2, 0, region="linear", apart=9)
    assert choose([far, _candidate(1, 0, apart=3.9)]) is far
    clear = _candidate(1, 0, apart=4.1)
    assert choose([far, clear, _candidate(0, 0, apart=3.9)]) is clear
    # Where none is clear, counts alone decide.
    near = _candidate(3, 0, region="linear", apart=3.9)
    assert choose([near, (cube := _candidate(4, 0, apart=3))]) is cube


def test_of_half_spaces_the_farthest_is_taken() -> None:
    near, far, deep = (
        _candidate(layer, 0, region="linear", apart=apart) for layer, apart in ((1, 7.9), (3, 8), (4, 8))
    )
    assert choose([near, far, deep]) is far
    beyond = _candidate(0, 40, region="linear", apart=9)
    assert choose([near, far, deep, beyond]) is far
    # Of other shapes, what they hold is near what they were fitted to.
    assert choose([_candidate(1, 0, apart=4), _candidate(3, 0, apart=8)]).structure.layers == (1,)


def test_half_spaces_are_compared_in_forms_too_that_they_were_not_fitted_to() -> None:
    """In layer 0 each form of a question has a direction of its own, in layer 1 all have one."""
    kinds = ["plain", "story", "case"]
    own_direction, one_direction = 16 * np.eye(3, WIDTH), np.tile(6 * np.eye(1, WIDTH), (3, 1))

    def keys(count: int, seed: int, is_math: bool) -> Keys:
        noise = np.random.default_rng(seed).normal(size=(2, count, WIDTH))
        form = np.arange(count) % 3
        return {
            layer: (noise[layer] + is_math * shift[form]).astype(np.float32)
            for layer, shift in enumerate((own_direction, one_direction))
        }

    def chosen(layer: int, forms: Forms | None, **options: Any) -> Candidate:
        return choose_structure(
            {"math": keys(600, 1, True)},
            {"math": keys(60, 2, True), "poems": keys(60, 3, False)},
            region="linear",
            against={"poems": keys(600, 4, False)},
            forms=forms,
            layers=[layer],
            cubes="auto",
            floor="auto",
            epsilon=0.05,
            seed=0,
            **options,
        ).chosen

    drawn = kinds * 20
    formed = Forms({"math": drawn * 10}, {"poems": drawn * 10}, {"math": drawn, "poems": drawn})
    assert choose([chosen(0, None), chosen(1, None)]).structure.layers == (0,)
    assert choose([chosen(0, formed), chosen(1, formed)]).structure.layers == (1,)
    few = Forms({"math": drawn[:30] * 20}, {"poems": ["story"] * 600}, {"math": drawn, "poems": drawn})
    assert np.isfinite(chosen(0, few).least_distance), "nothing is fitted where one side is left out whole"
    # Without forms nothing is left out.
    unformed = Forms({"math": [""] * 600}, {"poems": [""] * 600}, {"math": [""] * 60, "poems": [""] * 60})
    assert chosen(0, unformed).least_distance == pytest.approx(chosen(0, None).least_distance)


def test_every_form_that_is_drawn_is_left_out_once() -> None:
    assert sorted(itertools.chain(*GROUPS)) == sorted(MIXTURE.keys() - {PLAIN})


def test_routers_and_layers_are_compared_by_their_blocks() -> None:
    # The first router of a mixture whose first blocks are dense lies behind their feed-forward layers.
    layer, router = _candidate(1, 0, block=1), _candidate(0, 0, keys="router_input", block=3)
    assert choose([layer, router]) is layer
    # In one block the router comes first.
    beside = _candidate(3, 0, block=3)
    assert choose([beside, router]) is router


def test_all_shapes_are_tried_and_told() -> None:
    """Two clusters around what is retained: a half-space cannot hold both, and cubes can."""

    def keys(count: int, seed: int, *places: float) -> Keys:
        generator = np.random.default_rng(seed)
        return {1: np.concatenate([generator.normal(p, 1, (count, WIDTH)) for p in places]).astype(np.float32)}

    def choice(**options: Any) -> Choice:
        return choose_structure(
            {"math": keys(60, 1, -6, 6)},
            {"math": keys(60, 2, -6, 6), "poems": keys(100, 3, 0)},
            region="auto",
            layers=[1],
            cubes="auto",
            floor="auto",
            epsilon=0.05,
            seed=0,
            **options,
        )

    both = choice(against={"poems": keys(100, 4, 0)})
    assert both.chosen.structure.region == "cube"
    assert {one.structure.region for one in both.candidates} == set(FITTERS)
    assert {one.structure.cubes for one in both.candidates if one.structure.region == "linear"} == {1}
    figures = both.figures()
    assert [line.split(",")[0] for line in figures.regions()] == list(FITTERS)
    # The rule need not take a shape's least error: what is told of that shape is what was taken.
    taken = replace(figures, chosen=replace(figures.chosen, layers=(7, 9), error=99.0)).regions()
    assert taken[0].startswith(f"cube, {figures.chosen.cubes} in layers 7, 9:")
    assert taken[1:] == figures.regions()[1:]
    # Nothing to fit a half-space against.
    assert {one.structure.region for one in choice().candidates} == set(FITTERS) - {"linear"}


def test_the_rule() -> None:
    # Within the best one's interval: 2 of 1,000 reach up to 7.
    deep, shallow, bad = _candidate(5, 2), _candidate(2, 6), _candidate(0, 30)
    assert choose([bad, shallow, deep]) is shallow
    assert choose([bad, deep]) is deep
    # As many false refusals, and yet mixed up at other alphas.
    assert choose([deep, _candidate(1, 6, misordered=100)]) is deep
    # At like depth, the lower error, then fewer cubes.
    fewer = _candidate(2, 6, cubes=2)
    assert choose([_candidate(2, 6, cubes=4), fewer]) is fewer
    better = _candidate(2, 4, cubes=8)
    assert choose([fewer, better, deep]) is better


def test_what_cannot_be_chosen_is_refused() -> None:
    data = _data({0: 12.0})
    with pytest.raises(BakeoutError, match="nothing to retain"):
        _choose(**{**data, "selection": {"math": data["selection"]["math"]}})
    with pytest.raises(BakeoutError, match="math has no queries to choose by"):
        _choose(**{**data, "selection": {"poems": data["selection"]["poems"]}})
    with pytest.raises(BakeoutError, match="no keys of layer 7"):
        _choose(**{**data, "layers": [7]})
