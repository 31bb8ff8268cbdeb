"""How a refusal holds in conversations: refusals counted at the prefill, by form, of forgotten and other data.

    python examples/benchmarks/conversations.py MODEL --forget gsm8k.jsonl --retain mbpp.jsonl --retain general.jsonl \
        --stranger world_facts.jsonl --output runs/benchmarks/conversations

Fits and bakes with the defaults, or takes a finished ``--artifact`` that was baked with ``--monitor``. The wordings of
the forms are never those of fitting. What is refused is read from the baked graph's own output ``refused``; nothing
behind the check is computed for it. Some queries of each cell are decoded to their end by the whole graph as well.
Stops and resumes: what was probed, the artifact and finished cells stay in the output directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import click
import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bakeout.export.artifacts.model_source import find_graph
from bakeout.export.baking.bake import bake
from bakeout.export.baking.refused_turns import with_refused_turns
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.running.cache_entries import TYPES
from bakeout.export.running.refusals import Refusals, answer_text
from bakeout.export.running.runner import Runner
from bakeout.models.data.forms.kinds import MIXTURE, PLAIN, Kind, Plain
from bakeout.models.data.forms.turns import Turn
from bakeout.models.data.padding import left_padded
from bakeout.models.data.prompt_rows import (
    PromptRow,
    kinds_without_rendering,
    read_prompt_rows,
    refused_turns,
    varied_records,
)
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import Record
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.progress import logged

NEAR_MISSES = Path(__file__).parent / "near_misses.jsonl"
# Rows of a data set that is fitted with; what is left is asked afterwards.
PARTS = {"probe": 300, "selection": 200, "calibration": 250}
# What strangers are asked in: plainly, in a conversation, beside pasted material, and in frames.
STRANGERS: tuple[Kind | Plain, ...] = (
    *(PLAIN, "second_turn", "after_refusal", "follow_up", "system_prompt", "attachment"),
    *("few_shot", "story", "quotation", "translation", "role"),
)
# Prompts in a run.
BATCH = 8
PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("model", type=PATH)
@click.option("--forget", type=PATH, required=True, help="JSONL of the skill to refuse.")
@click.option("--retain", type=PATH, multiple=True, required=True, help="JSONL of a named skill to keep; repeatable.")
@click.option("--stranger", type=PATH, multiple=True, help="JSONL that the recipe does not name; repeatable.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where everything is kept.")
@click.option("--artifact", type=PATH, help="A finished artifact in place of one that is fitted and baked here.")
@click.option("--options", default="{}", help="Options of Key Space Detection, as JSON, in place of defaults.")
@click.option("--dtype", default="auto", show_default=True, help="The type in which the model is probed.")
@click.option("--rows", default=750, show_default=True, help="Rows of a data set that are fitted with, at most.")
@click.option("--queries", default=100, show_default=True, help="Queries of a cell.")
@click.option("--decoded", default=20, show_default=True, help="Queries of a cell that are decoded to their end.")
@click.option("--threads", type=int, help="Threads of ONNX Runtime.")
def main(
    model: Path,
    forget: Path,
    retain: tuple[Path, ...],
    stranger: tuple[Path, ...],
    output: Path,
    artifact: Path | None,
    options: str,
    dtype: str,
    rows: int,
    queries: int,
    decoded: int,
    threads: int | None,
) -> None:
    """Measure, and print the table."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("bakeout").setLevel(logging.INFO)
    output.mkdir(parents=True, exist_ok=True)
    data = {path.stem: _split(path, queries, rows) for path in (forget, *retain)}
    tests = {forget.stem: data[forget.stem]["test"]}
    tests |= {path.stem: _shuffled(path)[:queries] for path in (*stranger, NEAR_MISSES)}
    tests |= {path.stem: data[path.stem]["test"] for path in retain}
    if artifact is None:
        artifact = output / "artifact"
        if not artifact.exists():
            _fitted(model, forget.stem, data, json.loads(options), dtype, output, artifact)
    runner, check = Runner(artifact, threads=threads), _Check(artifact, threads)
    setting = {"plan": hash_file(artifact / "plan.safetensors"), "asked": _digest(tests)}
    cells = _Cells(output / "cells.json", setting)
    refusals = Refusals.of_artifacts([artifact])
    asked = {
        name: read_prompt_rows(as_source(own, name), runner.tokenizer, runner.limits) for name, own in tests.items()
    }
    (refusal,) = refusals.texts
    refused = refused_turns(asked[forget.stem], refusal)
    each = [
        (name, kind, [record.prompt_ids for record in records])
        for name, own in asked.items()
        for kind, records in _asked(own, tuple(MIXTURE) if name in data else STRANGERS, runner, refused)
        if records
    ]
    for name, kind, prompts in each:
        if "refused" not in cells.get(name, kind):
            cells.save(name, kind, _announced(check, prompts))
    # Decoding takes as long again: the table is there before.
    print(cells.table(tests, forget.stem), flush=True)
    for name, kind, prompts in each:
        cell = cells.get(name, kind)
        if "decoded" not in cell:
            cells.save(name, kind, _decoded(runner, prompts[:decoded], cell["refused"], refusals))
    print(cells.table(tests, forget.stem))


