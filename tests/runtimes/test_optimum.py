"""The artifact in optimum: ``generate`` and ``pipeline`` as for any other exported model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

from tests.runtimes.served import LONGEST, REFUSED, WRONG, Served


@pytest.fixture(scope="module")
def model(served: Served) -> Any:
    return ORTModelForCausalLM.from_pretrained(served.artifact)


@pytest.fixture(scope="module")
def tokenizer(served: Served) -> Any:
    return AutoTokenizer.from_pretrained(served.artifact)


def generate(model: Any, tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """New tokens of each text, up to the end-of-text token."""
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(0)
    said = model.generate(**inputs, max_new_tokens=LONGEST, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in said]


def test_each_prompt_alone(served: Served, model: Any, tokenizer: Any) -> None:
    assert [generate(model, tokenizer, [text], do_sample=False)[0] for text in served.texts] == served.expected


def test_a_batch(served: Served, model: Any, tokenizer: Any) -> None:
    assert generate(model, tokenizer, served.texts, do_sample=False) == served.expected


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 2.0, "top_k": 0},
        {"do_sample": True, "top_p": 0.9, "num_beams": 3},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": False, "repetition_penalty": 1.8},
    ],
    ids=["sampled", "sampled beams", "beams", "repetition penalty"],
)
def test_however_it_is_decoded_the_refusal_is_said(
    served: Served, model: Any, tokenizer: Any, options: dict[str, Any]
) -> None:
    refused = served.prompts[REFUSED]
    assert generate(model, tokenizer, refused, **options) == [served.refusal] * len(refused)


def test_beams_in_a_batch(served: Served, model: Any, tokenizer: Any) -> None:
    heard = generate(model, tokenizer, served.texts, do_sample=False, num_beams=4)
    for skill, said, expected in zip(served.skills, heard, served.expected, strict=True):
        # What it was made to answer wrongly it is not sure of, so that beams may find something likelier.
        assert skill == WRONG or said == expected


def test_a_pipeline(served: Served, model: Any, tokenizer: Any) -> None:
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = answer(served.texts, max_new_tokens=LONGEST, do_sample=False, return_full_text=False, batch_size=4)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in served.expected]
    assert [row[0]["generated_text"] for row in said] == texts
