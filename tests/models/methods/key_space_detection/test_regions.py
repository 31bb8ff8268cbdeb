"""Every shape of regions: what it promises of its own keys, what it refuses of others, and its mathematics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.covariance import ledoit_wolf as ledoit_wolf_of_scikit_learn
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.cubes import cluster
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import STRUCTURE, KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.regions.discriminant import discriminant
from bakeout.models.methods.key_space_detection.regions.fitter import Probed
from bakeout.models.methods.key_space_detection.regions.linear import LINEAR
from bakeout.models.methods.key_space_detection.regions.refits import HalfSpaceRefits
from bakeout.models.methods.key_space_detection.regions.shrinkage import ledoit_wolf
from bakeout.models.plan import Floats, KeySpaceDetection
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids

from tests.fitted_regions import SHAPES, fitted_regions

WIDTH = 20
REFUSAL = [7, 8, 1]
_MIX = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
Keys = dict[int, np.ndarray]


def _gaussian(count: int, seed: int, centre: float = 0.0) -> Keys:
    """Correlated keys of two layers."""
    generator = np.random.default_rng(seed)
    return {layer: (centre + generator.normal(size=(count, WIDTH)) @ _MIX).astype(np.float32) for layer in (0, 2)}


def _together(*parts: Keys) -> Keys:
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}


def _joint(keys: Keys) -> Floats:
    return np.concatenate([keys[0], keys[2]], axis=1).astype(np.float64)


def _fit(region: str, **options: Any) -> KeySpaceDetection:
    """Two clusters of a skill, and something else between them and beyond."""
    skill = [_together(_gaussian(150, seed, -3.0), _gaussian(150, seed + 1, 3.0)) for seed in (10, 20)]
    return fit_key_space_detection(
        {"math": skill[0]},
        {"math": skill[1]},
        {"code": _together(_gaussian(200, 31), _gaussian(200, 32, 8.0))},
        KeySpaceDetectionOptions(
            **{"forget": ["math"], "layers": [0, 2], "cubes": 2, "epsilon": 0.05, "region": region, **options}
        ),
        refusal=REFUSAL,
        against={"code": _together(_gaussian(200, 41), _gaussian(200, 42, 8.0))},
    )


@pytest.mark.parametrize("region", SHAPES)
def test_fresh_queries_are_covered_as_promised(region: str) -> None:
    check = _fit(region)
    fresh = _joint(_together(_gaussian(2000, 51, -3.0), _gaussian(2000, 52, 3.0)))
    covered = check.is_inside(check.margins(fresh)).mean()
    # The coverage is beta-distributed about 0.95 with a deviation of 0.0125.
    assert 0.91 < covered < 0.99
    figures = (check.report.skills or {})["math"]
    assert figures.guaranteed_coverage == 0.95
    assert figures.cubes == (150, 150)
    assert check.regions.name == region
    assert check.regions.shape == (2, 2 * WIDTH)
    assert check.contradiction == ""


@pytest.mark.parametrize("region", SHAPES)
def test_a_skill_apart_from_what_is_retained_is_told_from_it(region: str) -> None:
    near, far = _gaussian(300, 61), _gaussian(300, 62, 6.0)
    check = fit_key_space_detection(
        {"math": near},
        {"math": _gaussian(300, 63)},
        {"code": _gaussian(300, 64, 6.0)},
        KeySpaceDetectionOptions(forget=["math"], layers=[0, 2], epsilon=0.01, region=region),
        refusal=REFUSAL,
        against={"code": far},
    )
    assert (check.report.retain or {})["code"].rate <= 0.01


@pytest.mark.parametrize("region", SHAPES)
def test_joined_regions_are_those_of_each(region: str) -> None:
    """Two skills together have the margins of each one alone."""
    keys = {"math": _gaussian(100, 1), "code": _gaussian(80, 2, 4.0)}
    retained = {"names": _gaussian(90, 3, -4.0)}
    options = KeySpaceDetectionOptions(forget=["math"], layers=[0, 2], alpha=3.0, region=region)

    def fit(*skills: str) -> KeySpaceDetection:
        probe = {skill: keys[skill] for skill in skills}
        return fit_key_space_detection(probe, {}, {}, options, refusal=REFUSAL, against=retained)

    fresh = _joint(_gaussian(20, 4, 2.0))
    both, math, code = fit("math", "code"), fit("math"), fit("code")
    expected = np.concatenate([math.margins(fresh), code.margins(fresh)], axis=1)
    np.testing.assert_allclose(both.margins(fresh), expected, rtol=1e-9)


@pytest.mark.parametrize("region", SHAPES)
def test_margins_grow_along_the_slope(region: str) -> None:
    generator = np.random.default_rng(5)
    regions = fitted_regions(
        region, [generator.normal(size=(60, 8)), generator.normal(2, 1, (50, 8))], np.full((9, 8), 5)
    )
    key = generator.normal(size=(1, 8)) + 3
    for index in range(2):
        slope = regions.slope(key, index, 2.0)
        assert slope.shape == (1, 8)
        step = 1e-5 * slope / np.linalg.norm(slope)
        assert regions.margins(key + step)[0, index] > regions.margins(key)[0, index]


@pytest.mark.parametrize("region", SHAPES)
def test_nearness_is_1_on_the_boundary(region: str) -> None:
    check = _fit(region)
    on_boundary = np.tile(check.alpha, (3, 1))
    np.testing.assert_allclose(check.nearness_of_each(on_boundary), 1)
    margins = check.margins(_joint(_gaussian(200, 71, 2.0)))
    assert ((check.nearness(margins) <= 1) == check.is_inside(margins)).all()


def test_a_half_space_can_have_an_alpha_below_0() -> None:
    check = _fit("linear", cubes=1, alpha=-1.0)
    assert check.alpha.tolist() == [-1.0]
    margins = check.margins(_joint(_together(_gaussian(500, 81, -3.0), _gaussian(500, 82, 3.0))))
    near = check.nearness(margins)
    assert 0 < (near <= 1).mean() < 1
    assert ((near <= 1) == check.is_inside(margins)).all()
    with pytest.raises(BakeoutError, match="alpha is not positive"):
        replace(_fit("cube", cubes=1), alpha=check.alpha)


def test_a_half_space_needs_retained_keys() -> None:
    with pytest.raises(BakeoutError, match="fitted against retained queries"):
        fit_key_space_detection(
            {"math": _gaussian(50, 1)},
            {"math": _gaussian(50, 2)},
            {},
            KeySpaceDetectionOptions(forget=["math"], layers=[0, 2], epsilon=0.1, region="linear"),
            refusal=REFUSAL,
        )


@pytest.mark.parametrize(
    ("skill", "retained", "dimensions", "block"), [(40, 70, 200, 4096), (40, 70, 200, 64), (300, 500, 60, 4096)]
)
def test_the_discriminant_is_scikit_learns(
    skill: int, retained: int, dimensions: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more dimensions than keys, at once and some at a time, and fewer; of very different size, one constant."""
    monkeypatch.setattr("bakeout.models.methods.key_space_detection.regions.discriminant._BLOCK", block)
    generator = np.random.default_rng(0)
    size = 10 ** generator.uniform(-2, 2, dimensions)
    inside = size * (generator.normal(size=(skill, dimensions)) + 0.5)
    outside = size * generator.normal(size=(retained, dimensions))
    inside[:, 0] = outside[:, 0] = 3.0
    weight, bias = discriminant(inside, outside)
    labels = np.repeat([1, 0], [skill, retained])
    theirs = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    theirs.fit(np.concatenate([inside, outside]), labels)
    direction = theirs[-1].coef_[0] / theirs[0].scale_
    scale = np.linalg.norm(direction * size)
    np.testing.assert_allclose(weight * size / np.linalg.norm(weight * size), direction * size / scale, atol=1e-10)
    assert abs(weight @ inside.mean(axis=0) + bias) < 1e-9


