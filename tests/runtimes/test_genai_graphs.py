"""Graphs of the onnxruntime-genai builder, baked, in onnxruntime-genai: with the cache in memory of its own at every
step, and with past and present in the same buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bakeout.models.plan import Positions

from tests.genai_builder import FORMATS, build
from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import tiny_checkpoint

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

FORGOTTEN = [40, 41, 42, 43]
KEPT = [60, 61, 62]
SAID = REFUSAL.tolist()
NEW = len(SAID) + 4
LAYERS = {"middle": 1, "last": 3}

Refusing = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Refusing:
    """``refusing("int4", "last")``: the directories of an unbaked graph and of one that refuses, made once."""
    root = tmp_path_factory.mktemp("genai")
    # GroupQueryAttention wants heads of a multiple of 16.
    checkpoint = tiny_checkpoint("llama", root / "checkpoint", hidden=64)

    def get(
        form: str,
        where: str,
        positions: Positions = "query",
        prompts: Sequence[Sequence[int]] = (FORGOTTEN,),
        query_end: Sequence[int] = (),
        query_start: Sequence[int] = (),
    ) -> tuple[Path, Path]:
        base, directory = root / form, root / f"{form}-{where}-{positions}-{len(prompts)}"
        if not base.exists():
            build(checkpoint, base, form)
        if not directory.exists():
            layers = (LAYERS[where],)
            detection = detection_of(
                base, prompts, layers=layers, positions=positions, query_end=query_end, query_start=query_start
            )
            bake(base, directory, detection)
        return base, directory

    return get


def converse(
    directory: Path, turns: Sequence[Sequence[int]], *, shares: bool, rows: int = 1, chunk: int = 64, **search: Any
) -> list[list[list[int]]]:
    """What is said in each row, [turns][rows], to turns of so many tokens each, given ``chunk`` at a time."""
    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64, batch_size=rows, past_present_share_buffer=shares, **search)
    generator = genai.Generator(model, parameters)
    said = []
    for turn in turns:
        tokens = np.array(turn, dtype=np.int32).reshape(rows, -1)
        for start in range(0, tokens.shape[1], chunk):
            generator.append_tokens(tokens[:, start : start + chunk])
        new: list[list[int]] = [[] for _ in range(rows)]
        for _ in range(NEW):
            if generator.is_done():
                break
            generator.generate_next_token()
            for row, token in zip(new, generator.get_next_tokens(), strict=True):
                row.append(int(token))
        said.append(new)
    return said


shared = pytest.mark.parametrize("shares", [False, True], ids=["unshared", "shared"])
where = pytest.mark.parametrize("where", LAYERS)


@shared
@where
@pytest.mark.parametrize("form", FORMATS)
def test_the_refusal_and_what_passes(refusing: Refusing, form: str, where: str, shares: bool) -> None:
    base, directory = refusing(form, where)
    assert converse(directory, [FORGOTTEN], shares=shares) == [[SAID]]
    assert converse(directory, [KEPT], shares=shares) == converse(base, [KEPT], shares=shares)


@shared
@where
def test_a_second_turn_is_refused_again(refusing: Refusing, where: str, shares: bool) -> None:
    _, directory = refusing("fp32", where)
    assert converse(directory, [FORGOTTEN, KEPT], shares=shares) == [[SAID], [SAID]]


@where
def test_a_second_turn_of_what_passes(refusing: Refusing, where: str) -> None:
    """In shared buffers: without, genai itself cannot go on after an answer that was cut off."""
    base, directory = refusing("fp32", where)
    turns = [KEPT, [9, 9]]
    assert converse(directory, turns, shares=True) == converse(base, turns, shares=True)


@shared
@where
@pytest.mark.parametrize("prompt", [FORGOTTEN, KEPT])
def test_rewinding_and_drafts_give_the_text_of_plain_decoding(
    refusing: Refusing, where: str, shares: bool, prompt: list[int]
) -> None:
    """Several tokens at once in the middle of an answer, whose end lies where a query would be refused."""
    base, _ = refusing("fp32", where)
    ((answer,),) = converse(base, [KEPT], shares=shares)
    _, directory = refusing("fp32", where, prompts=[FORGOTTEN, [*KEPT, *answer[:4]]], query_end=FORGOTTEN[-2:])
    ((expected,),) = converse(directory, [prompt], shares=shares)
    assert expected == (SAID if prompt == FORGOTTEN else answer)

    parameters = genai.GeneratorParams(model := genai.Model(str(directory)))
    parameters.set_search_options(max_length=64, past_present_share_buffer=shares)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    for _ in range(5):
        generator.generate_next_token()
    # A draft is rejected but for its first token, and the rest is fed again, all of it at once.
    generator.rewind_to(len(prompt) + 1)
    generator.append_tokens(np.array([expected[1:4]], dtype=np.int32))
    said = expected[:4]
    while len(said) < len(expected):
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    assert said == expected


@shared
@where
@pytest.mark.parametrize("form", FORMATS)
def test_the_mean_key_of_a_query_is_that_from_its_opening_on(
    refusing: Refusing, form: str, where: str, shares: bool
) -> None:
    """However much of the conversation before it is read in the same run."""
    earlier, query = [*KEPT, 8, 9, 9], [7, *FORGOTTEN]
    base, directory = refusing(form, where, "mean", [[*earlier, *query]], query_start=query[:2])
    for chunk in (len(earlier), 64):
        assert converse(directory, [[*earlier, *query]], shares=shares, chunk=chunk) == [[SAID]]
    # The same words without their opening, other words behind it, and the query in pieces.
    for text, chunk in (([*earlier, *FORGOTTEN], 6), ([*earlier, 7, 40, 50, 51, 52], 6), ([*earlier, *query], 8)):
        expected = converse(base, [text], shares=shares, chunk=chunk)
        assert converse(directory, [text], shares=shares, chunk=chunk) == expected != [[SAID]]


@shared
@where
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunked_prefill(refusing: Refusing, where: str, shares: bool, chunk: int) -> None:
    """The position ``every`` decides the same whatever the chunks; ``query`` would not look at a chunk of one."""
    base, directory = refusing("fp32", where, "every")
    assert converse(directory, [FORGOTTEN], shares=shares, chunk=chunk) == [[SAID]]
    long = [*KEPT, *KEPT, 7]
    assert converse(directory, [long], shares=shares, chunk=chunk) == converse(base, [long], shares=shares, chunk=chunk)


@shared
@where
def test_a_batch_with_both_outcomes(refusing: Refusing, where: str, shares: bool) -> None:
    """Rows are padded on the right: GroupQueryAttention counts a row's tokens from the left."""
    base, directory = refusing("fp32", where)
    rows = [*FORGOTTEN, *KEPT, 0]
    ((refused, kept),) = converse(directory, [rows], shares=shares, rows=2)
    assert refused[: len(SAID)] == SAID
    assert kept == converse(base, [rows], shares=shares, rows=2)[0][1]
    assert kept == converse(base, [KEPT], shares=shares)[0][0]


@shared
def test_a_batch_that_is_refused_whole(refusing: Refusing, shares: bool) -> None:
    _, directory = refusing("fp32", "middle")
    assert converse(directory, [FORGOTTEN * 2], shares=shares, rows=2) == [[SAID, SAID]]


@shared
def test_sampling_says_the_refusal(refusing: Refusing, shares: bool) -> None:
    _, directory = refusing("int4", "middle")
    search: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "top_k": 0}
    assert converse(directory, [FORGOTTEN], shares=shares, **search) == [[SAID]]
