"""NeuralUCB (arXiv 1911.04462), the bandit with which Reveal-and-Release chooses instructions (arXiv 2509.14624)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bakeout.models.errors import BakeoutError

_STEPS = 100
_LEARNING_RATE = 0.03


class NeuralUCB:
    """Chooses among arms x by what a small network expects of each, and by how little it knows of it.

        x* = argmax_x  m(e(x); theta) + exploration * sqrt(g(x)^T V^-1 g(x)),    g = gradient of m in theta,
        V <- V + g g^T,    V_0 = regularisation * I

    ``features``: float [arms, d], e(x) of every arm; they are centred and scaled to norm 1 on average. m has one
    hidden layer of ``width`` ReLUs, scaled by 1 / sqrt(width). After every observation m is fitted again to all
    rewards from its first weights theta_0, least squares plus regularisation * |theta - theta_0|^2 (NeuralUCB's
    training, by full-batch Adam). V is kept whole, through Woodbury's identity over the observations: exact, and
    as small as they are few.

    Our reading, where both papers are silent: m starts at 0 for every arm (its output is taken relative to
    theta_0's), and equal bounds are broken in favour of the arm named first.

    Everything is float64 and follows from ``seed`` and the observations. Raises ``BakeoutError`` for features that
    are no finite matrix.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        exploration: float,
        regularisation: float,
        seed: int,
        width: int = 32,
    ) -> None:
        _require(features)
        centred = features.double() - features.double().mean(dim=0)
        norm = centred.norm(dim=1).mean()
        self._features = centred / norm if norm > 0 else centred
        self._exploration = exploration
        self._regularisation = regularisation
        generator = torch.Generator().manual_seed(seed)
        self._first = (
            # The last column is the bias.
            torch.randn(width, features.shape[1] + 1, generator=generator, dtype=torch.float64),
            torch.randn(width, generator=generator, dtype=torch.float64),
        )
        self._theta = self._first
        self._gradients = torch.empty((0, sum(part.numel() for part in self._first)), dtype=torch.float64)
        self.arms: list[int] = []
        self.rewards: list[float] = []

    def choose(self) -> int:
        """The arm with the highest upper confidence bound."""
        return int((self.expected() + self.bonus()).argmax())

    def expected(self) -> Tensor:
        """m(e(x); theta) of every arm: float64 [arms]."""
        inputs = _with_bias(self._features)
        return _network(inputs, *self._theta) - _network(inputs, *self._first)

    def bonus(self) -> Tensor:
        """The term exploration * sqrt(g^T V^-1 g) of every arm: float64 [arms]."""
        g = self._gradients_at(self._features)
        # V^-1 = (I - G^T (regularisation * I + G G^T)^-1 G) / regularisation, G the gradients of the observed arms.
        seen = self._gradients
        system = seen @ seen.T + self._regularisation * torch.eye(len(seen), dtype=torch.float64)
        cross = seen @ g.T
        explained = (cross * torch.linalg.solve(system, cross)).sum(dim=0)
        variance: Tensor = (g.square().sum(dim=1) - explained) / self._regularisation
        return self._exploration * variance.clamp(min=0).sqrt()

    def observe(self, arm: int, reward: float) -> None:
        """Take in the reward that ``arm`` gave, and fit m again."""
        gradient = self._gradients_at(self._features[arm : arm + 1])
        self._gradients = torch.cat([self._gradients, gradient])
        self.arms.append(arm)
        self.rewards.append(reward)
        self._theta = self._fitted()

    def state(self) -> dict[str, Tensor]:
        """What has been observed: int64 [n] arms, float64 [n] rewards, float64 [n, parameters] gradients."""
        return {
            "arms": torch.tensor(self.arms, dtype=torch.int64),
            "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            "gradients": self._gradients.clone(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state`` of a bandit made with the same arguments, as if it had never stopped."""
        self.arms = [int(arm) for arm in state["arms"]]
        self.rewards = [float(reward) for reward in state["rewards"]]
        self._gradients = state["gradients"].clone()
        self._theta = self._fitted()

    def _gradients_at(self, features: Tensor) -> Tensor:
        """The gradient of m in theta at each row of features: float64 [rows, parameters]."""
        inputs = _with_bias(features)
        hidden_weight, out_weight = self._theta
        hidden = inputs @ hidden_weight.T
        scale = 1 / math.sqrt(len(out_weight))
        by_hidden = (scale * (hidden > 0) * out_weight)[:, :, None] * inputs[:, None, :]
        return torch.cat([by_hidden.flatten(1), scale * hidden.clamp(min=0)], dim=1)

    def _fitted(self) -> tuple[Tensor, Tensor]:
        if not self.arms:
            return self._first
        inputs = _with_bias(self._features[self.arms])
        rewards = torch.tensor(self.rewards, dtype=torch.float64)
        start = _network(inputs, *self._first)
        with torch.enable_grad():
            theta = tuple(part.clone().requires_grad_() for part in self._first)
            optimizer = torch.optim.Adam(theta, lr=_LEARNING_RATE)
            for _ in range(_STEPS):
                error = _network(inputs, *theta) - start - rewards
                moved = sum((now - first).square().sum() for now, first in zip(theta, self._first, strict=True))
                loss = error.square().sum() + self._regularisation * moved
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        hidden_weight, out_weight = (part.detach() for part in theta)
        return hidden_weight, out_weight


def _network(inputs: Tensor, hidden_weight: Tensor, out_weight: Tensor) -> Tensor:
    """m: [rows, d + 1] to [rows]."""
    output: Tensor = torch.relu(inputs @ hidden_weight.T) @ out_weight
    return output / math.sqrt(len(out_weight))


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones((len(features), 1), dtype=features.dtype)], dim=1)


def _require(features: Tensor) -> None:
    if features.ndim != 2 or 0 in features.shape or not bool(torch.isfinite(features).all()):
        raise BakeoutError(
            f"NeuralUCB: features of shape {tuple(features.shape)} are not finite numbers, a row per arm.",
            "Give at least one candidate, and a model in float32.",
        )
