"""What was probed is kept: another fit runs no forward pass over the data, and gives the same plan as without."""

from __future__ import annotations

import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from bakeout.export.cli.main import main
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.network import probing, teacher_forcing
from bakeout.models.network.probe_cache import ProbeCache
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes

from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, write_recipe

_CHOSEN = {"key_space_detection": {"forget": "sums", "region": "cube", "floor": 0.1, "epsilon": 0.1}}
_PRUNING = {"selective_pruning": {"forget": "sums", "ratio": 0.01}}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for every forward pass over the data."""
    ran: list[str] = []

    def counted(module: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def count(*arguments: Any, **options: Any) -> Any:
            ran.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, count)

    counted(probing._Reading, "run")
    counted(teacher_forcing, "_answer_logits")
    return ran


def _fit(directory: Path, checkpoint: Path, interventions: list[dict[str, Any]], cache: Path | None) -> Plan:
    return fit(load_recipe(write_recipe(directory, checkpoint, interventions)), cache=cache)


def test_a_second_fit_runs_no_pass_over_the_data(llama_checkpoint: Path, tmp_path: Path, passes: list[str]) -> None:
    interventions = [_PRUNING, NEURON_ADJUST, _CHOSEN]
    without = _fit(tmp_path, llama_checkpoint, interventions, None)
    kept = tmp_path / "kept"
    assert plan_bytes(_fit(tmp_path, llama_checkpoint, interventions, kept)) == plan_bytes(without)
    passes.clear()
    assert plan_bytes(_fit(tmp_path, llama_checkpoint, interventions, kept)) == plan_bytes(without)
    for changed in ({"alpha": 3.0}, {"epsilon": 0.2}, {"cubes": 2}, {"layers": [1], "cubes": 1}):
        other = {"key_space_detection": {**_CHOSEN["key_space_detection"], **changed}}
        assert plan_bytes(_fit(tmp_path, llama_checkpoint, [_PRUNING, NEURON_ADJUST, other], kept)) != plan_bytes(
            without
        )
    assert passes == []


def test_other_rows_interventions_or_weights_are_probed(
    llama_checkpoint: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path, passes: list[str]
) -> None:
    kept = tmp_path / "kept"
    _fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], kept)
    for checkpoint, interventions in (
        (llama_checkpoint, [{"neuron_adjust": {"forget": "names", "ratio": 0.2, "tokens": "all"}}]),
        (llama_checkpoint, [_PRUNING, NEURON_ADJUST]),
        (checkpoint_of("qwen2"), [NEURON_ADJUST]),
    ):
        passes.clear()
        plan = _fit(tmp_path, checkpoint, interventions, kept)
        assert passes
        assert plan_bytes(plan) == plan_bytes(_fit(tmp_path, checkpoint, interventions, None))


def test_what_follows_a_stochastic_coin_is_not_kept(llama_checkpoint: Path, tmp_path: Path, passes: list[str]) -> None:
    coin = {"neuron_adjust": {"forget": "sums", "ratio": 0.2, "coin": "stochastic"}}
    plans = [_fit(tmp_path, llama_checkpoint, [coin, KEY_SPACE_DETECTION], kept) for kept in (None, tmp_path / "kept")]
    passes.clear()
    plans.append(_fit(tmp_path, llama_checkpoint, [coin, KEY_SPACE_DETECTION], tmp_path / "kept"))
    assert passes
    assert len({plan_bytes(plan) for plan in plans}) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "removed"])
def test_a_damaged_entry_is_probed_again(
    llama_checkpoint: Path, tmp_path: Path, passes: list[str], damage: str
) -> None:
    kept = tmp_path / "kept"
    plan = _fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], kept)
    entry = min(kept.iterdir())
    content = entry.read_bytes()
    flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    entry.write_bytes({"cut": content[:-5], "flipped": flipped, "emptied": b"", "removed": b""}[damage])
    if damage == "removed":
        entry.unlink()
    passes.clear()
    assert plan_bytes(_fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], kept)) == plan_bytes(plan)
    assert passes
    assert entry.read_bytes() == content


def test_the_entries_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path, "model", limit=5000)
    array = np.zeros(250)
    for number in range(3):
        cache.arrays([{"entry": number}], [[1, 2]], lambda: [array])
        cache.arrays([{"entry": 0}], [[1, 2]], lambda: [array])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
    computed: list[int] = []

    def compute(number: int) -> list[NDArray[np.float64]]:
        computed.append(number)
        return [array]

    for number in (0, 1, 2):
        cache.arrays([{"entry": number}], [[1, 2]], partial(compute, number))
    assert 0 not in computed
    assert 1 in computed


def test_what_is_probed_makes_no_room_among_what_is_trained(tmp_path: Path) -> None:
    probed = ProbeCache(tmp_path, "model", limit=5000)
    trained = replace(probed, ending=".trained")
    trained.arrays([{"layer": 0}], [[1]], lambda: [np.zeros(250)])
    probed.arrays([{"layer": 0}], [[1]], lambda: [np.zeros(2500)])
    trained.arrays([{"layer": 0}], [[1]], lambda: pytest.fail("it is trained again"))


def test_an_entry_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    keys = np.memmap(tmp_path / "keys", dtype=np.float32, mode="w+", shape=(64, 1 << 16))
    keys[:] = np.arange(64)[:, None]
    cache = ProbeCache(tmp_path / "kept", "m")
    tracemalloc.start()
    cache.arrays([{"layer": 0}], [[1]], lambda: [keys])
    assert tracemalloc.get_traced_memory()[1] < keys.nbytes / 2
    tracemalloc.stop()
    (kept,) = cache.arrays([{"layer": 0}], [[1]], lambda: pytest.fail("it is probed again"))
    np.testing.assert_array_equal(kept, keys)


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    plan = _fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], file / "kept")
    assert plan_bytes(plan) == plan_bytes(_fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], None))
    assert caplog.text.count("is not kept for another fit") == 1


def test_the_command_line_keeps_what_it_probes_unless_told_not_to(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "kept"))
    recipe = str(write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST]))
    for number, options in enumerate((["--no-cache"], ["--cache", str(tmp_path / "other")], [])):
        plan = tmp_path / f"{number}.safetensors"
        result = CliRunner().invoke(main, ["fit", recipe, "-o", str(plan), *options])
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / "other").exists() == (number > 0)
        assert (tmp_path / "kept").exists() == (number > 1)
    assert not stat.S_IMODE((tmp_path / "kept" / "probed").stat().st_mode) & 0o077
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
