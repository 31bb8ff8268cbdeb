"""What is mutated, and what reads it then: every loader, in-process. ``commands`` has whole commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.model_source import find_graph, model_source
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.artifacts.onnx_layout import home_of
from bakeout.export.baking.model_card import model_card
from bakeout.export.baking.stopping import let_refusal_stop
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.answering.answer_file import AnswerFile
from bakeout.export.evaluation.csv_table import write_csv
from bakeout.export.evaluation.evaluate import stored_base_rows
from bakeout.export.evaluation.task_files import require_no_code
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.evaluation_file import read_evaluation
from bakeout.export.report.page import report
from bakeout.export.running.genai_config import copy_genai_config
from bakeout.export.trust.signature import check_signature
from bakeout.export.tuning.search import search
from bakeout.export.tuning.trials import Measured
from bakeout.export.verification.verify import CheckName, verify
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.graph_passes.graph.observe import ObservePass
from bakeout.models.checkpoint.checkpoint_files import (
    read_config,
    resolve_checkpoint,
    weight_files,
    weights_digest,
)
from bakeout.models.checkpoint.checkpoint_writer import find_edits, preview_edits
from bakeout.models.checkpoint.end_of_text import read_end_of_text, read_padding
from bakeout.models.checkpoint.gguf.gguf_checkpoint import gguf_checkpoint
from bakeout.models.checkpoint.gguf.gguf_header import read_gguf_header
from bakeout.models.data.prompt_rows import read_prompt_rows
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.reveal_and_release.round_files import Round, RoundFiles
from bakeout.models.methods.search_space import Span
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.hostile.fuzz.bench import ARTIFACTS, FIXTURES, NEWEST, PLANS, SHAPED
from tests.hostile.fuzz.graph_mutations import mutated_graph
from tests.hostile.fuzz.mutations import (
    deep_json,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_safetensors,
    mutated_table,
    mutated_yaml,
    spliced_json,
)
from tests.hostile.fuzz.odd_values import TEMPLATES
from tests.hostile.fuzz.sources import read_source

Mutate = Callable[[bytes, Random], bytes]
Read = Callable[[Path], object]

JSON: Sequence[Mutate] = (mutated_json, mutated_json, mutated_json, spliced_json, mutated_bytes, deep_json)
PLAN: Sequence[Mutate] = (mutated_safetensors, mutated_safetensors, mutated_safetensors, mutated_bytes)
GRAPH: Sequence[Mutate] = (mutated_graph, mutated_graph, mutated_graph, mutated_bytes)
YAML: Sequence[Mutate] = (mutated_yaml, mutated_yaml, mutated_bytes, deep_json)
ROWS: Sequence[Mutate] = (mutated_lines, mutated_lines, mutated_bytes, deep_json)


@dataclass(frozen=True)
class Target:
    """A file below the bench, how it is mutated, and what reads it. ``put`` writes what the bench does not hold."""

    file: str
    mutations: Sequence[Mutate]
    read: Read
    weight: int = 1
    put: Callable[[Path], None] | None = None


@cache
def _tokenizer(directory: Path) -> JsonTokenizer:
    return JsonTokenizer(directory / "checkpoint")


@cache
def _plan(name: str) -> Plan:
    return load_plan(FIXTURES / "plans" / f"{name}.safetensors")


def hostile_template(content: bytes, random: Random) -> bytes:
    """A template that asks for too much, alone or beside the good one."""
    text = random.choice(TEMPLATES).encode("utf-8", "surrogatepass")
    return random.choice((text, content + text, text + content))


def _template_in_settings(content: bytes, random: Random) -> bytes:
    settings = json.loads(content)
    template = random.choice(TEMPLATES)
    named = {"name": random.choice(("default", "tool_use", "", 3)), "template": template}
    settings["chat_template"] = random.choice((template, [named], {"default": template}, [template]))
    return json.dumps(settings).encode()


def _read_rows(name: str, read_all: Callable[[Path, Any], object] = read_records) -> Read:
    return lambda directory: read_all(directory / name, _tokenizer(directory))


def _read_tokenizer(load: Callable[[Path], Any], name: str = "checkpoint") -> Read:
    def read(directory: Path) -> object:
        tokenizer = load(directory / name)
        read_records(directory / "rows.jsonl", tokenizer)
        return tokenizer.decode(tokenizer.encode("What is 3+4?"), skip_special_tokens=True)

    return read


def _read_plan(name: str) -> Read:
    def read(directory: Path) -> object:
        inspection = inspect(directory / "plans" / f"{name}.safetensors")
        json.dumps(inspection.as_json())
        plan_bytes(inspection.plan)
        model_card(inspection.plan, ())
        assert isinstance(inspection.plan.contradiction, str)
        return list(lines(inspection))

    return read


def _read_artifact(name: str, checks: Sequence[CheckName] = ("files",), *, is_drawn: bool = False) -> Read:
    """``is_drawn``: in a report too, which takes longer than all else."""

    def read(directory: Path) -> object:
        artifact = directory / "artifacts" / name
        read_manifest(artifact)
        stored_base_rows(artifact, {"pairs": directory / "pairs.jsonl"})
        verify(artifact, checks=checks)
        return list(lines(inspect(artifact))), report([artifact]) if is_drawn else ""

    return read


def _read_configuration(name: str) -> Read:
    def read(directory: Path) -> object:
        model = directory / name
        read_config(model)
        model_source(model)
        read_padding(model)
        read_end_of_text(model)
        companion_files(model)
        changed = directory / "scratch" / "changed"
        try:
            shutil.copytree(model, changed, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx*"))
            return let_refusal_stop(changed, [5, 6, 1])
        finally:
            shutil.rmtree(changed, ignore_errors=True)

    return read


def _read_weights(name: str) -> Read:
    def read(directory: Path) -> object:
        model = resolve_checkpoint(directory / name)
        weight_files(model)
        weights_digest(model)
        return preview_edits(model, find_edits(model, _plan("weight_methods")))

    return read


def _read_layout(name: str) -> Read:
    def read(directory: Path) -> object:
        graph = find_graph(directory / name)
        companion_files(home_of(graph))
        read_end_of_text(home_of(graph))
        model_source(directory / name)
        load_graph(graph)
        if (directory / name / "genai_config.json").is_file():
            copy_genai_config(directory / name, directory / "scratch")
        return model_source(directory / name, "q4") if name == "hub" else graph

    return read


def _refused(name: str) -> Read:
    def read(directory: Path) -> object:
        try:
            return model_source(directory / name)
        except BakeoutError as error:
            assert "\n" not in f"{error.cause}{error.remedy}"
            return error

    return read


def _read_graph(file: str, plan: str) -> Read:
    def read(directory: Path) -> object:
        for early_exit in (True, False):
            graph = load_graph(directory / file)
            apply_plan(graph, _plan(plan), inline=not early_exit, early_exit=early_exit, monitor=not early_exit)
            graph_bytes(graph)
        graph = load_graph(directory / file)
        return ObservePass([output.name or "" for output in graph.graph.outputs])(graph)

    return read


def _measure(settings: Mapping[str, Any]) -> Measured:
    return Measured({"sums": 1 - settings["ratio"]}, {"names": 1.0}, 0.1)


def _search(directory: Path) -> object:
    axes = {"ratio": Span(0.01, 0.5)}
    journal = directory / "scratch" / "journal.log"
    return search(axes, [{"ratio": 0.1}], _measure, trials=3, seed=0, journal=journal, name="0-a")


def _put_journal(directory: Path) -> None:
    (directory / "scratch" / "journal.log").unlink(missing_ok=True)
    _search(directory)


def _read_gguf(directory: Path) -> object:
    cache = directory / "scratch" / "cache"
    try:
        return read_gguf_header(directory / "tiny.gguf"), read_config(gguf_checkpoint(directory / "tiny.gguf"))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _read_answers(directory: Path) -> object:
    return AnswerFile(directory / "scratch" / "answers.jsonl").answer("key")


def _put_answers(directory: Path) -> None:
    (directory / "scratch" / "answers.jsonl").unlink(missing_ok=True)
    AnswerFile(directory / "scratch" / "answers.jsonl").add("key", [5, 6, 1], {"model": "base", "row": 3})


def _read_rounds(directory: Path) -> object:
    return RoundFiles(directory / "rounds").load()


def _put_rounds(directory: Path) -> None:
    import torch

    shutil.rmtree(directory / "rounds", ignore_errors=True)
    forget, retain = ({"x": (torch.ones(2, 3), torch.ones(3, 2))} for _ in range(2))
    files = RoundFiles(directory / "rounds")
    files.write_audit(1, '{"prompt": "a"}\n')
    files.save(1, Round(forget, retain, {"state": torch.ones(2)}, {"round": 1}))


def _read_evaluation(directory: Path) -> object:
    write_csv(read_evaluation(directory / "evaluation.json"), directory / "scratch" / "table.csv")
    (directory / "scratch" / "table.csv").unlink()
    return "written"


def _write_report(directory: Path) -> object:
    evaluations, figures = [directory / "evaluation.json"], [directory / "figures.json"]
    return report([directory / "artifacts" / "graph"], evaluations=evaluations, figures=figures)


def _read_certificate(directory: Path) -> object:
    # Not the bill of materials, whose validation takes seconds: `commands` has it.
    return report([directory / "certified"])


def _put_steps(directory: Path) -> None:
    steps = directory / "scratch" / "steps.log"
    steps.unlink(missing_ok=True)
    for number in range(3):
        Journal(steps, "of a test").step(f"step {number}", lambda: {"right": "0101", "scores": None})


def _read_steps(directory: Path) -> object:
    return "step 1" in Journal(directory / "scratch" / "steps.log", "of a test")


def _tokenizers() -> dict[str, Target]:
    readers: Mapping[str, Callable[[Path], Any]] = {"": JsonTokenizer, " of transformers": load_tokenizer}
    files: Mapping[str, tuple[str, Sequence[Mutate]]] = {
        "tokenizer": ("tokenizer.json", JSON),
        "tokenizer settings": ("tokenizer_config.json", (*JSON, _template_in_settings)),
        "special tokens": ("special_tokens_map.json", JSON),
        "added tokens": ("added_tokens.json", JSON),
        "chat template": ("chat_template.jinja", (hostile_template, hostile_template, mutated_bytes)),
    }
    put = {"added tokens": _put_added}
    return {
        name + whose: Target(f"checkpoint/{file}", mutations, _read_tokenizer(load), 2, put.get(name))
        for name, (file, mutations) in files.items()
        for whose, load in readers.items()
    }


def _put_added(directory: Path) -> None:
    (directory / "checkpoint" / "added_tokens.json").write_text(json.dumps({"<|extra|>": 257}))


def _sources() -> dict[str, Target]:
    """What `bakeout import` reads."""
    files = {
        "adapter's configuration": ("adapter", "adapter/adapter_config.json", JSON),
        "adapter's factors": ("adapter", "adapter/adapter_model.safetensors", PLAN),
        "edited checkpoint": ("edited", "edited/model.safetensors", PLAN),
        "control vector": ("vector.gguf", "vector.gguf", (mutated_bytes,)),
        "control vector's rows": ("rows.safetensors", "rows.safetensors", PLAN),
        "direction": ("direction.safetensors", "direction.safetensors", PLAN),
    }

    def read(source: str) -> Read:
        return lambda directory: read_source(directory, source, _plan("weight_methods").model)

    return {name: Target(f"sources/{file}", kinds, read(source), 2) for name, (source, file, kinds) in files.items()}


LOADERS: Mapping[str, Target] = {
    "recipe": Target("recipe.yaml", YAML, lambda directory: load_recipe(directory / "recipe.yaml"), 6),
    "rows": Target("rows.jsonl", ROWS, _read_rows("rows.jsonl"), 5),
    "rows of other layouts": Target("layouts.jsonl", ROWS, _read_rows("layouts.jsonl"), 3),
    "prompts": Target("prompts.jsonl", ROWS, _read_rows("prompts.jsonl", read_prompt_rows), 3),
    "rows in an array": Target("rows.json", JSON, _read_rows("rows.json"), 3),
    "rows in CSV": Target("pairs.csv", (mutated_table, mutated_table, mutated_bytes), _read_rows("pairs.csv"), 2),
    "rows in TSV": Target("pairs.tsv", (mutated_bytes,), _read_rows("pairs.tsv")),
    "rows in Parquet": Target("pairs.parquet", (mutated_bytes,), _read_rows("pairs.parquet"), 2),
    **{
        f"plan {name}": Target(f"plans/{name}.safetensors", PLAN, _read_plan(name))
        for name in (*PLANS, NEWEST, *SHAPED)
    },
    **{
        f"manifest of {name}": Target(
            f"artifacts/{name}/bakeout.json", JSON, _read_artifact(name, is_drawn=name == "graph")
        )
        for name in ARTIFACTS
    },
    **{
        f"plan of {name}": Target(f"artifacts/{name}/plan.safetensors", PLAN, _read_artifact(name))
        for name in ARTIFACTS
    },
    "tensors of an artifact": Target(
        "artifacts/checkpoint/model.safetensors", PLAN, _read_artifact("checkpoint", ("files", "tensors"))
    ),
    **_tokenizers(),
    "configuration": Target("checkpoint/config.json", JSON, _read_configuration("checkpoint"), 3),
    "generation configuration": Target("checkpoint/generation_config.json", JSON, _read_configuration("checkpoint"), 3),
    "genai configuration": Target("genai/genai_config.json", JSON, _read_configuration("genai"), 2),
    "genai directory": Target("genai/genai_config.json", JSON, _read_layout("genai"), 2),
    "hub configuration": Target("hub/config.json", JSON, _read_layout("hub")),
    "hub graph": Target("hub/onnx/model.onnx", GRAPH, _read_layout("hub")),
    "weights": Target("checkpoint/model.safetensors", PLAN, _read_weights("checkpoint"), 2),
    "shards": Target("sharded/model-1.safetensors", PLAN, _read_weights("sharded")),
    "index of shards": Target("sharded/model.safetensors.index.json", JSON, _read_weights("sharded"), 2),
    "adapter": Target("adapted/adapter_config.json", JSON, _refused("adapted")),
    "GGUF without a model": Target("model.gguf", (mutated_bytes,), _refused("model.gguf")),
    "GGUF": Target("tiny.gguf", (mutated_bytes,), _read_gguf, 3),
    **_sources(),
    "answers": Target("scratch/answers.jsonl", ROWS, _read_answers, 2, _put_answers),
    "graph": Target("onnx/model.onnx", GRAPH, _read_graph("onnx/model.onnx", "mixed"), 6),
    "graph and a check": Target("onnx/model.onnx", GRAPH, _read_graph("onnx/model.onnx", "key_space_detection"), 4),
    "graph's weights": Target("onnx/model.onnx.data", (mutated_bytes,), _read_graph("onnx/model.onnx", "mixed")),
    "journal": Target("scratch/journal.log", ROWS, _search, 2, _put_journal),
    "round's figures": Target("rounds/round-1.json", JSON, _read_rounds, 1, _put_rounds),
    "round": Target("rounds/round-1.safetensors", PLAN, _read_rounds, 1, _put_rounds),
    "figures": Target("figures.json", JSON, _write_report, 1),
    "evaluation": Target("evaluation.json", JSON, _write_report, 1),
    "evaluation as a table": Target("evaluation.json", JSON, _read_evaluation),
    "certificate": Target("certified/certificate.json", JSON, _read_certificate, 2),
    "steps of a certificate": Target("scratch/steps.log", ROWS, _read_steps, 1, _put_steps),
    "signature": Target(
        "signed/model.sig",
        JSON,
        lambda directory: check_signature(directory / "signed", directory / "signing.pub"),
    ),
    "public key": Target(
        "signing.pub",
        (mutated_bytes,),
        lambda directory: check_signature(directory / "signed", directory / "signing.pub"),
    ),
    "task": Target("tasks/own.yaml", YAML, lambda directory: require_no_code(directory / "tasks"), 2),
}
