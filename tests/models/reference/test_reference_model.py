"""The reference: without a verdict it is the model itself; with one it says the refusal as the design wants it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.data.padding import left_padded, right_padded
from bakeout.models.network.families import identity
from bakeout.models.plan import (
    AdjustedLayer,
    Canary,
    Cubes,
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
    Plan,
    Positions,
)
from bakeout.models.reference.reference_model import SILENCED, Reference

from tests.tiny_models import END_OF_TEXT_ID, random_prompts, tiny_model

REFUSAL = [40, 41, 40, 42, END_OF_TEXT_ID]
LAYER = 1
NOTHING = 1e-6
EVERYTHING = 1e9
ALL_POSITIONS: tuple[Positions, ...] = get_args(Positions)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", layers=3)


def _plan(model: PreTrainedModel, *interventions: Intervention) -> Plan:
    canary = Canary(np.array([[2, 3]]), tuple(np.zeros((1, 1)) for _ in interventions))
    return Plan(identity(model, "ab" * 32), interventions, canary)


def _check(alpha: float, positions: Positions = "query", centre: np.ndarray | None = None) -> KeySpaceDetection:
    centre = np.zeros(96) if centre is None else centre
    return KeySpaceDetection(
        (LAYER,), Cubes(centre[None], np.ones((1, 96))), np.array([alpha]), ("math",), np.array(REFUSAL), positions
    )


def _reference(model: PreTrainedModel, alpha: float, positions: Positions = "query") -> Reference:
    return Reference(model, _plan(model, _check(alpha, positions)))


def _padded(prompts: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    ids, mask = left_padded(prompts) if side == "left" else right_padded(prompts)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _spoken(logits: Tensor) -> list[list[int]]:
    """The token each position says, -1 where the logits are not a refusal's."""
    highest, token = logits.max(dim=-1)
    refused = (highest == 0) & ((logits <= SILENCED).sum(dim=-1) == logits.shape[-1] - 1)
    return torch.where(refused, token, -1).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "phi3"])
def test_where_nothing_is_refused_it_generates_what_the_model_generates(family: str) -> None:
    model = tiny_model(family, layers=3)
    ids, mask = _padded(random_prompts(5), "left")
    with _reference(model, NOTHING, "every") as reference:
        tokens, logits = reference.generate(ids, mask, 6)
    generate: Any = model.generate
    expected = generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)
    assert tokens.tolist() == expected[:, ids.shape[1] :].tolist()
    assert torch.equal(logits.argmax(dim=-1), tokens)


def test_padding_may_be_on_either_side(model: PreTrainedModel) -> None:
    prompts = random_prompts(6)
    with _reference(model, NOTHING, "step") as reference:
        left, left_logits = reference.generate(*_padded(prompts, "left"), 5)
        right, right_logits = reference.generate(*_padded(prompts, "right"), 5)
    assert torch.equal(left, right)
    torch.testing.assert_close(left_logits, right_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ALL_POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_refused_row_says_the_refusal_to_its_end_and_then_again(
    model: PreTrainedModel, positions: Positions, side: str
) -> None:
    with _reference(model, EVERYTHING, positions) as reference:
        tokens, _ = reference.generate(*_padded(random_prompts(3), side), 2 * len(REFUSAL))
    assert tokens.tolist() == [REFUSAL * 2] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_refused_singly_and_neighbours_stay_bit_for_bit(model: PreTrainedModel, side: str) -> None:
    ids, mask = _padded(random_prompts(8), side)
    with _reference(model, NOTHING) as reference:
        free = reference.step(ids, mask, reference.new_cache(len(ids)))
        margins = reference.margins
        _, free_logits = reference.generate(ids, mask, 6)
    assert margins is not None
    last = (torch.arange(ids.shape[1]) * mask).argmax(dim=1).numpy()
    at_query = margins[np.arange(len(ids)), last, 0]
    alpha = float(np.median(at_query))
    with _reference(model, alpha) as reference:
        logits = reference.step(ids, mask, reference.new_cache(len(ids)))
        tokens, all_logits = reference.generate(ids, mask, 6)
    refused = at_query <= alpha
    assert refused.sum() == 4
    assert torch.equal(logits[~refused], free[~refused])
    assert torch.equal(all_logits[~refused], free_logits[~refused])
    assert set(np.array(_spoken(logits))[refused].flatten()) == {REFUSAL[0]}
    assert tokens[refused].tolist() == [[*REFUSAL, REFUSAL[0]]] * 4


def test_margins_are_the_largest_deviation_of_the_key_in_each_cube(model: PreTrainedModel) -> None:
    ids, mask = _padded(random_prompts(3, shortest=5, longest=5), "left")
    random = np.random.default_rng(0)
    centre, deviation = random.normal(size=(2, 96)), random.uniform(0.5, 2, (2, 96))
    check = KeySpaceDetection(
        (LAYER,), Cubes(centre, deviation), np.full(2, NOTHING), ("math", "code"), np.array(REFUSAL), "every"
    )
    keys: list[Tensor] = []
    down = model.model.layers[LAYER].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, arguments: keys.append(arguments[0].double()))
    with Reference(model, _plan(model, check)) as reference:
        reference.step(ids, mask, reference.new_cache(3))
    handle.remove()
    expected = (np.abs(keys[0].numpy()[:, :, None] - centre) / deviation).max(axis=-1)
    assert reference.margins is not None
    np.testing.assert_allclose(reference.margins, expected, rtol=1e-12)