def _fitted(
    model: Path,
    forget: str,
    data: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    options: Mapping[str, Any],
    dtype: str,
    output: Path,
    artifact: Path,
) -> None:
    """Fit by a recipe in the output directory, and bake."""
    files: dict[str, dict[str, str]] = {}
    (output / "data").mkdir(exist_ok=True)
    for name, parts in data.items():
        files[name] = {use: f"data/{name}.{use}.jsonl" for use in PARTS}
        for use, path in files[name].items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in parts[use]]
            (output / path).write_text("".join(lines), encoding="utf-8")
    entry = {"forget": forget, **options}
    recipe = {
        "model": str(model.resolve()),
        "dtype": dtype,
        "data": files,
        "interventions": [{"key_space_detection": entry}],
    }
    written = output / "recipe.yaml"
    written.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()), encoding="utf-8")
    began = time.perf_counter()
    plan = fit(load_recipe(written), logged, cache=output / "probed")
    print(f"fitted in {time.perf_counter() - began:.0f} s", flush=True)
    for _, text in plan.interventions[0].report.facts():
        print("  ", text)
    save_plan(plan, output / "plan.safetensors")
    bake(model, plan, artifact, BakeOptions(monitor=True), canary=False)


def _split(path: Path, queries: int, most: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of a file by use: first those to be asked, then as many for fitting as there are, up to ``most``."""
    rows = _shuffled(path)
    parts, rest = {"test": rows[:queries]}, rows[queries:]
    scale = min(1.0, most / sum(PARTS.values()), len(rest) / sum(PARTS.values()))
    for use, count in PARTS.items():
        parts[use], rest = rest[: int(count * scale)], rest[int(count * scale) :]
    return parts


def _shuffled(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as conversations, in an order of their own; of several that ask the same, the first."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(0).shuffle(rows)
    # MBPP asks some questions twice.
    asked = {_question(row): row for row in reversed([_conversation(row) for row in rows])}
    return list(reversed(asked.values()))


def _digest(tests: Mapping[str, Any]) -> str:
    """Which rows are asked."""
    return hashlib.sha256(json.dumps(tests, sort_keys=True).encode()).hexdigest()


def _question(row: Mapping[str, Any]) -> str:
    """The last user's message."""
    return str(next(message["content"] for message in reversed(row["messages"]) if message["role"] == "user"))


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    if "messages" in row:
        return dict(row)
    # Files of GSM8K and TOFU, of MBPP, and of instructions.
    question = next(row[key] for key in ("question", "prompt", "text") if key in row)
    answer = next((row[key] for key in ("answer", "response", "code") if key in row), None)
    answered = [] if answer is None else [{"role": "assistant", "content": answer.replace("\r\n", "\n")}]
    return {"messages": [{"role": "user", "content": question}, *answered]}


def _asked(
    rows: Sequence[PromptRow], kinds: Sequence[Kind | Plain], runner: Runner, refused: Sequence[Turn]
) -> Iterator[tuple[Kind | Plain, list[Record]]]:
    """The rows in each kind of form; behind refusals with them, which the artifact's own template leaves out."""
    tokenizer = with_refused_turns(runner.tokenizer)
    not_rendered = kinds_without_rendering(tokenizer)
    for kind in kinds:
        if kind == PLAIN:
            yield kind, [row.plain(tokenizer) for row in rows]
        elif kind not in not_rendered:
            varied = varied_records(
                rows, [kind], tokenizer, limits=runner.limits, seed=0, use="testing", refused=refused
            )
            yield kind, [record for _, record in varied[kind]]


def _announced(check: _Check, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Which queries are refused at the prefill."""
    return {"queries": len(prompts), "refused": np.flatnonzero(check.refuses(prompts)).tolist()}


def _decoded(
    runner: Runner, prompts: Sequence[Sequence[int]], announced: Sequence[int], refusals: Refusals
) -> dict[str, int]:
    """How many of the queries, decoded to their end, say the refusal, and how many do as announced."""
    said = as_announced = 0
    longest = refusals.longest(runner.tokenizer) + 2
    for row, answer in enumerate(runner.generate(prompts, longest, batch_size=BATCH)):
        is_said = refusals.is_refusal(answer_text(runner.tokenizer, answer))
        said += is_said
        as_announced += is_said == (row in announced)
    return {"decoded": len(prompts), "said": said, "as_announced": as_announced}


class _Check:
    """A baked graph up to its output ``refused``: prefills that end with the check."""

    def __init__(self, artifact: Path, threads: int | None) -> None:
        path = find_graph(artifact)
        model = ir.load(path)
        outputs = [value for value in model.graph.outputs if value.name == "refused"]
        if not outputs:
            raise click.UsageError(f"{artifact} was baked without --monitor.")
        model.graph.outputs[:] = outputs
        RemoveUnusedNodesPass()(model)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = threads or 0
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)

    def refuses(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Whether each prompt is refused."""
        refused = np.zeros(len(prompts), dtype=bool)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            ids, mask = left_padded([prompts[row] for row in rows], 0)
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)}
            for value in self._session.get_inputs():
                if value.name not in given:
                    _, heads, _, size = value.shape
                    given[value.name] = np.zeros((len(rows), heads, 0, size), TYPES[value.type])
            taken = {value.name for value in self._session.get_inputs()}
            (refused[rows],) = self._session.run(None, {name: given[name] for name in given if name in taken})
        return refused