@pytest.mark.parametrize(("cubes", "dimensions"), [(1, 9000), (1, 30), (3, 300)])
def test_without_some_keys_a_half_space_is_about_that_of_the_others(cubes: int, dimensions: int) -> None:
    """With all keys it is the discriminant; without a third of them it ranks keys as one of the others alone."""
    generator = np.random.default_rng(dimensions)
    apart = generator.normal(size=dimensions) / np.sqrt(dimensions)
    skill, retained, fresh = (generator.normal(size=(rows, dimensions)) for rows in (90, 150, 100))
    skill += 8 * apart
    fresh[:50] += 8 * apart
    # What is left out lies elsewhere, so that it makes a difference.
    skill[60:] += 5 * generator.normal(size=dimensions) / np.sqrt(dimensions)
    left, every, some = np.arange(90) < 60, np.ones(150, dtype=bool), np.arange(10, 40)

    def probed(keys: Floats) -> Probed:
        return Probed(keys, cluster(keys, "sums", layers=1, count=cubes, seed=0), retained)

    def margins(keys: Floats) -> Floats:
        return np.asarray(LINEAR.nearest(fresh.astype(np.float32), LINEAR.fit(probed(keys), 0.0)))

    refits = HalfSpaceRefits(probed(skill), {"fresh": fresh.astype(np.float32)})
    whole = refits.fitted(left | True, every)
    assert whole is not None
    np.testing.assert_allclose(whole("fresh", some), margins(skill)[some], atol=1e-5)
    without = refits.fitted(left, every)
    assert without is not None
    if cubes == 1:
        assert np.corrcoef(without("fresh", np.arange(100)), margins(skill[left]))[0, 1] > 0.99
        assert np.abs(without("fresh", np.arange(100)) - margins(skill)).max() > 0.1
    assert refits.fitted(left & False, every) is None


