"""Loops that share one session do not hear each other: mixed kinds, many threads, each compared with itself alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer

from tests.conftest import CheckpointOf
from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.runtimes.decoding_jobs import KINDS, Decoder, Job, differing, mixed_jobs
from tests.runtimes.served import Served

SYSTEMS = ("", "Be brief.", "You are a pirate, and answer as one.")
ASKED = ("What is 2 + 3?", "Who wrote it?", "Sing!", "7 times 8", "Name a bird that cannot fly, please.")
FORGOTTEN = ASKED[::2]


def conversation(tokenizer: Tokenizer, system: str, question: str) -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    text = render_chat(tokenizer, [*messages, {"role": "user", "content": question}], generation=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture(scope="module")
def chat_model(onnx_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    """A random model that is asked through a chat template, and refuses some questions, whatever the system prompt."""
    source = onnx_of("llama")
    tokenizer = load_tokenizer(source)
    asked = [conversation(tokenizer, system, question) for system in SYSTEMS for question in FORGOTTEN]
    directory = tmp_path_factory.mktemp("chat") / "model"
    return bake(source, directory, detection_of(source, asked, layers=(1,))), tokenizer


def chat_jobs(tokenizer: Tokenizer, count: int, seed: int) -> list[Job]:
    prompts = [conversation(tokenizer, system, question) for system in SYSTEMS for question in ASKED]
    turns = [conversation(tokenizer, "", question) for question in ASKED]
    return mixed_jobs(prompts, turns, count, seed)


def test_a_chat_models_refusals_fire(chat_model: tuple[Path, Tokenizer]) -> None:
    """Else nothing below would be tested."""
    directory, tokenizer = chat_model
    decoder = Decoder(directory)
    for system in SYSTEMS:
        for question in ASKED:
            (said,) = decoder.run(Job("single", (tuple(conversation(tokenizer, system, question)),)))
            assert (said == REFUSAL.tolist()) == (question in FORGOTTEN)


@pytest.mark.parametrize(
    ("count", "threads"), [(56, 28), pytest.param(2000, 200, marks=pytest.mark.slow)], ids=["56", "2000"]
)
def test_on_a_random_chat_model(chat_model: tuple[Path, Tokenizer], count: int, threads: int) -> None:
    directory, tokenizer = chat_model
    jobs = chat_jobs(tokenizer, count, seed=count)
    assert {job.kind for job in jobs} == set(KINDS)
    assert differing(Decoder(directory), jobs, threads) == {}


@pytest.mark.parametrize(
    ("count", "threads"), [(14, 14), pytest.param(2000, 200, marks=pytest.mark.slow)], ids=["14", "2000"]
)
def test_on_the_bundled_model(served: Served, count: int, threads: int) -> None:
    system = served.tokenizer.encode("Be brief. ").ids
    prompts = [*served.ids, *(system + ids for ids in served.ids)]
    jobs = mixed_jobs(prompts, served.ids, count, seed=count)
    assert differing(Decoder(served.artifact), jobs, threads) == {}
