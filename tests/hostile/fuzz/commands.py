"""Whole commands over mutated input: what they print, what they leave behind, how they end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from click.testing import CliRunner

from bakeout.export.cli.main import main

from tests.hostile.fuzz.graph_mutations import mutated_graph
from tests.hostile.fuzz.mutations import mutated_bytes, mutated_json, mutated_lines, mutated_safetensors, mutated_yaml
from tests.hostile.fuzz.targets import GRAPH, JSON, PLAN, ROWS, YAML, Mutate, Read, Target, hostile_template

_OUTPUT = "made"


def _command(*arguments: str) -> Read:
    """``bakeout ARGUMENTS``, of which those with an @ lie below the bench; what it makes is called ``made``."""

    def read(directory: Path) -> object:
        before = _names(directory)
        words = [str(directory / word[1:]) if word.startswith("@") else word for word in arguments]
        result = CliRunner().invoke(main, words, input="3 + 3 =\n\n")
        try:
            if not isinstance(result.exception, SystemExit | None):
                raise result.exception
            _require_readable(result.exit_code, result.stderr, result.output)
            left = _names(directory) - before
            if result.exit_code != 0 and left:
                raise AssertionError(f"it failed, and left {sorted(left)[0]}")
            if hidden := [name for name in left if Path(name).name.startswith(".")]:
                raise AssertionError(f"it left {hidden[0]}")
        finally:
            for name in _names(directory) - before:
                path = directory / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return "ok" if result.exit_code == 0 else f"exit code {result.exit_code}: {result.stderr[-300:]}"

    return read


def _require_readable(exit_code: int, errors: str, output: str) -> None:
    """One line says what is wrong, and nothing that is printed is obeyed by a terminal."""
    told = [line for line in errors.splitlines() if line.startswith(("error:", '{"error"'))]
    # 1 alone is what `verify` gives for an artifact that is not ok.
    if exit_code not in (0, 1, 2) or (exit_code == 2 and not told) or len(told) > 1 or "Traceback" in errors:
        raise AssertionError(f"exit code {exit_code}, and told is {errors[-300:]!r}")
    if told and not errors.endswith(f"{told[0]}\n"):
        raise AssertionError(f"more than a line: {errors[-300:]!r}")
    if shown := [character for character in output if not character.isprintable() and character not in "\n\t"]:
        raise AssertionError(f"{shown[0]!r} is printed")


def _names(directory: Path) -> set[str]:
    return {os.path.relpath(path, directory) for path in directory.rglob("*")}


_BUILD = ("build", "@recipe.yaml", "-o", f"@{_OUTPUT}")
_BAKE = ("bake", "@onnx", "@plans/graph_methods.safetensors", "-o", f"@{_OUTPUT}")
_EXPORT = ("bake", "@checkpoint", "@plans/key_space_detection.safetensors", "-o", f"@{_OUTPUT}")
_EDIT = ("bake", "@checkpoint", "@plans/weight_methods.safetensors", "--to", "safetensors", "-o", f"@{_OUTPUT}")
_TUNE = ("tune", "@tune.yaml", "-o", f"@{_OUTPUT}.yaml", "--trials", "2", "--prompts", "4")
_VERIFY = ("verify", "@artifacts/mixed", "--base", "@checkpoint", "--data", "@pairs.jsonl")
_EVALUATE = ("evaluate", "@artifacts/mixed", "--data", "@pairs.jsonl", "--csv", f"@{_OUTPUT}.csv")
_ATTACK = ("attack", "@artifacts/mixed", "--data", "@pairs.jsonl", "--figures", f"@{_OUTPUT}.json")
_ASSUMPTIONS = (
    *("assumptions", "@artifacts/mixed", "--base", "@checkpoint"),
    *("--forget", "@sums.probe.jsonl", "--retain", "@names.probe.jsonl"),
)
_REPORT = (
    *("report", "@artifacts/graph", "--evaluation", "@evaluation.json", "--figures", "@figures.json"),
    *("-o", f"@{_OUTPUT}.html"),
)
_IMPORT = ("import", "@sources/adapter", "--base", "@checkpoint", "-o", f"@{_OUTPUT}.safetensors")
_COMBINE = ("combine", "@plans/newest.safetensors", "@plans/learn.safetensors", *_IMPORT[2:])
_ADAPTER = ("export-adapter", "@plans/learn.safetensors", "-o", f"@{_OUTPUT}")
_BOM = ("bom", "@artifacts/graph", "-o", f"@{_OUTPUT}.json")
_SIGN = ("sign", "@artifacts/graph", "--key", "@signing.key")
_CHECK = ("verify", "@signed", "--signature", "@signing.pub", "--checks", "files")
_CERTIFY = (
    *("certify", "@scratch/copy", "--base", "@checkpoint", "--quick", "--max-new-tokens", "4"),
    *("--forget", "@sums.test.jsonl", "--retain", "@names.selection.jsonl"),
)
_RECORD = ("record", "@scratch/copy", "--request", "@pairs.jsonl", "--salt", f"@{_OUTPUT}.salt")
_CHAT = ("chat", "@artifacts/mixed", "--prompt", "3 + 3 =", "--max-new-tokens", "4")
_TEMPLATE: Sequence[Mutate] = (hostile_template, mutated_bytes)
_FEW_ROWS: Sequence[Mutate] = (mutated_lines, mutated_lines, mutated_bytes)

# What is run, what is mutated for it, how, and how often beside the others.
_RUNS: Sequence[tuple[Sequence[str], str, Sequence[Mutate], int]] = (
    (_BUILD, "recipe.yaml", YAML, 6),
    (_BUILD, "sums.calibration.jsonl", _FEW_ROWS, 1),
    (_BUILD, "checkpoint/config.json", JSON, 2),
    (_BUILD, "checkpoint/tokenizer.json", JSON, 1),
    (("fit", "@recipe.yaml", "-o", f"@{_OUTPUT}"), "names.probe.jsonl", ROWS, 2),
    (("fit", "@recipe.yaml", "-o", f"@{_OUTPUT}"), "recipe.yaml", YAML, 3),
    (("fit", "@recipe.yaml", "-o", f"@{_OUTPUT}"), "checkpoint/model.safetensors", PLAN, 2),
    (_TUNE, "tune.yaml", (mutated_yaml,), 2),
    (_BAKE, "plans/graph_methods.safetensors", PLAN, 4),
    (_BAKE, "onnx/model.onnx", GRAPH, 6),
    (_BAKE, "onnx/generation_config.json", JSON, 2),
    (_BAKE, "onnx/config.json", JSON, 2),
    (_BAKE, "onnx/tokenizer_config.json", JSON, 1),
    (("bake", "@genai", *_BAKE[2:]), "genai/genai_config.json", JSON, 2),
    (("bake", "@hub", *_BAKE[2:], "--variant", "q4"), "hub/config.json", JSON, 1),
    (_EXPORT, "checkpoint/config.json", JSON, 3),
    (_EDIT, "checkpoint/model.safetensors", PLAN, 2),
    (_EDIT, "plans/weight_methods.safetensors", PLAN, 2),
    (("bake", "@sharded", "@plans/sharded.safetensors", *_EDIT[3:]), "sharded/model.safetensors.index.json", JSON, 2),
    ((*_BAKE[:3], "--dry-run"), "onnx/model.onnx", (mutated_graph,), 1),
    (_VERIFY, "artifacts/mixed/bakeout.json", JSON, 3),
    (_VERIFY, "artifacts/mixed/plan.safetensors", (mutated_safetensors,), 2),
    (("verify", "@artifacts/mixed", "--checks", "graph,canary"), "artifacts/mixed/model.onnx", GRAPH, 4),
    (("verify", "@artifacts/mixed", "--checks", "canary", "--json"), "artifacts/mixed/genai_config.json", JSON, 2),
    (_EVALUATE, "pairs.jsonl", _FEW_ROWS, 3),
    (_EVALUATE, "artifacts/mixed/bakeout.json", JSON, 2),
    (_ATTACK, "pairs.jsonl", _FEW_ROWS, 2),
    (_ASSUMPTIONS, "artifacts/mixed/plan.safetensors", PLAN, 2),
    (_REPORT, "figures.json", JSON, 3),
    (_REPORT, "evaluation.json", JSON, 3),
    (_CHAT, "artifacts/mixed/model.onnx", GRAPH, 2),
    (_CHAT, "artifacts/mixed/tokenizer.json", JSON, 2),
    (_CHAT, "artifacts/mixed/chat_template.jinja", _TEMPLATE, 2),
    (_CHAT[:2], "artifacts/mixed/generation_config.json", JSON, 1),
    (("inspect", "@artifacts/mixed"), "artifacts/mixed/bakeout.json", (mutated_json,), 3),
    (("inspect", "@artifacts/mixed", "--json"), "artifacts/mixed/plan.safetensors", PLAN, 3),
    (_IMPORT, "sources/adapter/adapter_config.json", JSON, 1),
    (("import", "@sources/edited", *_IMPORT[2:]), "sources/edited/model.safetensors", PLAN, 1),
    (("import", "@sources/vector.gguf", *_IMPORT[2:]), "sources/vector.gguf", (mutated_bytes,), 1),
    (_COMBINE, "plans/learn.safetensors", PLAN, 2),
    (_ADAPTER, "plans/learn.safetensors", PLAN, 2),
    (_BOM, "artifacts/graph/bakeout.json", JSON, 2),
    (_BOM, "artifacts/graph/plan.safetensors", PLAN, 1),
    (_SIGN, "signing.key", (mutated_bytes,), 1),
    (_SIGN, "artifacts/graph/bakeout.json", JSON, 1),
    (_CHECK, "signed/model.sig", JSON, 2),
    (_CHECK, "signing.pub", (mutated_bytes,), 1),
    (("demo", "--model", "@checkpoint", "-o", f"@{_OUTPUT}"), "checkpoint/config.json", JSON, 1),
)

# The same for commands that write into an artifact, of which each gets a copy.
_CHANGING_RUNS: Sequence[tuple[Sequence[str], str, Sequence[Mutate], int]] = (
    (_CERTIFY, "sums.test.jsonl", _FEW_ROWS, 1),
    (_CERTIFY, "scratch/copy/bakeout.json", JSON, 1),
    (_RECORD, "pairs.jsonl", ROWS, 1),
    (_RECORD, "scratch/copy/bakeout.json", JSON, 2),
    (_RECORD, "scratch/copy/certificate.json", JSON, 2),
)


def _put_copy(directory: Path) -> None:
    shutil.rmtree(directory / "scratch" / "copy", ignore_errors=True)
    shutil.copytree(directory / "certified", directory / "scratch" / "copy")


COMMANDS: Mapping[str, Target] = {
    f"bakeout {' '.join(arguments)} ({file})": Target(file, mutations, _command(*arguments), weight, put)
    for runs, put in ((_RUNS, None), (_CHANGING_RUNS, _put_copy))
    for arguments, file, mutations, weight in runs
}