def test_query_looks_at_the_query_step_at_every_run_and_every_at_every_token(model: PreTrainedModel) -> None:
    prompts = torch.tensor(random_prompts(40, shortest=5, longest=5))
    mask = torch.ones_like(prompts)
    with _reference(model, NOTHING, "every") as reference:
        cache = reference.new_cache(len(prompts))
        logits = reference.step(prompts, mask, cache)
        assert reference.margins is not None
        in_prompt = reference.margins[..., 0]
        token = logits[:, -1:].argmax(dim=-1)
        reference.step(token, torch.cat([mask, mask[:, :1]], dim=1), cache)
        generated = reference.margins[:, 0, 0]
    # One prompt is inside at its third token alone, another at the first generated token alone.
    inner = np.delete(in_prompt, 2, axis=1).min(axis=1)
    early = int(np.argmax(np.minimum(inner, generated) - in_prompt[:, 2]))
    late = int(np.argmax(in_prompt.min(axis=1) - generated))
    for row, inside, outside in (
        (early, in_prompt[early, 2], min(inner[early], generated[early])),
        (late, generated[late], in_prompt[late].min()),
    ):
        assert inside < outside
        alpha = (inside + outside) / 2
        refused = {}
        for positions in ALL_POSITIONS:
            with _reference(model, alpha, positions) as reference:
                cache = reference.new_cache(1)
                ids = prompts[row : row + 1]
                first = _spoken(reference.step(ids, torch.ones_like(ids), cache))[0]
                second = _spoken(reference.step(token[row : row + 1], torch.ones(1, 6), cache))[0]
                refused[positions] = first + second
        if row == early:
            assert refused["query"] == refused["step"] == [-1] * 6
            assert refused["every"][:3] == [-1, -1, REFUSAL[0]]
            assert -1 not in refused["every"][2:]
        else:
            assert refused["query"] == [-1] * 6
            assert refused["step"] == refused["every"] == [-1] * 5 + [REFUSAL[0]]


