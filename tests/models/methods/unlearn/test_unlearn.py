"""UNLEARN makes a task's answers improbable, LEARN makes them likely; neither touches similar tasks' subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.learn.fit import fit_learn
from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.lora_modules import linear_layers
from bakeout.models.methods.unlearn.fit import fit_unlearn
from bakeout.models.methods.unlearn.options import UnlearnOptions
from bakeout.models.methods.unlearn.subspaces import input_second_moments, principal_directions
from bakeout.models.network.families import block_numbers, feed_forwards_if_any
from bakeout.models.network.probe_cache import ProbeCache
from bakeout.models.plan import Intervention, LowRankUpdate
from bakeout.models.progress import untracked
from bakeout.models.reference.weight_edits import edited_weights

from tests.tiny_models import END_OF_TEXT_ID, byte_tokenizer, random_prompts, tiny_model

QUICK: dict[str, Any] = {"rank": 2, "steps": 8, "batch_size": 4, "learning_rate": 2e-2}

CHANGED: Mapping[str, Any] = {"energy": 0.7, "seed": 3, "rank": 3, "steps": 7, "batch_size": 3, "learning_rate": 1e-2}
Records = Mapping[str, Sequence[Record]]


def _unlearn(
    model: PreTrainedModel,
    tasks: Records,
    similar: Records,
    track: Any = untracked,
    tokenizer: Tokenizer | None = None,
    cache: ProbeCache | None = None,
    **options: Any,
) -> LowRankUpdate:
    chosen = UnlearnOptions(forget=["task"], **{**QUICK, **options})
    return fit_unlearn(model, tasks, similar, chosen, tokenizer=tokenizer, track=track, cache=cache)


def _learn(
    model: PreTrainedModel,
    tasks: Records,
    similar: Records,
    track: Any = untracked,
    cache: ProbeCache | None = None,
    **options: Any,
) -> LowRankUpdate:
    chosen = LearnOptions(learn=["task"], **{**QUICK, **options})
    return fit_learn(model, tasks, similar, chosen, track=track, cache=cache)


FITS: Mapping[str, Callable[..., LowRankUpdate]] = {"UNLEARN": _unlearn, "LEARN": _learn}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama", layers=2)


def _task(model: PreTrainedModel, seed: int, *, known: bool) -> list[Record]:
    """Prompts with answers of three tokens: those that the model gives, or random ones."""
    records = []
    strange = random_prompts(5, seed=seed + 100, shortest=3, longest=3)
    for prompt, other in zip(random_prompts(5, seed=seed), strange, strict=True):
        answer = other
        if known:
            with torch.no_grad():
                generate: Any = model.generate
                ids = generate(torch.tensor([prompt]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
            answer = ids[0, len(prompt) :].tolist()
        records.append(Record("", "", prompt, answer))
    return records


@torch.no_grad()
def _probability(model: PreTrainedModel, records: Sequence[Record], edits: Sequence[Intervention] = ()) -> float:
    """The mean probability of the answers' tokens."""
    found = []
    with edited_weights(model, edits):
        for record in records:
            probabilities = model(torch.tensor([record.prompt_ids + record.response_ids])).logits.softmax(dim=-1)
            first = len(record.prompt_ids) - 1
            found += [float(probabilities[0, first + i, token]) for i, token in enumerate(record.response_ids)]
    return float(np.mean(found))


def _bytes(update: LowRankUpdate) -> bytes:
    return b"".join(one.left.tobytes() + one.right.tobytes() for one in update.updates)


def test_unlearning_makes_the_answers_improbable(model: PreTrainedModel) -> None:
    task = _task(model, 1, known=True)
    forgotten = _unlearn(model, {"task": task}, {})
    assert forgotten.method == "unlearn"
    assert _probability(model, task, [forgotten]) < 0.2 * _probability(model, task)


def test_learning_makes_the_answers_likely(model: PreTrainedModel) -> None:
    task = _task(model, 1, known=False)
    learned = _learn(model, {"task": task}, {}, rank=8, steps=30)
    assert learned.method == "learn"
    assert _probability(model, task, [learned]) > 0.5 > 10 * _probability(model, task)


