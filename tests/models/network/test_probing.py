"""Probing gathers what the layers compute on real tokens, whatever the batching, order and padding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.network import probing
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.network.probing import batches_by_length, probe_keys, probe_neurons, run_batches
from bakeout.models.network.statistics import Moments, NeuronStatistics
from bakeout.models.network.token_keys import reduced_token_keys

from tests.tiny_models import FAMILIES, random_prompts, tiny_model, tiny_width


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """A tiny Llama of four layers, F = 96."""
    return tiny_model("llama")


def _records(count: int = 24) -> list[Record]:
    prompts, responses = random_prompts(count, seed=1), random_prompts(count, seed=2, shortest=1)
    return [Record("p", "r", prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _one_by_one(model: PreTrainedModel, records: list[Record], scope: Scope) -> NeuronStatistics:
    """The statistics by the definition: single rows without padding, all pre-activations kept."""
    layers = feed_forward_layers(model)
    kept: list[list[np.ndarray]] = [[] for _ in layers]
    for record in records:
        first = 0 if scope == "all" else len(record.prompt_ids)

        def keep(layer: int, first: int = first) -> object:
            def hook(_module: nn.Module, _arguments: object, output: torch.Tensor) -> None:
                values = layers[layer].pre_activation(output).reshape(-1, layers[layer].width)[first:]
                kept[layer].append(values.double().numpy())

            return layers[layer].gate.register_forward_hook(hook)

        handles = [keep(layer.layer) for layer in layers]
        with torch.no_grad():
            model(torch.tensor([record.prompt_ids + record.response_ids]))
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    samples = np.stack([np.concatenate(rows) for rows in kept], axis=1)
    return NeuronStatistics(Moments.of(samples))


def _assert_close(one: NeuronStatistics, other: NeuronStatistics, tolerance: float) -> None:
    """Means and deviations equal to ``tolerance`` deviations."""
    assert one.tokens == other.tokens
    deviation = other.moments.deviation
    assert np.max(np.abs(one.moments.mean - other.moments.mean) / deviation) <= tolerance
    assert np.max(np.abs(one.moments.deviation - deviation) / deviation) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_statistics_are_those_of_the_unpadded_rows(family: str, scope: Scope) -> None:
    model, records = tiny_model(family, layers=2), _records(10)
    tokens = sum(len(record.response_ids) + (len(record.prompt_ids) if scope == "all" else 0) for record in records)
    probed = probe_neurons(model, records, scope=scope, batch_size=4)
    assert probed.tokens == tokens
    _assert_close(probed, _one_by_one(model, records, scope), 1e-5)


def test_batch_size_and_order_do_not_matter(llama: PreTrainedModel) -> None:
    records = _records()
    first = probe_neurons(llama, records, batch_size=8)
    for batch_size in (1, 3, 64):
        _assert_close(probe_neurons(llama, records[::-1], batch_size=batch_size), first, 1e-5)


def test_given_the_same_activations_the_pieces_do_not_matter(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = _records()
    whole = probe_neurons(llama, records, batch_size=24).moments
    for piece in (1, 96 * 7):
        monkeypatch.setattr(probing, "_PIECE", piece)
        pieces = probe_neurons(llama, records, batch_size=24).moments
        np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pieces.m2, whole.m2, rtol=1e-9)


def test_two_probes_merge_into_the_probe_of_both(llama: PreTrainedModel) -> None:
    records = _records()
    parts = [probe_neurons(llama, part).moments for part in (records[:9], records[9:])]
    _assert_close(NeuronStatistics(parts[0].merge(parts[1])), probe_neurons(llama, records), 1e-5)


def test_rows_without_a_response_do_not_count(llama: PreTrainedModel) -> None:
    records = _records(6)
    silent = [Record("p", None, [5, 6, 7], [])]
    _assert_close(probe_neurons(llama, records + silent), probe_neurons(llama, records), 1e-5)
    with pytest.raises(BakeoutError, match="None of the 1 records has a response"):
        probe_neurons(llama, silent)
    assert probe_neurons(llama, silent, scope="all").tokens == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_those_of_the_last_token_in_the_order_given(family: str) -> None:
    model, prompts = tiny_model(family, layers=2), random_prompts(12)
    keys = probe_keys(model, prompts, layers=[1, 0], batch_size=3)
    assert {layer: (array.shape, array.dtype) for layer, array in keys.items()} == {
        layer: ((12, tiny_width(family)), np.dtype(np.float32)) for layer in (0, 1)
    }
    seen: list[torch.Tensor] = []
    handle = feed_forward_layers(model)[1].down.register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0].reshape(-1, tiny_width(family))[-1])
    )
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([prompt]))
    handle.remove()
    np.testing.assert_allclose(keys[1], torch.stack(seen).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_behind_the_deepest_layer_is_computed(family: str) -> None:
    model, prompts = tiny_model(family, layers=3), random_prompts(5)
    ran: list[int] = []
    layers = feed_forward_layers(model)
    whole = probe_keys(model, prompts, layers=[0, 1, 2])
    handles = [layer.down.register_forward_hook(lambda *_, layer=layer: ran.append(layer.layer)) for layer in layers]
    keys = probe_keys(model, prompts, layers=[0, 1], batch_size=8)
    assert ran == [0]
    for layer in (0, 1):
        np.testing.assert_array_equal(keys[layer], whole[layer])
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        assert model(torch.tensor([prompts[0]])).logits.isfinite().all()


def test_a_model_that_records_its_hidden_states_is_left_as_it_was() -> None:
    model, prompts = tiny_model("qwen3", layers=3), random_prompts(5)
    forwards = [module.forward for module in model.modules()]
    expected = probe_keys(model, prompts, layers=[0])
    model.config.output_hidden_states = True
    np.testing.assert_array_equal(probe_keys(model, prompts, layers=[0])[0], expected[0])
    assert [module.forward for module in model.modules()] == forwards


def test_batches_hold_fewer_rows_where_these_are_long() -> None:
    assert batches_by_length([4, 9, 3, 2, 1], 2, most_tokens=8) == [[1], [0, 2], [3, 4]]
    assert batches_by_length([4, 4, 4], 16, most_tokens=8) == [[0, 1], [2]]


def test_a_pass_on_a_processor_is_of_what_its_caches_hold(llama: PreTrainedModel) -> None:
    """A bundle of long rows that is as large as the batch size allows takes longer."""
    layer = feed_forward_layers(llama)[0].gate
    batches = run_batches(llama, [[2] * 50] * 45, batch_size=100, description="", inputs={layer: lambda _: None})
    assert [len(batch.rows) for batch in batches] == [20, 20, 5]


def test_processes_on_unlike_processors_form_the_same_batches(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each reads its share of other batches: rows are lost, and nothing tells."""
    monkeypatch.setattr(probing, "least", lambda here: min(here, 500))
    layer = feed_forward_layers(llama)[0].gate
    shared = run_batches(
        llama, [[2] * 50] * 45, batch_size=100, description="", inputs={layer: lambda _: None}, shared=True
    )
    assert [len(batch.rows) for batch in shared] == [10, 10, 10, 10, 5]


