"""Principal directions hold the energy asked for and no more, and a matrix can be rid of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bakeout.models.methods.lora_modules import linear_layers
from bakeout.models.methods.unlearn.subspaces import input_second_moments, principal_directions, without
from bakeout.models.network.families import all_widths

from tests.tiny_models import random_prompts, tiny_model

seeds = st.integers(0, 2**32 - 1)
energies = st.floats(0.05, 0.999)


def _rows(seed: int, tokens: int = 40, inputs: int = 12) -> NDArray[np.float64]:
    """Inputs of which some directions carry much more than others."""
    generator = np.random.default_rng(seed)
    scaled: NDArray[np.float64] = (
        generator.normal(size=(tokens, inputs)) @ np.diag(2.0 ** -np.arange(inputs)) @ _rotation(seed, inputs)
    )
    return scaled


def _rotation(seed: int, size: int) -> NDArray[np.float64]:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(size, size)))[0])


@given(seeds, energies)
def test_the_fewest_directions_that_hold_the_energy(seed: int, energy: float) -> None:
    rows = _rows(seed)
    basis = principal_directions(rows.T @ rows, energy)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-9)
    total = np.square(rows).sum()
    assert np.square(rows @ basis).sum() >= energy * total * (1 - 1e-9)
    # One direction less, and even the best of the smaller subspaces holds less.
    sizes = np.linalg.svd(rows, compute_uv=False)
    assert np.square(sizes[: basis.shape[1] - 1]).sum() < energy * total


@given(seeds, st.integers(1, 11))
def test_directions_of_no_energy_are_no_part_of_the_subspace(seed: int, rank: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(40, rank)) @ _rotation(seed, 12)[:rank]
    basis = principal_directions(rows.T @ rows, 1.0)
    assert basis.shape == (12, rank)
    np.testing.assert_allclose(rows @ basis @ basis.T, rows, atol=1e-8)


@given(seeds, energies)
def test_what_is_left_is_orthogonal_to_the_basis(seed: int, energy: float) -> None:
    rows = _rows(seed)
    basis = torch.from_numpy(principal_directions(rows.T @ rows, energy)).float()
    right = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 12))).float()
    left_over = without(right, basis)
    assert float((left_over @ basis).abs().max()) <= 1e-6 * float(right.norm())
    # What is taken away lies in the basis' subspace, and a second time there is nothing to take.
    taken = right - left_over
    torch.testing.assert_close(taken @ basis @ basis.T, taken, rtol=0, atol=1e-5)
    torch.testing.assert_close(without(left_over, basis), left_over, rtol=0, atol=1e-5)


@given(seeds)
def test_directions_do_not_hang_on_the_sign_of_a_decomposition(seed: int) -> None:
    rows = _rows(seed)
    basis = principal_directions(rows.T @ rows, 0.99)
    assert bool((basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])] > 0).all())


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt", "mixtral", "deepseek_v3"])
def test_second_moments_are_those_of_the_inputs_of_real_tokens(family: str) -> None:
    model = tiny_model(family, layers=2)
    prompts = random_prompts(7)
    linears = linear_layers(model, with_experts=True)
    names = [linear.name for linear in linears]
    batched = input_second_moments(model, linears, prompts, batch_size=3)
    seen: dict[str, torch.Tensor] = {name: torch.zeros(()) for name in names}

    def gather(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs = arguments[0].flatten(0, -2).double()
            seen[name] = seen[name] + inputs.T @ inputs

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(gather(name)) for name in names]
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    assert set(batched) == {name for name in names if seen[name].ndim}
    for name in batched:
        np.testing.assert_allclose(batched[name], seen[name].numpy(), rtol=1e-4, atol=1e-4)
    width = all_widths(model)[-1]
    assert batched[names[-1]].shape == (width, width)