def test_several_tasks_are_unlearned_at_once(model: PreTrainedModel) -> None:
    tasks = {"one": _task(model, 1, known=True), "two": _task(model, 2, known=True)}
    forgotten = _unlearn(model, tasks, {})
    for task in tasks.values():
        assert _probability(model, task, [forgotten]) < 0.3 * _probability(model, task)
    assert set(forgotten.report.details["tasks"]) == set(tasks)
    assert max(len(update.right) for update in forgotten.updates) <= 2 * QUICK["rank"]


@pytest.mark.parametrize("method", FITS)
def test_an_end_that_the_template_wrote_is_neither_unlearned_nor_taught_twice(
    model: PreTrainedModel, method: str
) -> None:
    """Rows with `prompt` and `response` have no end, those with `messages` what the template writes."""
    task = _task(model, 1, known=method == "UNLEARN")
    plain = _bytes(FITS[method](model, {"task": task}, {}))
    for written in ([END_OF_TEXT_ID], [END_OF_TEXT_ID, 7]):
        ended = [replace(record, response_ids=record.response_ids + written) for record in task]
        assert _bytes(FITS[method](model, {"task": ended}, {})) == plain


def test_an_end_that_the_tokenizer_alone_names_is_one(model: PreTrainedModel) -> None:
    for configuration in (model.config, model.generation_config):
        configuration.eos_token_id = None  # type: ignore[union-attr]
    task = _task(model, 1, known=True)
    ended = [replace(record, response_ids=[*record.response_ids, END_OF_TEXT_ID]) for record in task]
    plain, cut = (_unlearn(model, {"task": rows}, {}, tokenizer=byte_tokenizer()) for rows in (task, ended))
    assert _bytes(cut) == _bytes(plain)
    with pytest.raises(BakeoutError, match="LEARN: the model's configuration names no end-of-text token"):
        _learn(model, {"task": task}, {})


@pytest.mark.parametrize("method", FITS)
def test_updates_are_orthogonal_to_what_the_similar_tasks_send_in(model: PreTrainedModel, method: str) -> None:
    task, similar = (_task(model, seed, known=method == "UNLEARN") for seed in (1, 2))
    fitted = FITS[method](model, {"task": task}, {"similar": similar}, energy=0.8)
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    linear_of = {linear.name: linear for linear in linear_layers(model)}
    # The first layer reads the same with and without the edit; what the second reads, the first has changed.
    for update in (one for one in fitted.updates if one.layer == 0 and one.role != "down"):
        name = f"model.layers.0.mlp.{names[update.role]}"
        sequences = [record.prompt_ids + record.response_ids for record in similar]
        basis = principal_directions(input_second_moments(model, [linear_of[name]], sequences)[name], 0.8)
        inside = update.left.astype(np.float64) @ (update.right.astype(np.float64) @ basis)
        assert np.linalg.norm(inside) <= 1e-6 * np.linalg.norm(update.left) * np.linalg.norm(update.right)


def test_discrimination_keeps_the_similar_task(model: PreTrainedModel) -> None:
    task, similar = (_task(model, seed, known=True) for seed in (1, 2))
    plain = _unlearn(model, {"task": task}, {})
    discriminating = _unlearn(model, {"task": task}, {"similar": similar}, energy=0.9)
    before = _probability(model, similar)
    lost, kept = (abs(_probability(model, similar, [one]) - before) for one in (plain, discriminating))
    assert kept < 0.5 * lost


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_the_scale_scales_the_update(model: PreTrainedModel, method: str, names: Sequence[str]) -> None:
    tasks = {name: _task(model, seed, known=method == "UNLEARN") for seed, name in enumerate(names, start=1)}
    whole, half = (FITS[method](model, tasks, {}, scale=scale) for scale in (1.0, 0.5))
    for one, other in zip(whole.updates, half.updates, strict=True):
        np.testing.assert_allclose(0.5 * one.left @ one.right, other.left @ other.right, atol=1e-5)
        assert len(one.right) <= len(names) * QUICK["rank"]


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_given_back_bit_for_bit(model: PreTrainedModel, method: str, grad: bool) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tasks = {"one": _task(model, 1, known=True), "two": _task(model, 2, known=True)}
    with torch.set_grad_enabled(grad):
        FITS[method](model, tasks, {})
        assert torch.is_grad_enabled() == grad
    with pytest.raises(RuntimeError, match="stop"):
        FITS[method](model, tasks, {}, track=_stopping)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def _stopping(iterable, description: str, total: int | None = None, at: str = "two"):  # type: ignore[no-untyped-def]
    for index, item in enumerate(iterable):
        if at in description and index == 2:
            raise RuntimeError("stop")
        yield item