class _Cells:
    """Finished cells, by name and kind, kept in a file. Those of another plan, or other rows, are not taken."""

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self._path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._setting = dict(setting)
        self._cells: dict[str, dict[str, dict[str, Any]]] = kept["cells"] if kept.get("setting") == setting else {}

    def get(self, name: str, kind: str) -> dict[str, Any]:
        """What is known of a cell so far."""
        return self._cells.get(name, {}).get(kind, {})

    def save(self, name: str, kind: str, figures: Mapping[str, Any]) -> None:
        """Add figures to a cell."""
        self._cells.setdefault(name, {}).setdefault(kind, {}).update(figures)
        content = json.dumps({"setting": self._setting, "cells": self._cells})
        self._path.write_text(content + "\n", encoding="utf-8")
        print(f"{name}, {kind}: {figures}", flush=True)

    def table(self, names: Mapping[str, object], forget: str) -> str:
        """A row for each form: the share that is refused, of each name."""
        heads = [f"{name} (forgotten)" if name == forget else name for name in names]
        lines = [f"| asked | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
        for kind in MIXTURE:
            cells = [self._cells.get(name, {}).get(kind) for name in names]
            shares = ["" if cell is None else f"{len(cell['refused'])} of {cell['queries']}" for cell in cells]
            lines.append(f"| {kind} | {' | '.join(shares)} |")
        each = [list(self._cells.get(name, {}).values()) for name in names]
        shares = [
            f"{sum(len(cell['refused']) for cell in own) / max(1, sum(cell['queries'] for cell in own)):.1%}"
            for own in each
        ]
        decoded = [cell for own in each for cell in own if "decoded" in cell]
        ended = sum(cell["as_announced"] for cell in decoded), sum(cell["decoded"] for cell in decoded)
        lines.append(f"| all | {' | '.join(shares)} |")
        return "\n".join([*lines, "", f"{ended[0]} of {ended[1]} decoded answers are what the prefill announced."])


if __name__ == "__main__":
    main()