@pytest.mark.parametrize(
    ("layers", "prompts", "says"),
    [
        ([4], [[2]], "no layer 4"),
        ([-1], [[2]], "no layer -1"),
        ([0], [[2], []], "empty"),
        ([0], [], "empty"),
        ([0], [[2] * 513], "513 tokens; the model's context is 512"),
    ],
)
def test_keys_that_cannot_be_probed_are_refused(
    llama: PreTrainedModel, layers: list[int], prompts: list[list[int]], says: str
) -> None:
    with pytest.raises(BakeoutError, match=says):
        probe_keys(llama, prompts, layers=layers)


def test_a_row_beyond_the_context_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(BakeoutError, match="513 tokens"):
        probe_neurons(llama, [Record("p", "r", [2] * 500, [3] * 13)])


def test_progress_is_told_and_no_hook_stays_behind(llama: PreTrainedModel) -> None:
    told: list[tuple[str, int, int]] = []

    def track(iterable: Iterable[object], description: str, total: int) -> Iterable[object]:
        items = list(iterable)
        told.append((description, total, len(items)))
        return items

    probe_neurons(llama, _records(9), batch_size=4, track=track)  # type: ignore[arg-type]
    probe_keys(llama, random_prompts(5), layers=[0], batch_size=4, track=track)  # type: ignore[arg-type]
    assert told == [("probing neurons", 3, 3), ("probing key vectors", 2, 2)]

    def fail(iterable: Iterable[object], description: str, total: int) -> Iterable[object]:
        raise KeyboardInterrupt

    for probe in (
        lambda: probe_neurons(llama, _records(3), track=fail),  # type: ignore[arg-type]
        lambda: probe_keys(llama, random_prompts(3), layers=[0], track=fail),  # type: ignore[arg-type]
    ):
        with pytest.raises(KeyboardInterrupt):
            probe()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())


@pytest.mark.slow
def test_probing_costs_at_most_a_tenth_of_the_forward_passes() -> None:
    """At 8 layers, batches of 8 and the default scope; processor time of this thread, interleaved."""
    model = tiny_model("llama", layers=8, hidden=256, width=1024)
    records = [
        Record("p", "r", prompt, response)
        for prompt, response in zip(
            random_prompts(64, seed=1, shortest=12, longest=24),
            random_prompts(64, seed=2, shortest=4, longest=24),
            strict=True,
        )
    ]

    def seconds(probe: bool) -> float:
        started = time.thread_time()
        if probe:
            probe_neurons(model, records)
        else:
            sequences = [record.prompt_ids + record.response_ids for record in records]
            for _ in run_batches(model, sequences, batch_size=8, description="forward passes"):
                pass
        return time.thread_time() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = [seconds(probe=True) / seconds(probe=False) for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    assert statistics.median(ratios) <= 1.1


def test_keys_of_all_tokens_come_prompt_by_prompt(llama: PreTrainedModel) -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
    last = probe_keys(llama, prompts, layers=[0, 1], batch_size=2)
    seen = reduced_token_keys(lambda keys: keys, llama, prompts, layers=[0, 1], batch_size=2)
    assert len(seen) == 4
    width = last[0].shape[1]
    for index, prompt in enumerate(prompts):
        assert seen[index].shape == (len(prompt), 2 * width)
        np.testing.assert_allclose(seen[index][-1], np.concatenate([last[0][index], last[1][index]]), atol=1e-6)
        first = probe_keys(llama, [prompt[:1]], layers=[0, 1])
        np.testing.assert_allclose(seen[index][0], np.concatenate([first[0][0], first[1][0]]), atol=1e-5)
    with pytest.raises(BakeoutError, match="is empty"):
        reduced_token_keys(len, llama, [[]], layers=[0])
    with pytest.raises(BakeoutError, match="no layer 99"):
        reduced_token_keys(len, llama, prompts, layers=[99])