@pytest.mark.parametrize("method", FITS)
def test_an_interrupted_fit_goes_on_behind_the_last_layer(model: PreTrainedModel, method: str, tmp_path: Path) -> None:
    tasks = {"one": _task(model, 1, known=True), "two": _task(model, 2, known=False)}
    similar = {"kept": _task(model, 3, known=True)}
    options = {"energy": 0.8, "until": 0.0} if method == "UNLEARN" else {"energy": 0.8}
    whole = FITS[method](model, tasks, similar, **options)
    cache = ProbeCache(tmp_path, "the model")
    with pytest.raises(RuntimeError, match="stop"):
        FITS[method](model, tasks, similar, track=partial(_stopping, at="two: layer 1"), cache=cache, **options)
    worked_on: list[str] = []

    def track(iterable: Any, description: str, total: int | None = None) -> Any:
        worked_on.append(description)
        return iterable

    resumed = FITS[method](model, tasks, similar, track=track, cache=cache, **options)
    assert _bytes(resumed) == _bytes(whole)
    assert resumed.report == whole.report
    assert worked_on == ["inputs on kept", "two: layer 1"]
    worked_on.clear()
    half = FITS[method](model, tasks, similar, track=track, cache=cache, scale=0.5, **options)
    assert _bytes(half) == _bytes(whole.scaled(0.5))
    assert worked_on == []


@pytest.mark.parametrize("change", [*CHANGED, "rows", "similar rows", "task before", "model"])
def test_what_a_layer_depends_on_trains_it_again(model: PreTrainedModel, change: str, tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path, "the model")
    one, two, kept = (_task(model, seed, known=True) for seed in (1, 2, 3))
    _unlearn(model, {"one": one}, {"kept": kept}, cache=cache, energy=0.8)
    tasks = {"rows": {"one": one[:-1]}, "task before": {"two": two, "one": one}}.get(change, {"one": one})
    similar = {"kept": two if change == "similar rows" else kept}
    of_other = ProbeCache(tmp_path, "another model") if change == "model" else cache
    trained: list[str] = []

    def track(iterable: Any, description: str, total: int | None = None) -> Any:
        trained.append(description)
        return iterable

    chosen = {"energy": 0.8, **({change: CHANGED[change]} if change in CHANGED else {})}
    again = _unlearn(model, tasks, similar, track=track, cache=of_other, **chosen)
    assert "one: layer 0" in trained and "one: layer 1" in trained
    assert _bytes(again) == _bytes(_unlearn(model, tasks, similar, **chosen))


@pytest.mark.parametrize("method", FITS)
def test_same_inputs_same_bytes(model: PreTrainedModel, method: str) -> None:
    task, similar = (_task(model, seed, known=True) for seed in (1, 2))
    torch.manual_seed(5)
    first = FITS[method](model, {"task": task}, {"similar": similar}, energy=0.8, seed=1)
    torch.manual_seed(6)
    second = FITS[method](model, {"task": task}, {"similar": similar}, energy=0.8, seed=1)
    other = FITS[method](model, {"task": task}, {"similar": similar}, energy=0.8, seed=2)
    assert _bytes(first) == _bytes(second) != _bytes(other)
    assert first.report == second.report


