"""Selective Pruning cuts off the neurons that the authors' score names, exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from bakeout.models.data.rows import Record, Rows
from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.selective_pruning.fit import fit, fit_selective_pruning, fitter
from bakeout.models.methods.selective_pruning.options import SelectivePruningOptions
from bakeout.models.network.families import experts, feed_forward_layers
from bakeout.models.network.mixtures.expert_probing import probe_mixture_magnitudes
from bakeout.models.network.probing import probe_key_magnitudes
from bakeout.models.network.statistics import KeyMagnitudes, MixtureMagnitudes
from bakeout.models.plan import ZeroColumns
from bakeout.models.reference.weight_edits import edited_weights

from tests.tiny_models import FAMILIES, byte_tokenizer, random_prompts, tiny_model

LAYERS, WIDTH = 3, 10


def _magnitudes(seed: int, tokens: int = 7) -> KeyMagnitudes:
    return KeyMagnitudes(tokens, np.random.default_rng(seed).uniform(0.1, 5, size=(LAYERS, WIDTH)))


def _selected(fitted: ZeroColumns) -> set[tuple[int, int]]:
    return {(layer.layer, int(column)) for layer in fitted.layers for column in layer.columns}


def _records(count: int, seed: int) -> list[Record]:
    prompts, responses = random_prompts(count, seed=seed), random_prompts(count, seed=seed + 1, shortest=1)
    return [Record("p", "r", prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 1))
def test_the_neurons_with_the_highest_ratio_of_means_are_cut_off(seed: int, ratio: float) -> None:
    forget, retain = _magnitudes(seed, tokens=3), _magnitudes(seed + 1, tokens=5)
    fitted = fit_selective_pruning(forget, retain, ratio=ratio)
    score = (forget.total / 3) / (retain.total / 5 + 1e-8)
    best = np.argsort(score, axis=None)[::-1][: max(1, round(ratio * LAYERS * WIDTH))]
    assert _selected(fitted) == {(int(index) // WIDTH, int(index) % WIDTH) for index in best}
    assert fitted.report.as_json()["neurons"] == len(best) == sum(fitted.report.as_json()["neurons_per_layer"].values())


def test_a_search_fits_each_candidate_as_a_fit_of_its_own_would() -> None:
    """Magnitudes are shared between ratios, not between choices of tokens."""
    rows: Rows = {name: {"probe": _records(4, seed)} for name, seed in (("sums", 1), ("names", 5))}
    fitting = Fitting(tiny_model("llama", layers=2), byte_tokenizer(), list(rows), rows)
    options = SelectivePruningOptions(forget=["sums"], ratio="auto")
    candidate = fitter(options, fitting)
    searched = []
    for settings in ({"ratio": 0.1, "tokens": "answer"}, {"ratio": 0.1, "tokens": "all"}, {"ratio": 0.2}):
        own = fit(options.model_copy(update=dict(settings)), fitting)
        searched.append(_selected(candidate(settings)))
        assert searched[-1] == _selected(own)
    assert searched[0] != searched[1]


def test_equal_scores_go_to_the_lower_layer_then_the_lower_neuron() -> None:
    same = KeyMagnitudes(1, np.ones((LAYERS, WIDTH)))
    fitted = fit_selective_pruning(same, same, ratio=12 / (LAYERS * WIDTH))
    assert _selected(fitted) == {(0, neuron) for neuron in range(WIDTH)} | {(1, 0), (1, 1)}


@given(st.integers(0, 2**32 - 1), st.integers(1, 19))
def test_more_neurons_contain_fewer(seed: int, count: int) -> None:
    forget, retain = _magnitudes(seed), _magnitudes(seed + 1)
    size = LAYERS * WIDTH
    fewer = fit_selective_pruning(forget, retain, ratio=count / size)
    assert _selected(fewer) < _selected(fit_selective_pruning(forget, retain, ratio=(count + 1) / size))


def test_a_neuron_that_is_silent_on_the_forget_set_stays() -> None:
    total = np.zeros((LAYERS, WIDTH))
    total[1, 3] = 1.0
    fitted = fit_selective_pruning(KeyMagnitudes(4, total), _magnitudes(0), ratio=1.0)
    assert _selected(fitted) == {(1, 3)}
    assert fitted.report.as_json()["silent_neurons"] == LAYERS * WIDTH - 1


def test_a_neuron_that_is_silent_on_the_retain_set_goes_first() -> None:
    retain = _magnitudes(0)
    retain.total[2, 4] = 0.0
    assert _selected(fit_selective_pruning(_magnitudes(1), retain, ratio=0.001)) == {(2, 4)}


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_magnitudes_merge_into_those_of_all_tokens(seed: int, first: int, second: int) -> None:
    keys = np.random.default_rng(seed).normal(size=(first + second, LAYERS, WIDTH))
    parts = [KeyMagnitudes(len(part), np.abs(part).sum(axis=0)) for part in (keys[:first], keys[first:])]
    merged = parts[0].merge(parts[1])
    assert merged.tokens == first + second
    np.testing.assert_allclose(merged.mean, np.abs(keys).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_probed_magnitudes_are_those_of_the_unpadded_rows(family: str, scope: Scope) -> None:
    model, records = tiny_model(family, layers=2), _records(7, seed=3)
    layers = feed_forward_layers(model)
    seen: list[list[np.ndarray]] = [[] for _ in layers]
    for record in records:

        def keep(_module: nn.Module, arguments: tuple[torch.Tensor, ...], place: int = 0) -> None:
            seen[place].append(arguments[0].detach().reshape(-1, layers[place].width).double().numpy())

        handles = [
            layer.down.register_forward_pre_hook(lambda m, a, place=layer.layer: keep(m, a, place)) for layer in layers
        ]
        with torch.no_grad():
            model(torch.tensor([record.prompt_ids + record.response_ids]))
        for handle in handles:
            handle.remove()
        if scope == "answer":
            for rows in seen:
                rows[-1] = rows[-1][len(record.prompt_ids) :]
    probed = probe_key_magnitudes(model, records, scope=scope, batch_size=3)
    expected = np.stack([np.abs(np.concatenate(rows)).mean(axis=0) for rows in seen])
    assert probed.tokens == sum(map(len, seen[0]))
    np.testing.assert_allclose(probed.mean, expected, rtol=2e-4, atol=1e-6)


def test_a_pruned_model_is_one_whose_selected_keys_are_zero() -> None:
    model = tiny_model("llama", layers=2)
    fitted = fit_selective_pruning(
        probe_key_magnitudes(model, _records(6, seed=1)), probe_key_magnitudes(model, _records(6, seed=5)), ratio=0.2
    )
    ids = torch.tensor([random_prompts(1, seed=9)[0]])

    def silence(columns: torch.Tensor) -> object:
        def hook(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            keys = arguments[0].clone()
            keys[..., columns] = 0
            return (keys,)

        return hook

    layers = feed_forward_layers(model)
    handles = [
        layers[zeroed.layer].down.register_forward_pre_hook(silence(torch.from_numpy(zeroed.columns)))  # type: ignore[arg-type]
        for zeroed in fitted.layers
    ]
    with torch.no_grad():
        silenced = model(ids).logits
        for handle in handles:
            handle.remove()
        untouched = model(ids).logits
        with edited_weights(model, [fitted]):
            pruned = model(ids).logits
    torch.testing.assert_close(pruned, silenced)
    assert not torch.allclose(pruned, untouched, atol=1e-2)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValidationError, match="ratio"):
        SelectivePruningOptions(forget=["forget"], ratio=ratio)


def test_statistics_that_cannot_be_compared_are_refused() -> None:
    good = _magnitudes(0)
    with pytest.raises(BakeoutError, match="shapes"):
        fit_selective_pruning(good, KeyMagnitudes(3, np.ones((LAYERS, WIDTH + 1))), ratio=0.5)
    with pytest.raises(BakeoutError, match="NaN"):
        fit_selective_pruning(good, KeyMagnitudes(3, np.full((LAYERS, WIDTH), np.nan)), ratio=0.5)
    with pytest.raises(BakeoutError, match="no"):
        fit_selective_pruning(KeyMagnitudes(0, good.total), good, ratio=0.5)
    with pytest.raises(BakeoutError, match="silent"):
        fit_selective_pruning(KeyMagnitudes(3, np.zeros((LAYERS, WIDTH))), good, ratio=0.5)


def test_experts_are_pruned_by_what_they_compute_over_all_tokens() -> None:
    model = tiny_model("mixtral", layers=2)
    totals = [np.zeros(expert.width) for expert in experts(model)]
    records = _records(6, seed=1)

    def count(total: NDArray[np.float64]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            nonlocal total
            total += arguments[0].abs().double().sum(dim=0).numpy()

        return hook

    downs = [module for name, module in model.named_modules() if name.endswith(".w2")]
    handles = [down.register_forward_pre_hook(count(total)) for down, total in zip(downs, totals, strict=True)]
    with torch.no_grad():
        for record in records:
            model(torch.tensor([record.prompt_ids + record.response_ids]))
    for handle in handles:
        handle.remove()
    probed = probe_mixture_magnitudes(model, records, scope="all", batch_size=4)
    assert probed.tokens == sum(len(record.prompt_ids + record.response_ids) for record in records)
    for own, total in zip(probed.layers, totals, strict=True):
        np.testing.assert_allclose(own, total, rtol=1e-3, atol=1e-4)
    nothing = MixtureMagnitudes(probed.tokens, tuple(np.ones_like(own) for own in probed.layers))
    fitted = fit_selective_pruning(probed, nothing, ratio=0.1)
    scores = np.concatenate(probed.layers)
    assert sum(layer.count for layer in fitted.layers) == round(0.1 * len(scores))
    lowest = min(float(probed.layers[layer.layer][layer.columns].min()) for layer in fitted.layers)
    assert (scores > lowest).sum() < round(0.1 * len(scores))