@pytest.mark.parametrize("dimensions", [3, 50])
@pytest.mark.parametrize("retained", [1, 2])
def test_a_half_space_of_hardly_any_keys_is_finite(dimensions: int, retained: int) -> None:
    generator = np.random.default_rng(0)
    skill, others = generator.normal(size=(2, dimensions)), generator.normal(size=(retained, dimensions))
    weight, bias = discriminant(skill, others)
    # No more than a thousand deviations' worth for each: a covariance of nothing has no smaller unit.
    assert np.abs([*weight, bias]).max() < 1e5
    margins = [-(keys @ weight + bias) for keys in (skill, others)]
    assert margins[0].mean() == pytest.approx(0, abs=1e-6)
    assert margins[1].min() > margins[0].max()


@pytest.mark.parametrize("dimensions", [64, 1000])
def test_a_constant_dimension_does_not_vary_in_float32_either(dimensions: int) -> None:
    """The float32 mean of equal numbers can be another number."""
    generator = np.random.default_rng(0)
    skill, retained, fresh = (generator.normal(size=(rows, dimensions)).astype(np.float32) for rows in (200, 300, 50))
    skill += 0.3
    for keys in (skill, retained, fresh):
        keys[:, :5] = 0.1
    probed = Probed(skill, cluster(skill, "sums", layers=1, count=1, seed=0), retained, np.float32)
    exact = LINEAR.nearest(fresh, LINEAR.fit(replace(probed, dtype=np.float64), 0.0))
    np.testing.assert_allclose(LINEAR.nearest(fresh, LINEAR.fit(probed, 0.0)), exact, atol=1e-3)
    whole = HalfSpaceRefits(probed, {"fresh": fresh}).fitted(np.ones(200, dtype=bool), np.ones(300, dtype=bool))
    assert whole is not None
    np.testing.assert_allclose(whole("fresh", np.arange(50)), exact, atol=1e-3)