def test_similar_tasks_that_leave_nothing_are_refused(model: PreTrainedModel) -> None:
    task = _task(model, 1, known=True)
    many = [Record("", "", prompt, [7]) for prompt in random_prompts(60, seed=3)]
    with pytest.raises(BakeoutError, match="every direction"):
        _unlearn(model, {"task": task}, {"similar": many}, energy=1.0)


@pytest.mark.parametrize("method", FITS)
def test_a_layer_that_no_task_reaches_protects_nothing(method: str) -> None:
    """Its neurons are off on every input: a ReLU gives 0."""
    model: Any = tiny_model("opt", layers=2)
    torch.nn.init.constant_(model.model.decoder.layers[0].fc1.bias, -1e4)
    update = FITS[method](model, {"task": _task(model, 1, known=True)}, {"similar": _task(model, 2, known=True)})
    assert update.updates


def test_layers_with_nothing_left_to_do_are_no_part_of_the_update(model: PreTrainedModel) -> None:
    task = _task(model, 1, known=True)
    options: dict[str, Any] = {"rank": 4, "steps": 40, "batch_size": 5, "learning_rate": 5e-2, "until": 0.3}
    forgotten = _unlearn(model, {"task": task}, {}, **options)
    assert all(update.left.any() and update.right.any() for update in forgotten.updates)
    assert {update.layer for update in forgotten.updates} == {0}
    with edited_weights(model, [forgotten]), pytest.raises(BakeoutError, match="task are improbable already"):
        _unlearn(model, {"task": task}, {}, **options)


def test_a_layer_is_done_where_the_answers_are_improbable_enough(model: PreTrainedModel) -> None:
    task = _task(model, 1, known=True)
    with pytest.raises(BakeoutError, match=r"improbable already.*lower `until`"):
        _unlearn(model, {"task": task}, {}, until=1e9)
    assert "until" not in LearnOptions.model_fields


@pytest.mark.parametrize("method", FITS)
def test_what_cannot_be_fitted_is_refused(model: PreTrainedModel, method: str) -> None:
    fit, task = FITS[method], _task(model, 1, known=True)
    with pytest.raises(BakeoutError, match="task has no row"):
        fit(model, {"task": [Record("", None, [3, 4], [])]}, {})
    with pytest.raises(BakeoutError, match="similar has no row"):
        fit(model, {"task": task}, {"similar": []})


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize(
    "option", [{"rank": 0}, {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"scale": 0}, {"energy": 1.5}]
)
def test_options_out_of_range_are_refused(model: PreTrainedModel, method: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        FITS[method](model, {}, {}, **option)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_experts_are_changed_with_what_else_their_block_holds(family: str) -> None:
    mixture = tiny_model(family, layers=2)
    task, similar = _task(mixture, 1, known=True), _task(mixture, 2, known=True)
    seeing = len(feed_forwards_if_any(mixture))
    forgotten = _unlearn(mixture, {"task": task}, {"similar": similar}, energy=0.5)
    assert _probability(mixture, task, [forgotten]) < 0.2 * _probability(mixture, task)
    assert any(update.layer >= seeing for update in forgotten.updates)
    # One loss a block, by the name of the first FFL that it holds.
    losses = forgotten.report.details["tasks"]["task"]["losses"]
    numbers = block_numbers(mixture)
    assert [numbers[int(layer)] for layer in losses] == [0, 1]


def test_experts_are_left_alone_where_that_is_asked_for() -> None:
    mixture = tiny_model("qwen2_moe", layers=2)
    forgotten = _unlearn(mixture, {"task": _task(mixture, 1, known=True)}, {}, experts=False)
    assert {update.layer for update in forgotten.updates} <= {0, 1}
    with pytest.raises(BakeoutError, match=r"No feed-forward layer of this 'mixtral' model sees every token"):
        _unlearn(tiny_model("mixtral"), {"task": _task(mixture, 1, known=False)}, {}, experts=False)
