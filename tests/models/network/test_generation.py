"""Continuations are what the model itself says, whatever the batch; sampling follows from its seed."""

from __future__ import annotations

import pytest
import torch

from bakeout.models.network.generation import Continuation, continue_prompts, end_tokens

from tests.tiny_models import END_OF_TEXT_ID, byte_tokenizer, random_prompts, tiny_model

END = frozenset({END_OF_TEXT_ID})


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "gpt_neox", "bart", "bloom"])
def test_greedy_continuations_are_those_of_every_prompt_alone(family: str) -> None:
    model, prompts = tiny_model(family, layers=2), random_prompts(6)
    said = continue_prompts(model, prompts, end=END, max_new_tokens=5, batch_size=4)
    for prompt, one in zip(prompts, said, strict=True):
        ids, probability = list(prompt), 1.0
        for _ in range(5):
            with torch.no_grad():
                probabilities = model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
            probability *= float(probabilities.max())
            ids.append(int(probabilities.argmax()))
            if ids[-1] in END:
                break
        assert one.ids == ids[len(prompt) :]
        assert one.finished == (one.ids[-1] in END)
        assert one.confidence == pytest.approx(probability ** (1 / len(one.ids)), rel=1e-3)


def test_what_follows_the_end_of_text_does_not_count() -> None:
    model, prompts = tiny_model("llama", layers=2), random_prompts(8)
    whole = continue_prompts(model, prompts, end=frozenset(), max_new_tokens=6)
    end = frozenset({whole[0].ids[2]})
    for open_ended, ended in zip(whole, continue_prompts(model, prompts, end=end, max_new_tokens=6), strict=True):
        assert ended.finished == bool(end & set(open_ended.ids))
        length = next((i + 1 for i, token in enumerate(open_ended.ids) if token in end), 6)
        assert ended.ids == open_ended.ids[:length]


def test_samples_follow_from_the_seed_and_differ_from_row_to_row() -> None:
    model = tiny_model("llama", layers=2)

    def sample(seed: int) -> list[Continuation]:
        return continue_prompts(model, [[7, 8]] * 6, end=END, max_new_tokens=6, temperature=1.5, seed=seed)

    state = torch.get_rng_state()
    first = sample(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == sample(1)
    assert first != sample(2)
    assert len({tuple(one.ids) for one in first}) > 1


def test_a_model_may_end_its_texts_with_several_tokens() -> None:
    model, tokenizer = tiny_model("llama", layers=1), byte_tokenizer()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [3, 4]
    assert end_tokens(model, tokenizer) == {END_OF_TEXT_ID, 3, 4}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == END
