"""Where the latch lives, in graphs with the caches of onnxruntime-genai 0.18's builder: the refusal comes to its end in
all of them, and what passes answers as the unbaked graph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection.latch_place import choose_value_cache

from tests.genai_caches import WINDOW, Loop, with_integers, with_open_head_size, with_windows
from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import tiny_checkpoint

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai's builder is not installed")

# Longer than the window.
FORGOTTEN = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
KEPT = [60, 61, 62, 63, 64, 65, 66, 67]
SAID = REFUSAL.tolist()
NEW = 3 * WINDOW
ALL = range(4)
LAST_SLIDES = (1, 2, 3)
FORMS: dict[str, tuple[Callable[..., Path], Any]] = {
    "the last layer slides": (with_windows, LAST_SLIDES),
    "all slide": (with_windows, ALL),
    "int8": (with_integers, ALL),
    "int8 but for one": (with_integers, (0, 2, 3)),
}
# Which layer's cache carries the latch.
PLACES = {"the last layer slides": 0, "all slide": 3, "int8": 3, "int8 but for one": 1}
CHECKED = {"middle": (1,), "last": (3,)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.genai_builder import build

    root = tmp_path_factory.mktemp("caches")
    # GroupQueryAttention wants heads of a multiple of 16.
    return build(tiny_checkpoint("llama", root / "checkpoint", hidden=64), root / "plain", "fp32")


@pytest.fixture(scope="module")
def graphs(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """``graphs(form, where)``: an unbaked graph and one that refuses, each made once."""
    root = tmp_path_factory.mktemp("graphs")

    def get(form: str, where: str, *, early_exit: bool) -> tuple[Path, Path]:
        base, baked = root / form, root / f"{form}-{where}-{early_exit}"
        change, layers = FORMS[form]
        if not base.exists():
            change(plain, base, layers)
        if not baked.exists():
            seen = base
            if change is with_windows:
                # The same keys, from caches that hold everything.
                seen = with_windows(plain, root / f"{baked.name}-seen", layers, forgets=False)
            bake(base, baked, detection_of(seen, [FORGOTTEN], layers=CHECKED[where]), early_exit=early_exit)
        return base / "model.onnx", baked / "model.onnx"

    return get


@pytest.mark.parametrize("form", FORMS)
def test_the_place(form: str, graphs: Callable[..., tuple[Path, Path]]) -> None:
    base, _ = graphs(form, "middle", early_exit=True)
    cache = choose_value_cache(read_anatomy(load_graph(base)))
    assert cache.writer.cache.layer == PLACES[form]


@pytest.mark.parametrize("shares", [False, True], ids=["unshared", "shared"])
@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("where", CHECKED)
@pytest.mark.parametrize("form", FORMS)
def test_refusals_and_what_passes(
    form: str, where: str, early_exit: bool, shares: bool, graphs: Callable[..., tuple[Path, Path]]
) -> None:
    base, baked = graphs(form, where, early_exit=early_exit)
    assert Loop(baked, shares).answer(FORGOTTEN, len(SAID)) == SAID
    # Far beyond the window.
    assert Loop(baked, shares).answer(KEPT, NEW) == Loop(base, shares).answer(KEPT, NEW)
    # A refused conversation stays refused, and a window of several tokens gives each position its own.
    loop = Loop(baked, shares)
    assert loop.answer([*KEPT, *FORGOTTEN][-len(FORGOTTEN) :], len(SAID)) == SAID
    assert loop.answer(KEPT, len(SAID)) == SAID
    loop.feed(KEPT)
    assert loop.feed(SAID[:4]).argmax(axis=-1).tolist() == SAID[1:5]
    assert loop.answer(SAID[4:5], 1) == SAID[5:6]


@pytest.mark.parametrize("where", CHECKED)
def test_a_head_size_that_the_graph_leaves_open(where: str, plain: Path, tmp_path: Path) -> None:
    base = with_open_head_size(plain, tmp_path / "base")
    baked = tmp_path / "baked"
    bake(base, baked, detection_of(plain, [FORGOTTEN], layers=CHECKED[where]))
    assert Runner(baked, threads=1).generate([FORGOTTEN], len(SAID)) == [SAID]
    assert Runner(baked, threads=1).generate([KEPT], NEW) == Runner(plain, threads=1).generate([KEPT], NEW)


def test_a_window_that_the_provider_keeps_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    """As the builder writes it for TensorRT-RTX: named as shorter, and nothing says how."""
    base = with_windows(plain, tmp_path / "base", ALL)
    model = load_graph(base / "model.onnx")
    for node in model.graph:
        node.attributes.pop("sliding_window_cache", None)
    with pytest.raises(GraphError, match="the provider keeps a window of it"):
        choose_value_cache(read_anatomy(model))


@pytest.mark.parametrize(
    ("kind", "name"), [(TensorProto.UINT8, "uint8"), (TensorProto.FLOAT8E4M3FN, "float8e4m3fn")], ids=["int4", "fp8"]
)
def test_caches_that_hold_no_latch_are_refused_by_name(kind: int, name: str, plain: Path, tmp_path: Path) -> None:
    base = with_integers(plain, tmp_path / "base", ALL, kind)
    with pytest.raises(GraphError, match=f"its values are {name}, which hold no latch"):
        choose_value_cache(read_anatomy(load_graph(base / "model.onnx")))
