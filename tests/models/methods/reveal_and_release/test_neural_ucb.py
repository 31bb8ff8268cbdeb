"""NeuralUCB: its bound is the formula's, it finds the best arm, and it goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.reveal_and_release.neural_ucb import NeuralUCB


def _bandit(features: torch.Tensor, seed: int = 0) -> NeuralUCB:
    return NeuralUCB(features, exploration=0.5, regularisation=0.1, seed=seed)


def _features(arms: int, dimension: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(arms, dimension, generator=torch.Generator().manual_seed(seed))


def _gradients(bandit: NeuralUCB) -> torch.Tensor:
    """The gradient of m in theta at every arm, by autograd: [arms, parameters]."""
    features = torch.cat([bandit._features, torch.ones(len(bandit._features), 1).double()], dim=1)
    rows = []
    for row in features:
        theta = [part.clone().requires_grad_() for part in bandit._theta]
        output = (torch.relu(theta[0] @ row) @ theta[1]) / len(theta[1]) ** 0.5
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(output, theta)]))
    return torch.stack(rows)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=4), st.integers(0, 3))
def test_the_bonus_is_the_formulas_with_the_whole_v(observations: list[tuple[int, float]], seed: int) -> None:
    bandit = NeuralUCB(_features(5, 3, seed), exploration=0.7, regularisation=0.3, width=4, seed=seed)
    v = 0.3 * torch.eye(4 * 4 + 4, dtype=torch.float64)
    for arm, reward in observations:
        gradient = _gradients(bandit)[arm]
        v += torch.outer(gradient, gradient)
        bandit.observe(arm, reward)
    g = _gradients(bandit)
    expected = 0.7 * (g @ torch.linalg.inv(v) * g).sum(dim=1).clamp(min=0).sqrt()
    torch.testing.assert_close(bandit.bonus(), expected, rtol=1e-6, atol=1e-8)


def test_before_any_observation_nothing_is_expected_of_any_arm() -> None:
    bandit = _bandit(_features(7))
    torch.testing.assert_close(bandit.expected(), torch.zeros(7).double())
    assert bandit.choose() == int(bandit.bonus().argmax())


def test_an_arm_that_was_observed_is_less_uncertain_and_its_reward_expected() -> None:
    bandit = _bandit(_features(8), seed=1)
    before = bandit.bonus()[3]
    for _ in range(12):
        bandit.observe(3, 0.8)
    assert bandit.bonus()[3] < 0.5 * before
    assert float(bandit.expected()[3]) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_arm_of_a_noisy_bandit(seed: int) -> None:
    """A reward that is not linear in the features; 30 arms, 40 pulls."""
    features = _features(30, 8, seed)
    means = torch.sigmoid(3 * torch.relu(features[:, 0]) - 2 * features[:, 1].abs())
    noise = torch.Generator().manual_seed(seed)
    bandit = _bandit(features, seed=seed)
    for _ in range(40):
        arm = bandit.choose()
        bandit.observe(arm, float(means[arm] + 0.05 * torch.randn((), generator=noise)))
    late = means[bandit.arms[-10:]].mean()
    assert late - means.mean() > 0.7 * (means.max() - means.mean())


def test_it_goes_on_as_if_it_had_never_stopped() -> None:
    def pull(bandit: NeuralUCB, times: int) -> None:
        for _ in range(times):
            arm = bandit.choose()
            bandit.observe(arm, (arm % 5) / 5)

    whole = _bandit(_features(9), seed=4)
    pull(whole, 10)
    first = _bandit(_features(9), seed=4)
    pull(first, 6)
    second = _bandit(_features(9), seed=4)
    second.restore(first.state())
    pull(second, 4)
    assert second.arms == whole.arms
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name], tensor)


def test_arms_that_look_alike_are_no_fault() -> None:
    bandit = _bandit(torch.ones(3, 4))
    bandit.observe(bandit.choose(), 1.0)
    assert torch.isfinite(bandit.bonus()).all()


@pytest.mark.parametrize(
    "features",
    [
        torch.ones(3),
        torch.empty(0, 4),
        torch.full((2, 2), torch.nan),
    ],
)
def test_what_cannot_be_a_bandit_is_refused(features: torch.Tensor) -> None:
    with pytest.raises(BakeoutError, match="NeuralUCB"):
        _bandit(features)
