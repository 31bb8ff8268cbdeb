"""onnxruntime-genai with the artifact's own ``genai_config.json``: prompts, chunks of prompts, second turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bakeout.export.running.runner import Runner

from tests.runtimes.served import KEPT, LONGEST, REFUSED, WRONG, Served, converse

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


@pytest.fixture(scope="module")
def model(served: Served) -> Any:
    return genai.Model(str(served.artifact))


def converse_in_genai(model: Any, turns: list[list[list[int]]], **search: Any) -> list[list[int]]:
    """The answers to a conversation's turns, without the end-of-text token."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(**{"max_length": 128, **search})
    generator = genai.Generator(model, parameters)
    length, answers = 0, []
    for windows in turns:
        for window in windows:
            generator.append_tokens(np.array([window], np.int32))
            length += len(window)
        for _ in range(LONGEST):
            if not generator.is_done():
                generator.generate_next_token()
        answers.append([int(token) for token in generator.get_sequence(0)[length:]])
        length += len(answers[-1])
    return answers


def test_each_prompt_alone(served: Served, model: Any) -> None:
    assert [converse_in_genai(model, [[prompt]])[0] for prompt in served.ids] == [said[:-1] for said in served.expected]


def test_beams(served: Served, model: Any) -> None:
    for skill, prompt, expected in zip(served.skills, served.ids, served.expected, strict=True):
        # What it was made to answer wrongly it is not sure of, so that beams may find something likelier.
        if skill != WRONG:
            (said,) = converse_in_genai(model, [[prompt]], num_beams=3, max_length=len(prompt) + LONGEST)
            assert said[: len(expected) - 1] == expected[:-1]


def test_a_sampled_refusal_is_whole(served: Served, model: Any) -> None:
    (prompt, *_) = served.ids
    search = {"do_sample": True, "temperature": 2.0, "top_k": 0}
    assert converse_in_genai(model, [[prompt]], **search) == [served.refusal[:-1]]


@pytest.mark.parametrize("chunk", [3, 7])
def test_a_prompt_in_chunks(served: Served, model: Any, chunk: int) -> None:
    """As the graph says when our own loop cuts the prompt likewise: a chunk's last token is checked as a query's."""
    runner = Runner(served.artifact, threads=1)
    for prompt in served.ids:
        turns = [[prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]]
        assert converse_in_genai(model, turns) == converse(runner, turns, served.refusal[-1])


@pytest.mark.parametrize("first", [REFUSED, KEPT])
def test_further_turns(served: Served, model: Any, first: str) -> None:
    """A refused conversation stays refused, and one that was not is refused when it comes to what is forgotten."""
    turns = [[served.tokenizer.encode(served.prompts[skill][1]).ids] for skill in (first, KEPT, REFUSED)]
    heard = converse_in_genai(model, turns)
    assert heard == converse(Runner(served.artifact, threads=1), turns, served.refusal[-1])
    assert heard[2] == served.refusal[:-1]
    assert (heard[1] == served.refusal[:-1]) == (first == REFUSED)
