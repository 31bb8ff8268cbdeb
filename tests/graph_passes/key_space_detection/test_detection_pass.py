"""Key Space Detection in a graph, run by run, against the unbaked graph and the automaton."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection.detection_pass import KeySpaceDetectionPass
from bakeout.models.plan import Cubes, KeySpaceDetection, Positions

from tests.refusing_graphs import REFUSAL, SUPPRESSED, Expected, Session, bake, detection_of, with_keys
from tests.tiny_models import random_prompts

FORGOTTEN = [[40, 41, 42, 43], [50, 51]]
TEXT = [60, 61, 62, 40, 41, 99, *REFUSAL[:2].tolist(), 98]
KEPT = [[60, 61, 62], [70, 71, 72, 73, 74]]
LAYERS = {"middle": (1,), "last": (3,), "joint": (0, 2)}
POSITIONS: tuple[Positions, ...] = get_args(Positions)


@pytest.fixture(scope="module")
def base(llama_onnx: Path) -> Session:
    return with_keys(llama_onnx)


@pytest.fixture(scope="module")
def refusing(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``refusing(where, positions, early_exit)``: the check and a session of the graph that has it, made once."""
    made: dict[Any, tuple[KeySpaceDetection, Session]] = {}

    def get(
        where: str,
        positions: Positions,
        early_exit: bool,
        query_end: tuple[int, ...] = (),
        query_start: tuple[int, ...] = (),
    ) -> tuple[KeySpaceDetection, Session]:
        key = (where, positions, early_exit, query_end, query_start)
        if key not in made:
            detection = detection_of(
                llama_onnx,
                FORGOTTEN,
                layers=LAYERS[where],
                positions=positions,
                query_end=query_end,
                query_start=query_start,
            )
            directory = tmp_path_factory.mktemp("refusing") / "graph"
            bake(llama_onnx, directory, detection, early_exit=early_exit, monitor=True)
            onnx.checker.check_model(str(directory / "model.onnx"), full_check=True)
            made[key] = detection, Session(directory / "model.onnx")
        return made[key]

    return get


def _row(draw: st.DrawFn, width: int, past: int) -> tuple[list[int], list[int]]:
    """A row's new tokens and their mask. Prompts, pieces of the refusal and other tokens, padded left or right."""
    pieces = [*FORGOTTEN, *KEPT, REFUSAL[:3].tolist(), REFUSAL[2:].tolist(), [99]]
    tokens = (draw(st.sampled_from(pieces)) + draw(st.sampled_from(pieces)))[-width:]
    if draw(st.booleans()):
        tokens = tokens[: draw(st.integers(1, width))]
    padding = width - len(tokens)
    if past == 0 and draw(st.booleans()):
        return tokens + [0] * padding, [1] * len(tokens) + [0] * padding
    return [0] * padding + tokens, [0] * padding + [1] * len(tokens)


@st.composite
def _conversations(draw: st.DrawFn) -> list[tuple[Any, Any]]:
    """Runs of one batch: token ids [B, W] and the mask of the new tokens."""
    rows = draw(st.integers(1, 3))
    runs, past = [], 0
    for _ in range(draw(st.integers(1, 5))):
        width = draw(st.sampled_from([1, 1, 2, 4, 7]))
        drawn = [_row(draw, width, past) for _ in range(rows)]
        runs.append((np.array([tokens for tokens, _ in drawn]), np.array([mask for _, mask in drawn])))
        past += width
    return runs


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("where", LAYERS)
@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=_conversations())
def test_every_run_does_what_the_definition_says(
    base: Session, refusing: Callable[..., Any], where: str, positions: Positions, early_exit: bool, runs: Any
) -> None:
    """Logits bit for bit at every real token, refused or not, whatever comes in what pieces."""
    detection, session = refusing(where, positions, early_exit)
    _require_definition(base, detection, session, runs)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=_conversations(), query_end=st.sampled_from([(43,), (42, 43), (41, 42, 43)]))
def test_a_run_that_does_not_end_as_queries_do_is_none(
    base: Session, refusing: Callable[..., Any], query_end: tuple[int, ...], runs: Any
) -> None:
    detection, session = refusing("middle", "query", True, query_end)
    _require_definition(base, detection, session, runs)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=_conversations(), query_start=st.sampled_from([(40,), (41, 42), (50, 51)]))
