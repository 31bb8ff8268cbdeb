"""LUNAR's algebra is that of ridge regression, and its edits redirect what they should and nothing else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.lunar import redirection
from bakeout.models.methods.lunar.deviation_score import deviation_score, rouge1
from bakeout.models.methods.lunar.fit import fit_lunar
from bakeout.models.methods.lunar.gradient import descend
from bakeout.models.methods.lunar.layer import LayerProblem, by_regression
from bakeout.models.methods.lunar.low_rank import truncated
from bakeout.models.methods.lunar.options import GradientOptions, LunarOptions
from bakeout.models.methods.lunar.redirection import Redirection, redirections, steering_scores
from bakeout.models.methods.lunar.ridge import RidgeSystem
from bakeout.models.methods.lunar.sublayers import sublayers
from bakeout.models.methods.lunar.token_rows import Prefixes, TokenRows, probe_rows, residual_streams
from bakeout.models.network.families import block_numbers, feed_forward_layers
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import untracked
from bakeout.models.reference.weight_edits import edited_weights

from tests.tiny_models import FAMILIES, random_prompts, tiny_model

NORMED = ("bart", "blenderbot-small", "gemma2", "gemma3_text", "marian", "olmo2")
PLAIN = [family for family in FAMILIES if family not in NORMED]
ROUTED = ("deepseek_v3", "gpt_oss", "llama4_text", "mixtral", "qwen2_moe")
HIDDEN = 5


class Requests(TypedDict):
    forget: list[Record]
    reference: list[Record]
    retain: list[Record]


def _records(count: int, seed: int, *, answered: bool = True) -> list[Record]:
    prompts = random_prompts(count, seed=seed, shortest=3, longest=9)
    responses = random_prompts(count, seed=seed + 1, shortest=1, longest=3)
    pairs = zip(prompts, responses, strict=True)
    return [Record("p", "r", prompt, response if answered else []) for prompt, response in pairs]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """A tiny Llama of four layers, F = 96, hidden size 32."""
    return tiny_model("llama")


@pytest.fixture(scope="module")
def data() -> Requests:
    """Few enough tokens that every one of them can have its own way in F = 96 dimensions."""
    return {"forget": _records(4, seed=1), "reference": _records(4, seed=11), "retain": _records(5, seed=21)}


def _rows(seed: int, forget: int, retain: int, width: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(forget, width)),
        generator.normal(size=(forget, HIDDEN)),
        generator.normal(size=(retain, width)),
    )


def _direct(keys: Any, changes: Any, retain: Any, ridge: float) -> Any:
    """Ridge regression as least squares over stacked rows: no normal equations."""
    every = np.concatenate([keys, retain])
    damping = ridge * np.square(every).sum() / keys.shape[1]
    stacked = np.concatenate([every, np.sqrt(damping) * np.eye(keys.shape[1])])
    wanted = np.zeros((len(stacked), HIDDEN))
    wanted[: len(keys)] = changes
    return np.linalg.lstsq(stacked, wanted, rcond=None)[0].T


sizes = st.integers(1, 12), st.integers(0, 12), st.integers(2, 14)


@given(st.integers(0, 2**32 - 1), *sizes, st.floats(1e-4, 10), st.integers(1, 5))
def test_the_closed_form_is_ridge_regression_however_the_rows_come(
    seed: int, forget: int, retain: int, width: int, ridge: float, part: int
) -> None:
    """Fewer rows than F (Woodbury) or more, added in any parts."""
    keys, changes, still = _rows(seed, forget, retain, width)
    system = RidgeSystem(width, HIDDEN)
    for start in range(0, forget, part):
        system.add(keys[start : start + part], changes[start : start + part])
    for start in range(0, retain, part):
        system.add(still[start : start + part])
    assert system.rows == forget + retain
    change = system.solve(ridge)
    np.testing.assert_allclose(change, _direct(keys, changes, still, ridge), rtol=0, atol=1e-8)
    missed = np.linalg.norm(keys @ change.T - changes) / np.linalg.norm(changes)
    assert system.missed(change) == pytest.approx(missed, abs=1e-5)


@given(st.integers(0, 2**32 - 1), *sizes, st.floats(1e-3, 10), st.floats(0.1, 4))
def test_one_direction_is_the_papers_rank_one_formula(
    seed: int, forget: int, retain: int, width: int, ridge: float, coefficient: float
) -> None:
    keys, changes, still = _rows(seed, forget, retain, width)
    direction = changes[0]
    system = RidgeSystem(width, HIDDEN)
    system.add(keys, np.tile(coefficient * direction, (forget, 1)))
    system.add(still)
    damping = ridge * (np.square(keys).sum() + np.square(still).sum()) / width
    inverse = np.linalg.inv(keys.T @ keys + still.T @ still + damping * np.eye(width))
    expected = coefficient * np.outer(direction, keys.sum(axis=0) @ inverse)
    np.testing.assert_allclose(system.solve(ridge), expected, rtol=0, atol=1e-8)


def test_retain_rows_stay_and_forget_rows_arrive_as_the_ridge_vanishes() -> None:
    keys, changes, still = _rows(0, forget=4, retain=6, width=30)
    system = RidgeSystem(30, HIDDEN)
    system.add(keys, changes)
    system.add(still)
    change = system.solve(1e-10)
    np.testing.assert_allclose(still @ change.T, 0, atol=1e-6)
    np.testing.assert_allclose(keys @ change.T, changes, atol=1e-6)


def test_a_solution_does_not_hold_the_forget_data(llama: PreTrainedModel) -> None:
    """NumPy's memory grows by the rows' numbers, not by their target changes."""

    def peak(prompts: list[list[int]]) -> int:
        forget, retain = (TokenRows(tuple(prompts), tuple(list(range(len(ids))) for ids in prompts)) for _ in range(2))
        aimed = Redirection(np.ones(32), np.ones((len(forget), 32)))
        problem = LayerProblem(llama, 1, sublayers(llama, with_experts=False)[1], forget, aimed, retain, batch_size=8)
        tracemalloc.start()
        try:
            by_regression(problem, 0.01, untracked)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    prompts = random_prompts(40, seed=1, shortest=20, longest=20)
    targets = 32 * 8 * sum(map(len, prompts))
    assert peak(16 * prompts) - peak(prompts) < 0.5 * 15 * targets


def test_a_system_without_a_solution_is_refused() -> None:
    with pytest.raises(BakeoutError, match="all 0"):
        RidgeSystem(4, HIDDEN).solve(0.1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.9))
def test_truncation_leaves_out_what_it_says_with_the_least_rank(seed: int, out: int, inner: int, share: float) -> None:
    change = np.random.default_rng(seed).normal(size=(out, inner))
    left, right, residual = truncated(change, share)
    norm = np.linalg.norm(change)
    assert np.linalg.norm(change - left.astype(float) @ right) / norm == pytest.approx(residual, abs=1e-6)
    assert residual <= max(share, 1e-12)
    values = np.linalg.svd(change, compute_uv=False)
    if (rank := left.shape[1]) > 1:
        assert np.linalg.norm(values[rank - 1 :]) / norm > share
    again = truncated(change, share)
    assert left.tobytes() == again[0].tobytes() and right.tobytes() == again[1].tobytes()


def test_a_change_of_nothing_is_refused() -> None:
    with pytest.raises(BakeoutError, match="do nothing"):
        truncated(np.zeros((3, 4)), 0.1)
    with pytest.raises(BakeoutError, match="NaN"):
        truncated(np.full((3, 4), np.nan), 0.1)


def test_descent_approaches_the_closed_form() -> None:
    keys, changes, still = _rows(3, forget=20, retain=40, width=6)
    system = RidgeSystem(6, HIDDEN)
    system.add(keys, changes)
    system.add(still)
    solution = system.solve(1e-12)
    every = np.concatenate([keys, still]).astype(np.float32)
    wanted = np.concatenate([changes, np.zeros((40, HIDDEN))]).astype(np.float32)
    options = GradientOptions(learning_rate=0.05, decay=0.98, epochs=300, rows=60)
    change, losses = descend(every, wanted, options, seed=0)
    np.testing.assert_allclose(change, solution, atol=2e-3)
    assert losses[-1] < losses[0] and len(losses) == 300
    np.testing.assert_array_equal(change, descend(every, wanted, options, seed=0)[0])


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=6), st.lists(st.integers(0, 2), max_size=6)
)
def test_a_shared_beginning_is_as_long_as_the_longest_common_one(texts: list[list[int]], text: list[int]) -> None:
    common = [
        next(
            (place for place, pair in enumerate(zip(one, text, strict=False)) if pair[0] != pair[1]),
            min(len(one), len(text)),
        )
        for one in texts
    ]
    assert Prefixes(texts).shared(text) == max(common, default=0)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 99))
def test_a_sample_of_rows_is_some_of_them(lengths: list[int], count: int, seed: int) -> None:
    rows = TokenRows(
        tuple(list(range(10 * n, 10 * n + length)) for n, length in enumerate(lengths)),
        tuple(list(range(length)) for length in lengths),
    )
    sampled = rows.sample(count, seed)
    assert len(sampled) == min(count, len(rows))
    assert set(sampled.tokens.tolist()) <= set(rows.tokens.tolist())
    assert len(set(sampled.tokens.tolist())) == len(sampled)
    assert sampled == rows.sample(count, seed)


def _streams(model: PreTrainedModel, sequences: Sequence[list[int]], layer: int) -> list[Any]:
    """The residual stream behind a block by transformers' own hidden states, row by row."""
    with torch.no_grad():
        outputs = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in sequences]
    return [output[layer + 1][0].double().numpy() for output in outputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_streams_and_keys_of_unpadded_texts(family: str) -> None:
    model, sequences = tiny_model(family, layers=3), random_prompts(5, seed=4, shortest=2, longest=9)
    rows = TokenRows(tuple(sequences), tuple([0, len(ids) - 1] for ids in sequences))
    streams = _streams(model, sequences, 1)
    seen = np.full((len(rows), streams[0].shape[1]), np.nan)
    for probed in probe_rows(model, rows, layers=[0, 1], batch_size=2, description="probing"):
        assert probed.keys[0].values.shape == (len(probed.numbers), feed_forward_layers(model)[0].width)
        seen[probed.numbers] = probed.residuals[1]
    expected = np.concatenate([stream[[0, -1]] for stream in streams])
    np.testing.assert_allclose(seen, expected, atol=1e-4)


def test_the_direction_is_the_difference_of_the_means_at_the_last_token(llama: PreTrainedModel) -> None:
    forget, reference = random_prompts(4, seed=1), random_prompts(3, seed=2)
    rows = TokenRows(tuple(forget), tuple(list(range(len(ids))) for ids in forget))
    aimed = redirections(llama, rows, reference, layers=[1], aim="shift", coefficient=2.0, batch_size=2)[1]
    before, after = _streams(llama, forget, 1), _streams(llama, reference, 1)
    direction = np.mean([stream[-1] for stream in after], axis=0) - np.mean([stream[-1] for stream in before], axis=0)
    np.testing.assert_allclose(aimed.direction, direction, atol=1e-4)
    np.testing.assert_allclose(aimed.targets, np.concatenate(before) + 2 * direction, atol=1e-3)


def test_the_reference_aim_is_the_mean_of_the_same_token_or_of_all(llama: PreTrainedModel) -> None:
    forget, reference = [[5, 9, 7]], [[9, 6], [8, 9]]
    aimed = redirections(
        llama,
        TokenRows(tuple(forget), ([1, 2],)),
        reference,
        layers=[0],
        aim="reference",
        coefficient=1.0,
        batch_size=2,
    )[0]
    one, other = _streams(llama, reference, 0)
    np.testing.assert_allclose(aimed.targets[0], (one[0] + other[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(aimed.targets[1], np.concatenate([one, other]).mean(axis=0), atol=1e-4)


def _lunar(
    model: PreTrainedModel,
    forget: Sequence[Record],
    reference: Sequence[Record],
    retain: Sequence[Record],
    redirected: Sequence[Record] = (),
    batch_size: int = 8,
    **options: Any,
) -> LowRankUpdate:
    chosen = LunarOptions(forget=["forget"], reference=["reference"], **options)
    return fit_lunar(model, forget, reference, retain, chosen, redirected=redirected, batch_size=batch_size)


@pytest.mark.parametrize(
    ("family", "experts"),
    [*((family, False) for family in PLAIN), *((family, True) for family in ROUTED), ("qwen2_moe", False)],
)
def test_forget_rows_arrive_and_retain_rows_stay_in_every_family(family: str, experts: bool, data: Requests) -> None:
    # Some shared experts are half as wide.
    model = tiny_model(family, layers=2, width=192 if family in ROUTED else 96)
    of_block = [number for number, block in enumerate(block_numbers(model)) if block == 1]
    parts = of_block if experts else [1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = _lunar(
        model,
        **data,
        layers=[1],
        aim="shift",
        coefficient=1.0,
        ridge=1e-7,
        tokens="last",
        truncation=0.0,
        batch_size=3,
        experts=experts,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {(part.role, part.left.shape[1]) for part in update.updates} == {("down", 1)}
    # Of the parts those that a forget row is sent to.
    assert {part.layer for part in update.updates} <= set(parts)
    assert len(update.updates) == 1 if len(parts) == 1 else len(update.updates) >= 2
    forget = [record.prompt_ids for record in data["forget"]]
    kept = [record.prompt_ids + record.response_ids for record in data["retain"] + data["reference"]]
    moved = TokenRows(tuple(forget), tuple([len(ids) - 1] for ids in forget))
    aimed = redirections(
        model,
        moved,
        [record.prompt_ids for record in data["reference"]],
        layers=[1],
        aim="shift",
        coefficient=1.0,
        batch_size=8,
        with_experts=experts,
    )[1]
    still = TokenRows(tuple(kept), tuple(list(range(len(ids))) for ids in kept))
    was = residual_streams(model, still, layers=[1], batch_size=3, description="probing", with_experts=experts)[1]
    with edited_weights(model, [update]):
        arrived, stayed = (
            residual_streams(model, rows, layers=[1], batch_size=3, description="probing", with_experts=experts)[1]
            for rows in (moved, still)
        )
    step = np.linalg.norm(aimed.direction)
    np.testing.assert_allclose(arrived, aimed.targets, atol=0.02 * float(step))
    np.testing.assert_allclose(stayed, was, atol=0.02 * float(step))


def _gathered(model: PreTrainedModel, rows: TokenRows, layer: int) -> Any:
    return residual_streams(model, rows, layers=[layer], batch_size=3, description="probing")[layer]


@pytest.mark.parametrize("solver", ["closed_form", "gradient"])
@pytest.mark.parametrize("aim", ["shift", "reference"])
def test_an_edited_model_answers_forget_prompts_otherwise(
    llama: PreTrainedModel, data: Requests, solver: Any, aim: Any
) -> None:
    update = _lunar(llama, **data, layers=[1], solver=solver, aim=aim, coefficient=2.0, batch_size=4)
    ids = torch.tensor([data["forget"][0].prompt_ids])
    with torch.no_grad():
        before = llama(ids).logits[0, -1]
        with edited_weights(llama, [update]):
            after = llama(ids).logits[0, -1]
    assert float((after - before).abs().max()) > 0.1
    figures = update.report.details["layers"]["1"]
    assert figures["rank"] == update.updates[0].left.shape[1] and 0 <= figures["truncation_residual"] <= 0.01
    assert update.report.details["forget_rows"] > 0 and update.report.details["solver"] == solver


def test_several_layers_build_on_each_other(llama: PreTrainedModel, data: Requests) -> None:
    options: Any = {"aim": "shift", "coefficient": 1.0, "ridge": 1e-6, "tokens": "last", "truncation": 0.0}
    both = _lunar(llama, **data, layers=[2, 1], **options)
    assert [one.layer for one in both.updates] == [1, 2]
    lower = _lunar(llama, **data, layers=[1], **options)
    np.testing.assert_array_equal(both.updates[0].left, lower.updates[0].left)
    rows = TokenRows(
        tuple(r.prompt_ids for r in data["forget"]), tuple([len(r.prompt_ids) - 1] for r in data["forget"])
    )
    reference = [record.prompt_ids for record in data["reference"]]
    aimed = redirections(llama, rows, reference, layers=[2], aim="shift", coefficient=1.0, batch_size=8)[2]
    with edited_weights(llama, [both]):
        np.testing.assert_allclose(
            _gathered(llama, rows, 2), aimed.targets, atol=0.05 * float(np.linalg.norm(aimed.direction))
        )


def test_a_second_request_leaves_the_first_redirected(llama: PreTrainedModel, data: Requests) -> None:
    first = _lunar(llama, **data, layers=[1], tokens="last", ridge=1e-6)
    more = _records(4, seed=31)
    rows = TokenRows(
        tuple(r.prompt_ids for r in data["forget"]), tuple([len(r.prompt_ids) - 1] for r in data["forget"])
    )
    with edited_weights(llama, [first]):
        sent = _gathered(llama, rows, 1)
        second = _lunar(
            llama,
            more,
            data["reference"],
            data["retain"],
            redirected=data["forget"],
            layers=[1],
            tokens="last",
            ridge=1e-6,
        )
    with edited_weights(llama, [first, second]):
        np.testing.assert_allclose(_gathered(llama, rows, 1), sent, atol=0.02 * float(np.abs(sent).max()))


def test_auto_chooses_a_layer_by_scores_that_it_reports(llama: PreTrainedModel, data: Requests) -> None:
    update = _lunar(llama, **data, batch_size=4)
    scores = update.report.details["layer_scores"]
    assert list(scores) == ["0", "1", "2", "3"] and all(-1 <= score <= 1 for score in scores.values())
    good = [int(layer) for layer, score in scores.items() if score >= max(scores.values()) - 0.05]
    assert [one.layer for one in update.updates] == [min(good)]


def test_how_many_layers_are_probed_at_once_changes_no_score(
    llama: PreTrainedModel, data: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = _lunar(llama, **data, batch_size=4).report.details["layer_scores"]
    monkeypatch.setattr(redirection, "_MOST_RESIDUALS", 1)
    assert _lunar(llama, **data, batch_size=4).report.details["layer_scores"] == together


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bloom", {}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma3_text", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("llama4_text", {}),
        ("modernbert-decoder", {}),
        ("vaultgemma", {}),
    ],
)
def test_scores_are_those_of_the_models_own_logits(family: str, settings: dict[str, Any]) -> None:
    """Scaled, capped or transformed as the architecture does it; a shift by nothing steers nothing."""
    model, prompts = tiny_model(family, layers=2, **settings), random_prompts(12)

    def answers(sequences: Sequence[list[int]]) -> Any:
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, -1].double() for ids in sequences]
        return torch.stack(logits).softmax(dim=-1).mean(dim=0).numpy()

    forget, reference, retain = prompts[:4], prompts[4:8], prompts[8:]
    rows = TokenRows(tuple(forget), tuple([len(ids) - 1] for ids in forget))
    scores = steering_scores(model, rows, reference, retain, aim="shift", coefficient=1e-9, batch_size=3)
    steered, ignorance, unrelated = map(answers, (forget, reference, retain))
    expected = np.minimum(steered, ignorance).sum() - np.minimum(steered, unrelated).sum()
    np.testing.assert_allclose(list(scores.values()), expected, atol=1e-4)


def test_auto_needs_prompts_to_keep(llama: PreTrainedModel, data: Requests) -> None:
    with pytest.raises(BakeoutError, match="to choose a layer by"):
        _lunar(llama, data["forget"], data["reference"], [Record("", "r", [], [5, 6, 7])])


def test_fitting_twice_gives_the_same_bytes(llama: PreTrainedModel, data: Requests) -> None:
    for options in ({"solver": "closed_form"}, {"solver": "gradient"}):
        state = torch.get_rng_state()
        one, other = (_lunar(llama, **data, layers=[1], seed=3, **options) for _ in range(2))  # type: ignore[arg-type]
        assert one.updates[0].left.tobytes() == other.updates[0].left.tobytes()
        assert one.report == other.report
        assert torch.equal(state, torch.get_rng_state())


def test_what_a_forget_text_shares_with_a_retained_one_stays(llama: PreTrainedModel) -> None:
    forget = [Record("p", "r", [7, 8, 9, 10], [11])]
    retain = [Record("p", "r", [7, 8, 5], [6])]
    update = _lunar(llama, forget, _records(3, seed=1), retain, layers=[0])
    assert (update.report.details["forget_rows"], update.report.details["masked_rows"]) == (2, 2)
    with pytest.raises(BakeoutError, match="beginnings of texts that must stay"):
        _lunar(llama, forget, _records(3, seed=1), [Record("p", "r", [7, 8, 9, 10], [12])], layers=[0])


@pytest.mark.parametrize("family", NORMED)
def test_a_norm_behind_the_layer_is_refused(family: str, data: Requests) -> None:
    with pytest.raises(BakeoutError, match="norm behind its feed-forward layers"):
        _lunar(tiny_model(family, layers=2), **data, layers=[0])


@pytest.mark.parametrize(
    ("records", "cause"),
    [
        ({"forget": []}, "no forget prompts"),
        ({"reference": []}, "no reference prompts"),
        ({"reference": [Record("", "r", [], [3])]}, "reference data has no prompt"),
    ],
)
def test_records_that_cannot_be_fitted_on_are_refused(
    llama: PreTrainedModel, data: Requests, records: dict[str, Any], cause: str
) -> None:
    with pytest.raises(BakeoutError, match=cause):
        _lunar(llama, **{**data, **records}, layers=[0])
    with pytest.raises(BakeoutError, match="no layer 4"):
        _lunar(llama, **data, layers=[4])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"coefficient": 0.0}, "coefficient"),
        ({"coefficient": float("nan")}, "coefficient"),
        ({"ridge": 0.0}, "ridge"),
        ({"truncation": 1.0}, "truncation"),
        ({"layers": []}, "layers"),
        ({"solver": "newton"}, "solver"),
        ({"aim": "away"}, "aim"),
        ({"tokens": "first"}, "tokens"),
        ({"gradient": {"learning_rate": 0}}, "gradient.learning_rate"),
        ({"gradient": {"epochs": 0}}, "gradient.epochs"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        LunarOptions(forget=["forget"], reference=["reference"], **options)


def test_the_deviation_score_is_zero_at_its_best_and_counts_words() -> None:
    assert rouge1("I do not know.", "i do NOT know") == 1
    assert rouge1("the the cat", "the cat sat") == pytest.approx(2 / 3)
    assert rouge1("", "Paris") == 0
    best = deviation_score([("I do not know.", "Paris")], [("Oslo", "Oslo")])
    assert best == 0
    assert deviation_score([("Paris", "Paris")], [("Oslo", "Oslo")]) == pytest.approx(100)
    assert deviation_score([("Rome", "Paris")], [("x", "Oslo")]) == pytest.approx(100)
    with pytest.raises(BakeoutError, match="Deviation Score"):
        deviation_score([], [("Oslo", "Oslo")])


def test_an_update_is_one_that_plans_take(llama: PreTrainedModel, data: Requests) -> None:
    update = _lunar(llama, **data, layers=[0, 3])
    assert isinstance(update, LowRankUpdate) and update.method == "lunar"
    assert all(one.left.dtype == one.right.dtype == np.float32 for one in update.updates)