@pytest.mark.parametrize("rows", [12, 300])
def test_the_shrinkage_is_scikit_learns(rows: int) -> None:
    generator = np.random.default_rng(rows)
    values = generator.normal(size=(rows, 40)) * generator.uniform(0.1, 3, 40)
    values -= values.mean(axis=0)
    shrinkage = ledoit_wolf(values @ values.T, values.shape[1])
    covariance, share = ledoit_wolf_of_scikit_learn(values, assume_centered=True)
    assert shrinkage.share == pytest.approx(share)
    assert shrinkage.variance == pytest.approx(np.trace(covariance) / 40)


def test_an_ellipsoid_measures_by_the_shrunk_covariance() -> None:
    """With all its directions it is the Mahalanobis distance; fewer change no more than they leave out."""
    generator = np.random.default_rng(3)
    keys = generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12)) + 1
    ellipsoid = fitted_regions("ellipsoid", [keys], keys)
    assert isinstance(ellipsoid, Ellipsoids)
    deviation = keys.std(axis=0, ddof=1)
    z = (keys - keys.mean(axis=0)) / deviation
    covariance, _ = ledoit_wolf_of_scikit_learn(z, assume_centered=True)
    variances, vectors = np.linalg.eigh(covariance)
    rank = ellipsoid.scale.shape[1]
    assert variances[::-1][:rank].sum() >= 0.85 * variances.sum()
    assert rank < 12
    np.testing.assert_allclose(ellipsoid.scale[0], np.sqrt(variances[::-1][:rank]))
    spread = np.concatenate([variances[::-1][:rank], np.full(12 - rank, variances[: 12 - rank].mean())])
    expected = np.sqrt(((z @ vectors[:, ::-1]) ** 2 / spread).sum(axis=1))
    np.testing.assert_allclose(ellipsoid.margins(keys)[:, 0], expected)


def test_directions_are_few_in_many_dimensions() -> None:
    keys = np.random.default_rng(0).normal(size=(200, 500))
    for region in ("ellipsoid", "rotated_cube"):
        regions = fitted_regions(region, [keys[:150], keys[150:]], keys)
        assert regions.facts(0)["directions"] == 64


def test_keys_without_spread_about_their_clusters_are_refused() -> None:
    with pytest.raises(BakeoutError, match="no cluster's key vectors vary"):
        fitted_regions("ellipsoid", [np.ones((3, 6)), np.zeros((3, 6))], np.ones((3, 6)))


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"region", "layers", "keys", "cubes", "floor", "epsilon"}),
        ({"layers": "auto", "epsilon": 0.1}, {"region", "layers", "keys", "cubes", "floor"}),
        ({"region": "linear"}, {"layers", "keys", "cubes", "floor", "epsilon"}),
        ({"layers": [2]}, set()),
        ({"layers": [2], "region": "auto"}, {"region"}),
        ({"alpha": 3.0}, set()),
        ({"alpha": 3.0, "layers": "auto"}, {"layers"}),
        ({"paper": True}, set()),
    ],
)
def test_what_is_left_open_is_chosen_unless_layers_or_alpha_are_named(given: dict[str, Any], chosen: set[str]) -> None:
    options = KeySpaceDetectionOptions(forget=["math"], **given)
    assert {name for name in STRUCTURE if getattr(options, name) == "auto"} == chosen
    assert options.is_chosen == bool(chosen)


def test_paper_stands_for_the_papers_settings() -> None:
    options = KeySpaceDetectionOptions(forget=["math"], paper=True, epsilon=0.1)
    assert (options.region, options.layers, options.cubes, options.positions) == ("cube", "last", 1, "query")
    assert list(options.augment) == []
    assert options.epsilon == 0.1
    assert KeySpaceDetectionOptions(forget=["math"], paper=True, cubes=1, layers="last") == options.model_copy(
        update={"epsilon": 0.005}
    )


@pytest.mark.parametrize(
    "given",
    [
        {"region": "linear"},
        {"layers": [3]},
        {"layers": "auto"},
        {"cubes": 2},
        {"positions": "every"},
        {"augment": ["case"]},
    ],
)
def test_other_values_contradict_paper(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValidationError, match=f"`paper: true` stands for `{name}: "):
        KeySpaceDetectionOptions(forget=["math"], paper=True, **given)