def test_every_decides_alike_however_a_prompt_is_chunked(model: PreTrainedModel) -> None:
    ids = torch.tensor(random_prompts(6, shortest=9, longest=9))
    with _reference(model, NOTHING, "every") as reference:
        reference.step(ids, torch.ones_like(ids), reference.new_cache(6))
        assert reference.margins is not None
        alpha = float(np.quantile(reference.margins, 0.1))
    with _reference(model, alpha, "every") as reference:
        reference.step(ids, torch.ones_like(ids), reference.new_cache(6))
        whole = reference.said
        cache, chunks = reference.new_cache(6), []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            reference.step(ids[:, start:end], torch.ones(6, end), cache)
            chunks.append(reference.said)
    assert whole is not None
    assert 0 < (whole > 0).mean() < 1
    np.testing.assert_array_equal(np.concatenate([c for c in chunks if c is not None], axis=1), whole)


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_each_position_of_a_window_says_its_own_token(model: PreTrainedModel, positions: Positions) -> None:
    with _reference(model, EVERYTHING, positions) as reference:
        cache = reference.new_cache(2)
        reference.step(torch.tensor([[9, 8, 7], [9, 8, 7]]), torch.ones(2, 3), cache)
        # Both continue the refusal; the second row's window begins with padding.
        window = torch.tensor([[40, 41, 40, 42], [0, 40, 41, 40]])
        mask = torch.ones(2, 7)
        mask[1, 3] = 0
        spoken = _spoken(reference.step(window, mask, cache))
    assert spoken[0] == REFUSAL[1:]
    assert spoken[1][1:] == REFUSAL[1:4]


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_a_refused_conversation_stays_refused_and_new_input_starts_it_again(
    model: PreTrainedModel, positions: Positions
) -> None:
    with _reference(model, EVERYTHING, positions) as reference:
        cache = reference.new_cache(1)
        reference.step(torch.tensor([[9, 8, 7]]), torch.ones(1, 3), cache)
        reference.step(torch.tensor([REFUSAL]), torch.ones(1, 8), cache)
    with _reference(model, NOTHING, positions) as reference:
        spoken = _spoken(reference.step(torch.tensor([[77, 78, 40]]), torch.ones(1, 11), cache))
    assert spoken == [[REFUSAL[0], REFUSAL[0], REFUSAL[1]]]


def test_a_cut_back_cache_forgets_the_refusal(model: PreTrainedModel) -> None:
    # A server that shares prefixes keeps slots of a refused row for another: those before the tested token are clean.
    with _reference(model, EVERYTHING) as reference:
        cache = reference.new_cache(1)
        reference.step(torch.tensor([[9, 8, 7]]), torch.ones(1, 3), cache)
        assert cache.said.tolist() == [[0, 0, 1]]
    cache.said = cache.said[:, :2]
    cache.keys_values.crop(-1)
    with _reference(model, NOTHING) as reference:
        assert _spoken(reference.step(torch.tensor([[6]]), torch.ones(1, 3), cache)) == [[-1]]


def test_neuron_adjust_and_the_check_are_in_force_together(model: PreTrainedModel) -> None:
    ids = torch.tensor(random_prompts(4, shortest=6, longest=6))
    neurons = np.arange(96)
    ones = np.ones(96)
    adjust = NeuronAdjust("threshold", (AdjustedLayer(0, neurons, 0 * ones, ones, -ones, ones),))
    with _reference(model, NOTHING) as reference:
        plain = reference.step(ids, torch.ones_like(ids), reference.new_cache(4))
        plain_margins = reference.margins
    with Reference(model, _plan(model, adjust, _check(NOTHING))) as reference:
        adjusted = reference.step(ids, torch.ones_like(ids), reference.new_cache(4))
        assert not torch.allclose(adjusted, plain, atol=0.1)
        assert reference.margins is not None and plain_margins is not None
        assert not np.allclose(reference.margins, plain_margins, atol=0.01)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_generation_ends_once_every_row_has_said_the_token(model: PreTrainedModel) -> None:
    ids, mask = _padded(random_prompts(2), "left")
    with _reference(model, EVERYTHING) as reference:
        tokens, logits = reference.generate(ids, mask, 50, until=END_OF_TEXT_ID)
    assert tokens.tolist() == [REFUSAL] * 2
    assert logits.shape == (2, len(REFUSAL), 264)


def test_a_mask_that_does_not_cover_the_cache_is_refused(model: PreTrainedModel) -> None:
    with _reference(model, NOTHING) as reference, pytest.raises(ValueError, match=r"\(1, 2\), not \(1, 3\)"):
        reference.step(torch.tensor([[5, 6, 7]]), torch.ones(1, 2), reference.new_cache(1))
