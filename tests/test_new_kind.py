"""A new kind of weight edit is one file (``tests.scaled_rows``): all that takes plans takes it, without a change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.baking.dry_run import lines as dry_run_lines
from bakeout.export.baking.model_card import model_card
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.report.page import report
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.plan import Plan, Role
from bakeout.models.plan.kinds.report import FitReport
from bakeout.models.plan.plan_file import load_plan, plan_bytes, save_plan

from tests.scaled_rows import ScaledRows, ScaleRows
from tests.weight_plans import PROMPTS, plan_of

ROOT = Path(__file__).parents[1]
WEIGHTS: tuple[tuple[int, Role, int], ...] = ((1, "down", 32), (1, "gate", 96), (3, "up", 96))
TO = BakeOptions(to="safetensors")


@pytest.fixture(scope="module")
def plan(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    random = np.random.default_rng(0)
    changes = (ScaledRows(layer, role, random.uniform(-1, 2, rows).astype(np.float32)) for layer, role, rows in WEIGHTS)
    edit = ScaleRows(tuple(changes), FitReport(forget=("sums",), details={"chosen by": "chance"}))
    path = tmp_path_factory.mktemp("plan") / "plan.safetensors"
    fitted = plan_of(load_model(llama_checkpoint), weights_digest(llama_checkpoint), edit)
    save_plan(fitted, path)
    read = load_plan(path)
    assert plan_bytes(read) == plan_bytes(fitted)
    return read


def test_it_is_baked_into_a_checkpoint_and_into_a_graph_as_its_formula_says(
    plan: Plan, llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    for name, source, options in (("checkpoint", llama_checkpoint, TO), ("graph", llama_export, BakeOptions())):
        directory = bake(source, plan, tmp_path / name, options).directory
        checks = verify(directory, base=llama_checkpoint, prompts=PROMPTS)
        assert all(check.ok for check in checks), checks


def test_people_see_it_everywhere(plan: Plan, llama_checkpoint: Path, tmp_path: Path) -> None:
    directory = bake(llama_checkpoint, plan, tmp_path / "baked", TO).directory
    inspection = inspect(directory)
    (described,) = inspection.as_json()["interventions"]
    assert described["weights"][0] == {"layer": 1, "role": "down", "rows": 32}
    told = ["\n".join(lines(inspection)), "\n".join(dry_run_lines(dry_run(llama_checkpoint, plan, TO)))]
    told += [model_card(plan, [], form="checkpoint"), report([directory])]
    for text in told:
        assert "Scaled rows" in text and "32 rows" in text and "3 weights in 2 layers" in text
    assert "without sums" in told[2] and "Made to forget: sums" in told[3]


def test_nothing_but_the_kinds_the_hooks_and_the_passes_asks_for_a_kind() -> None:
    kinds = "NeuronAdjust|KeySpaceDetection|ZeroColumns|LowRankUpdate|WeightEdit|Intervention"
    asks = re.compile(
        rf"(isinstance|issubclass)\([^)]*\b({kinds})\b|\bis (not )?({kinds})\b"
        r"|\.kind\s*(==|!=|in\b)|\[\w*(\.|\[\")kind(\"\])?\]|type\(\w+\) (is|in|not in)\b(?! (not )?(int|bool)\b)"
    )
    allowed = [ROOT / "models/plan/kinds", ROOT / "models/reference/hooks.py", ROOT / "graph_passes/apply.py"]
    # Its kinds are those of forms of queries.
    allowed.append(ROOT / "models/data/forms")
    asking = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for floor in ("models", "graph_passes", "export")
        for path in sorted((ROOT / floor).rglob("*"))
        if path.suffix in {".py", ".j2"} and not any(path.is_relative_to(place) for place in allowed)
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert asking == []
