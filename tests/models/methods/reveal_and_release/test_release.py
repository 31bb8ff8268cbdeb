"""Modules are trained on the answers they are given, apart from earlier modules, and tell what a model still says."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from bakeout.models.methods.lora_modules import summed
from bakeout.models.methods.reveal_and_release.options import ReleaseOptions
from bakeout.models.methods.reveal_and_release.release import Text, overlap, reproduced, train_module
from bakeout.models.network.families import experts
from bakeout.models.plan import LowRankUpdate
from bakeout.models.reference.weight_edits import edited_weights

from tests.tiny_models import random_prompts, tiny_model

OPTIONS = ReleaseOptions(rank=4, steps=25, batch_size=6, learning_rate=1e-2, orthogonality=0.0)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama", layers=2)


def _texts(seed: int = 0) -> list[Text]:
    prompts, answers = random_prompts(6, seed=seed), random_prompts(6, seed=seed + 100, shortest=1, longest=3)
    return [Text(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _train(model: PreTrainedModel, texts: list[Text], options: ReleaseOptions = OPTIONS, softening: float = 1.0):  # type: ignore[no-untyped-def]
    return train_module(model, texts, [], softening=softening, options=options, seed=3, description="training")


@pytest.mark.parametrize("grad", [True, False])
def test_a_module_teaches_the_answers_and_the_model_keeps_its_own(model: PreTrainedModel, grad: bool) -> None:
    texts = _texts()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.set_grad_enabled(grad):
        module, loss = _train(model, texts)
        assert torch.is_grad_enabled() == grad
    assert loss < 1.0
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sum(reproduced(model, texts)) == 0
    updates, _ = summed(model, [(1.0, module)])
    with edited_weights(model, [LowRankUpdate("test", updates)]):
        assert sum(reproduced(model, texts)) >= 4


def test_training_follows_from_the_seed(model: PreTrainedModel) -> None:
    first, second = _train(model, _texts())[0], _train(model, _texts())[0]
    assert all(torch.equal(first[name][side], second[name][side]) for name in first for side in (0, 1))


def test_orthogonality_keeps_a_module_out_of_earlier_subspaces(model: PreTrainedModel) -> None:
    earlier, _ = _train(model, _texts(1))
    overlaps = []
    for weight in (0.0, 0.1):
        options = ReleaseOptions(rank=4, steps=25, batch_size=6, learning_rate=1e-2, orthogonality=weight)
        module, _ = train_module(
            model, _texts(2), [earlier], softening=1.0, options=options, seed=5, description="training"
        )
        overlaps.append(float(overlap(module, [earlier])))
    assert overlaps[1] < 0.5 * overlaps[0]


def test_overlap_is_the_sum_of_absolute_inner_products() -> None:
    one = {"a": (torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]))}
    other = {"a": (torch.zeros(2, 1), torch.tensor([[3.0, -1.0]]))}
    assert float(overlap(one, [other, other])) == 2 * (abs(3 - 2) + abs(-1))
    assert float(overlap(one, [])) == 0.0


def test_what_is_said_is_what_greedy_decoding_says(model: PreTrainedModel) -> None:
    texts = []
    for prompt in random_prompts(5):
        ids = list(prompt)
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(Text(prompt, ids[len(prompt) :]))
    assert reproduced(model, texts, batch_size=2) == [True] * 5
    wrong = [Text(text.prompt_ids, [*text.answer_ids[:-1], (text.answer_ids[-1] + 1) % 200]) for text in texts]
    assert reproduced(model, [*texts[:1], *wrong]) == [True] + [False] * 5


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_trained_by_the_tokens_that_are_sent_to_them(family: str) -> None:
    mixture = tiny_model(family, layers=2)
    texts = _texts()
    module, _ = train_module(
        mixture, texts, [], softening=1.0, options=OPTIONS, seed=3, description="training", with_experts=True
    )
    updates, _ = summed(mixture, [(1.0, module)])
    assert {update.layer for update in updates} == set(range(len(experts(mixture))))
    with edited_weights(mixture, [LowRankUpdate("test", updates)]):
        assert sum(reproduced(mixture, texts)) >= 4


def test_an_expert_without_a_token_stays_as_it_is() -> None:
    mixture = tiny_model("mixtral", layers=1)
    text = Text([7], [9])
    module, _ = train_module(
        mixture, [text], [], softening=1.0, options=OPTIONS, seed=3, description="training", with_experts=True
    )
    # Of one layer, what the last token is sent to changes no prediction.
    changed = {name.split(".experts.")[1][0] for name, (left, _) in module.items() if bool(left.any())}
    with torch.no_grad():
        chosen = mixture(torch.tensor([[7]]), output_router_logits=True).router_logits[0].topk(2).indices
    assert changed == set(map(str, chosen.flatten().tolist()))
