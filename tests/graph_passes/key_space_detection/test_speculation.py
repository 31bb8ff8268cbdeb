"""Speculative decoding: drafts of several tokens in the middle of an answer give the text of plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bakeout.export.running.runner import Runner

from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import random_prompts

FORGOTTEN = [40, 41, 42, 43]
QUERY_END = (42, 43)
NEW = 12
DRAFT = 4

Draft = Callable[[list[int]], list[int]]


def plain(runner: Runner, prompt: Sequence[int]) -> list[int]:
    """The first tokens of a greedy answer, whatever ends a text."""
    return speculative(runner, prompt, lambda said: [])


def speculative(runner: Runner, prompt: Sequence[int], draft: Draft) -> list[int]:
    """The same with drafts, of which the longest part is kept that the graph itself would have generated."""
    step = runner.step(np.array([prompt]), np.ones((1, len(prompt)), np.int64))
    said = [int(step.logits[0, -1].argmax())]
    kept = len(prompt)
    while len(said) < NEW:
        window = [said[-1], *draft(said)]
        step = runner.step(np.array([window]), np.ones((1, kept + len(window)), np.int64), step.cache)
        generated = step.logits[0].argmax(axis=-1).tolist()
        accepted = 1
        while accepted < len(window) and window[accepted] == generated[accepted - 1]:
            accepted += 1
        said += generated[:accepted]
        kept += accepted
        # Past and drafts that were accepted.
        step = replace(step, cache={name: _cut(value, kept) for name, value in step.cache.items()})
    return said[:NEW]


def _cut(value: onnxruntime.OrtValue, slots: int) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[:, :, :slots]))


def ngram(prompt: Sequence[int], said: Sequence[int]) -> list[int]:
    """What followed the newest token where it stood before, as prompt lookup drafts it."""
    text = [*prompt, *said]
    before = [index for index, token in enumerate(text[:-1]) if token == text[-1]]
    return text[before[-1] + 1 :][:DRAFT] if before else []


@pytest.fixture(scope="module", params=[True, False], ids=["early-exit", "branch-free"])
def runners(request: pytest.FixtureRequest, llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Runner]:
    """The unbaked graph and one that refuses ``FORGOTTEN``, and whatever ends like the middle of some answers."""
    base = Runner(llama_onnx, threads=1)
    amid = [[*prompt, *plain(base, prompt)[:length]] for prompt in random_prompts(4) for length in (2, 5)]
    second = [*random_prompts(1)[0], *FORGOTTEN]
    detection = detection_of(llama_onnx, [FORGOTTEN, second, *amid], layers=(1,), query_end=QUERY_END)
    directory = tmp_path_factory.mktemp("speculation") / "graph"
    return [base, Runner(bake(llama_onnx, directory, detection, early_exit=request.param), threads=1)]


@pytest.mark.parametrize("prompt", [*random_prompts(4), FORGOTTEN])
def test_drafts_give_the_text_of_plain_decoding(runners: list[Runner], prompt: list[int]) -> None:
    base, baked = runners
    expected = plain(baked, prompt)
    refused = prompt == FORGOTTEN
    assert expected[: len(REFUSAL)] == REFUSAL.tolist() if refused else expected == plain(base, prompt)
    assert speculative(baked, prompt, lambda said: ngram(prompt, said)) == expected
    # The best draft there is, so that the windows end in the middle of the answer; and the worst.
    assert speculative(baked, prompt, lambda said: expected[len(said) :][:DRAFT]) == expected
    assert speculative(baked, prompt, lambda said: [7] * DRAFT) == expected


def test_a_later_turn_that_ends_otherwise_is_taken_for_a_draft(runners: list[Runner]) -> None:
    """The documented limit: behind a cache, a program that renders turns in its own way is not tested."""
    base, baked = runners
    (prompt,) = random_prompts(1)
    mask = np.ones((1, len(prompt) + len(FORGOTTEN)), np.int64)
    said = {}
    for ends, turn in (("like a query", FORGOTTEN), ("otherwise", FORGOTTEN[:-1])):
        for name, runner in (("base", base), ("baked", baked)):
            step = runner.step(np.array([prompt]), np.ones((1, len(prompt)), np.int64))
            step = runner.step(np.array([turn]), mask[:, : len(prompt) + len(turn)], step.cache)
            said[name, ends] = int(step.logits[0, -1].argmax())
    assert said["baked", "like a query"] == REFUSAL[0]
    assert said["baked", "otherwise"] == said["base", "otherwise"]


def test_a_query_behind_an_answer_is_still_a_query(runners: list[Runner]) -> None:
    _, baked = runners
    (prompt,) = random_prompts(1)
    first = baked.step(np.array([prompt]), np.ones((1, len(prompt)), np.int64))
    assert int(first.logits[0, -1].argmax()) != REFUSAL[0]
    # Cut into pieces as well: the last one has the end of the query.
    for pieces in ([FORGOTTEN], [FORGOTTEN[:2], FORGOTTEN[2:]]):
        step, length = first, len(prompt)
        for piece in pieces:
            length += len(piece)
            step = baked.step(np.array([piece]), np.ones((1, length), np.int64), step.cache)
        assert int(step.logits[0, -1].argmax()) == REFUSAL[0]