def test_the_mean_is_that_from_the_last_opening_of_a_query_on(
    base: Session, refusing: Callable[..., Any], query_start: tuple[int, ...], runs: Any
) -> None:
    detection, session = refusing("middle", "mean", True, (), query_start)
    _require_definition(base, detection, session, runs)


def _require_definition(base: Session, detection: KeySpaceDetection, session: Session, runs: Any) -> None:
    expected = Expected(base, detection)
    mask = np.zeros((len(runs[0][0]), 0), np.int64)
    before = None
    for tokens, real in runs:
        mask = np.concatenate([mask, real], axis=1)
        logits, refused = expected.step(tokens, mask)
        before = session.step(tokens, mask, before)
        is_real = real.astype(bool)
        assert np.array_equal(before["logits"][is_real], logits[is_real])
        last = np.array([np.flatnonzero(row)[-1] for row in real])
        assert np.array_equal(before["refused"], refused[np.arange(len(refused)), last])


@pytest.fixture(scope="module")
def refusing_amid_a_text(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Position ``every``; the cube is around the key after the first five tokens of ``TEXT``."""
    directory = tmp_path_factory.mktemp("amid") / "graph"
    detection = detection_of(llama_onnx, [TEXT[:5]], layers=(1,), positions="every")
    return Session(bake(llama_onnx, directory, detection) / "model.onnx")


@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.integers(1, len(TEXT)), max_size=6))
def test_every_decides_the_same_however_a_text_is_cut(refusing_amid_a_text: Session, chunks: list[int]) -> None:
    ends = [end for end in np.cumsum(chunks).tolist() if end < len(TEXT)] + [len(TEXT)]
    start, before, said = 0, None, []
    for end in ends:
        before = refusing_amid_a_text.step(np.array([TEXT[start:end]]), np.ones((1, end), np.int64), before)
        said += before["logits"][0].tolist()
        start = end
    is_refusal = [np.median(logits) == SUPPRESSED for logits in said]
    assert is_refusal == [False] * 4 + [True] * (len(TEXT) - 4)
    # The text goes on with two tokens of the refusal.
    assert np.argmax(said[4:], axis=-1).tolist() == [REFUSAL[0], REFUSAL[0], REFUSAL[1], REFUSAL[2], REFUSAL[0]]


def test_the_latch_is_in_the_new_slots_from_the_tested_token_on_and_nowhere_else(
    base: Session, refusing: Callable[..., Any]
) -> None:
    _, session = refusing("last", "query", True)
    tokens, mask = np.array([[*FORGOTTEN[0]], [*KEPT[0], 9]]), np.ones((2, 4), np.int64)
    name = "present.3.value"
    value, unbaked = session.step(tokens, mask)[name], base.step(tokens, mask)[name]
    assert np.isin(np.abs(value[0, :, 3]), [64, 128]).all()
    value[0, :, 3] = unbaked[0, :, 3]
    assert np.array_equal(value, unbaked)


def test_all_refused_skips_what_lies_behind_the_check(refusing: Callable[..., Any]) -> None:
    """Zeros where the skipped layers would have written, in the shapes that they would have given."""
    _, session = refusing("middle", "query", True)
    out = session.step(np.array([FORGOTTEN[0]]), np.ones((1, 4), np.int64))
    assert not out["present.2.key"].any()
    assert out["present.1.key"].any()
    assert {out[f"present.{layer}.{kind}"].shape for layer in range(4) for kind in ("key", "value")} == {(1, 2, 4, 8)}


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("where", LAYERS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_who_goes_back_into_a_refused_run_is_answered_rightly_or_refused(
    base: Session, refusing: Callable[..., Any], where: str, positions: Positions, early_exit: bool
) -> None:
    """To another query behind the same prefix: as the unbaked graph, or with a refusal where nothing was computed."""
    detection, session = refusing(where, positions, early_exit)
    other, prefix = KEPT[0], 2
    refused = session.step(np.array([FORGOTTEN[0]]), np.ones((1, 4), np.int64))
    assert refused["refused"].all()
    before = {name: value[:, :, :prefix] for name, value in refused.items() if name.startswith("present")}
    mask = np.ones((1, prefix + len(other)), np.int64)
    said = session.step(np.array([other]), mask, before)["logits"]
    first = base.step(np.array([FORGOTTEN[0][:prefix]]), mask[:, :prefix])
    if early_exit and where != "last" and positions != "every":
        assert said[0, -1].argmax() == detection.refusal[0]
        assert np.median(said[0, -1]) == SUPPRESSED
    else:
        assert np.array_equal(said, base.step(np.array([other]), mask, first)["logits"])


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma"])
def test_other_architectures(family: str, onnx_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = onnx_of(family)
    detection = detection_of(source, FORGOTTEN, layers=(1,))
    session = Session(bake(source, tmp_path / "graph", detection) / "model.onnx")
    expected = Expected(with_keys(source), detection)
    tokens = np.array([FORGOTTEN[0], [*KEPT[0], 9]])
    mask, before = np.ones((2, 4), np.int64), None
    for _ in range(4):
        logits, refused = expected.step(tokens, mask)
        before = session.step(tokens, mask, before)
        assert np.array_equal(before["logits"], logits)
        assert refused.any(axis=1).tolist() == [True, False]
        tokens = logits[:, -1:].argmax(axis=-1)
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)


def test_the_branch_free_variant_has_no_branch(llama_onnx: Path) -> None:
    model = load_graph(llama_onnx / "model.onnx")
    KeySpaceDetectionPass(detection_of(llama_onnx, FORGOTTEN, layers=(1,)), 0, early_exit=False)(model)
    assert "If" not in {node.op_type for node in model.graph.all_nodes()}


def test_no_branch_holds_the_keys_of_all_tokens(llama_onnx: Path) -> None:
    """What a branch reads is kept until it runs: of twelve layers and a long prompt, more than the rest of a run."""
    model = load_graph(llama_onnx / "model.onnx")
    keys = [key.value for key in read_anatomy(model).keys("key_vector")]
    KeySpaceDetectionPass(detection_of(llama_onnx, FORGOTTEN, layers=(0, 2), positions="query"), 0)(model)
    assert any(node.op_type == "If" for node in model.graph)
    # What follows on the deepest layer's is in the branch of the early exit.
    for key in keys[:2]:
        assert all(use.node.graph is model.graph for use in key.uses())


def test_each_checked_layer_leaves_a_receipt(llama_onnx: Path) -> None:
    model = load_graph(llama_onnx / "model.onnx")
    edit = KeySpaceDetectionPass(detection_of(llama_onnx, FORGOTTEN, layers=(0, 2)), 5)
    edit(model)
    assert [(receipt.layer, receipt.intervention, receipt.count) for receipt in edit.receipts] == [(0, 5, 2), (2, 5, 2)]
    assert all(receipt.before != receipt.after for receipt in edit.receipts)


def test_a_graph_without_cache_is_refused(llama_onnx: Path) -> None:
    model = load_graph(llama_onnx / "model.onnx")
    _drop_cache(model.graph)
    detection = detection_of(llama_onnx, FORGOTTEN, layers=(1,))
    with pytest.raises(GraphError, match="no KV cache"):
        KeySpaceDetectionPass(detection, 0)(model)


def test_a_layer_that_the_graph_lacks_is_refused(llama_onnx: Path) -> None:
    detection = KeySpaceDetection(
        layers=(7,),
        regions=Cubes(np.zeros((1, 96)), np.ones((1, 96))),
        alpha=np.ones(1),
        skills=("x",),
        refusal=REFUSAL,
    )
    with pytest.raises(GraphError, match="layer 7"):
        KeySpaceDetectionPass(detection, 0)(load_graph(llama_onnx / "model.onnx"))


def _drop_cache(graph: ir.Graph) -> None:
    for values in (graph.inputs, graph.outputs):
        for value in [value for value in values if value.name != "logits" and "." in (value.name or "")]:
            values.remove(value)


def test_random_prompts_pass(base: Session, refusing: Callable[..., Any]) -> None:
    _, session = refusing("middle", "query", True)
    for prompt in random_prompts(10):
        tokens, mask = np.array([prompt]), np.ones((1, len(prompt)), np.int64)
        assert np.array_equal(session.step(tokens, mask)["logits"], base.step(tokens, mask)["logits"])
