"""``examples/benchmarks/cuda.py`` on the CPU provider: its checks hold for what was baked, and fail for what is not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.baked_parity import key_space_detection, model_of, neuron_adjust, plan_of
from tests.recipe_files import write_rows
from tests.tiny_models import byte_tokenizer, tiny_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "cuda.py"
TEXTS = ["Hello", "What is it?", "1 + 1 =", "Berlin", "Say it again.", "x", "Nobody knows.", "The end of the road"]
EVERYWHERE = [
    "finite",
    "alone",
    "batch",
    "several tokens",
    "IO binding",
    "genai",
    "CPU nodes",
    "effect",
    "prefill",
    "decode",
]
REFUSING = ["mixed batch", "refusal", "second turn", "early exit", "unbaked", "prefill, refused", "decode, refused"]


@dataclass(frozen=True)
class Baked:
    """``bases``: the unbaked graphs in fp32 and fp16; ``prompts``: a JSONL file, more than half of it refused."""

    bases: list[Path]
    adjusted: Path
    refusing: Path
    refusing_fp16: Path
    prompts: Path


@pytest.fixture(scope="module")
def baked(llama_checkpoint: Path, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    root = tmp_path_factory.mktemp("cuda")
    model = model_of(llama_checkpoint)
    ids = [byte_tokenizer()(text).input_ids for text in TEXTS]
    half = root / "base-fp16"
    half.mkdir()
    export_checkpoint(llama_checkpoint, half, "fp16")
    adjusting = plan_of(model, [neuron_adjust(model, "threshold", ids)], ids)
    refusing, everywhere = (
        plan_of(model, [key_space_detection(model, (1,), positions, ids)], ids) for positions in ("query", "every")
    )
    return Baked(
        [llama_export, half],
        bake(llama_export, adjusting, root / "adjusted").directory,
        bake(llama_export, refusing, root / "refusing").directory,
        bake(half, everywhere, root / "refusing-fp16", BakeOptions(early_exit=True)).directory,
        write_rows(root / "prompts.jsonl", [{"prompt": text} for text in TEXTS]),
    )


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def check(
    baked: Baked, *artifacts: Path, bases: list[Path] | None = None
) -> tuple[int, dict[tuple[str, str], tuple[str, str]]]:
    """The exit status, and the table: artifact and check to what is said of it."""
    options = [item for artifact in artifacts for item in ("--artifact", artifact)]
    options += [item for base in bases or baked.bases for item in ("--base", base)]
    done = run(*options, "--prompts", baked.prompts, "--provider", "cpu", "--new-tokens", "6")
    assert not done.stderr
    rows = [re.findall(r"[^|]+", line) for line in done.stdout.splitlines() if line.startswith("|")][2:]
    return done.returncode, {(row[0].strip(), row[1].strip()): (row[2].strip(), row[3].strip()) for row in rows}


def test_every_check_holds(baked: Baked) -> None:
    status, table = check(baked, baked.adjusted, baked.refusing, baked.refusing_fp16)
    assert status == 0
    rows = {artifact: [name for other, name in table if other == artifact] for artifact, _ in table}
    assert set(rows["adjusted"]) == {*EVERYWHERE, "Neuron Adjust"}
    assert set(rows["refusing"]) == set(rows["refusing-fp16"]) == {*EVERYWHERE, *REFUSING}
    # The query's last token is what is looked at, and no chat template says which that is.
    unknown = ("refusing", "several tokens")
    for check_of, (ok, _) in table.items():
        assert ok == ("-" if check_of == unknown or check_of[1].startswith(("prefill", "decode")) else "yes")
    assert "float16" in table["refusing-fp16", "finite"][1]


def test_another_refusal_than_the_plan_says(baked: Baked, tmp_path: Path) -> None:
    shutil.copytree(baked.refusing, tmp_path / "tampered")
    path = tmp_path / "tampered" / "plan.safetensors"
    plan = load_plan(path)
    (detection,) = plan.interventions
    assert isinstance(detection, KeySpaceDetection)
    tampered = replace(plan, interventions=(replace(detection, refusal=detection.refusal[1:]),))
    path.write_bytes(plan_bytes(tampered))
    status, table = check(baked, tmp_path / "tampered")
    assert status == 1
    assert {name for (_, name), (ok, _) in table.items() if ok == "NO"} == {"refusal", "second turn"}


def test_the_base_of_another_model(baked: Baked, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    export_checkpoint(tiny_checkpoint("llama", tmp_path / "checkpoint", seed=1), other)
    status, table = check(baked, baked.refusing, bases=[other])
    assert status == 1
    assert {name for (_, name), (ok, _) in table.items() if ok == "NO"} == {"unbaked"}


def test_a_plan_that_was_never_baked(baked: Baked, tmp_path: Path) -> None:
    """The edit that did nothing: the plan lies beside the unbaked graph."""
    shutil.copytree(baked.bases[0], tmp_path / "unbaked")
    for name in ("refusing", "adjusted"):
        shutil.copy(getattr(baked, name) / "plan.safetensors", tmp_path / "unbaked")
        status, table = check(baked, tmp_path / "unbaked")
        assert status == 1
        assert table["unbaked", "effect"][0] == "NO"


def test_prompts_of_its_own_and_figures_as_json(baked: Baked, tmp_path: Path) -> None:
    done = run("--artifact", baked.adjusted, "--provider", "cpu", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["provider"] == "CPUExecutionProvider"
    assert [row["ok"] for row in content["checks"] if row["name"] == "unbaked, timings"] == [None]


def test_what_cannot_be_checked_is_one_line(baked: Baked, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    cases: list[tuple[list[str | Path], str]] = [
        ([], "--artifact"),
        (["--artifact", tmp_path], "is no plan"),
        (["--artifact", baked.adjusted, "--provider", "cpu", "--prompts", tmp_path / "empty.jsonl"], "holds no prompt"),
        (["--artifact", baked.adjusted, "--provider", "cpu", "--prompts", tmp_path / "none.jsonl"], "cannot be read"),
        (["--artifact", baked.adjusted, "--provider", "cpu", "--base", tmp_path], "cannot be run"),
        (["--artifact", baked.adjusted, "--provider", "cpu", "--new-tokens", "0"], "--new-tokens"),
    ]
    for arguments, said in cases:
        arguments += [] if "--provider" in arguments else ["--provider", "cpu"]
        done = run(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert not done.stdout


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver here")
def test_cuda_where_there_is_none(baked: Baked) -> None:
    done = run("--artifact", baked.adjusted, "--provider", "cuda")
    assert done.returncode == 2
    assert re.fullmatch(r"cuda\.py: error: This .*: .*\n", done.stderr)
