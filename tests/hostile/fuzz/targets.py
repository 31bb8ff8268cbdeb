"""What is mutated, and what reads it then: every loader, in-process, and the commands that read alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.model_source import model_source
from bakeout.export.baking.model_card import model_card
from bakeout.export.cli.main import main
from bakeout.export.evaluation.evaluate import stored_base_rows
from bakeout.export.evaluation.task_files import require_no_code
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.evaluation_file import read_evaluation
from bakeout.export.report.figures_file import read_figures
from bakeout.export.report.page import report
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.models.checkpoint.checkpoint_files import read_config, resolve_checkpoint, weight_files
from bakeout.models.checkpoint.end_of_text import read_end_of_text
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.hostile.fuzz import mutations
from tests.hostile.fuzz.mutations import mutated_bytes, mutated_graph, mutated_json, mutated_lines, mutated_plan
from tests.report_files import EVALUATION, FIGURES

Mutate = Callable[[bytes, Random], bytes]

_FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"
_PARENT = os.getpid()
_MESSAGE = [{"role": "user", "content": "What is 3+4?"}]
_ROWS: Sequence[Mapping[str, Any]] = (
    {"prompt": "What is 3+4?", "response": " 7"},
    {"text": "Some text.\nAnd more: é, 漢."},
    {"messages": [*_MESSAGE, {"role": "assistant", "content": "7"}]},
    {"messages": _MESSAGE},
)
_RECIPE = """model: checkpoint
data:
  sums: rows.jsonl
  names: {probe: rows.jsonl, test: rows.jsonl}
interventions:
  - neuron_adjust: &options {forget: sums, retain: [names], ratio: 0.05, coin: threshold}
  - key_space_detection: {forget: sums, refusal: " I don't know.", alpha: 3.0}
  - neuron_adjust: {<<: *options, ratio: 0.1}
export:
  dtype: fp32
  early_exit: yes
"""
_TASK = """task: own
include: common.yml
dataset_path: json
doc_to_text: "{{question}}"
doc_to_target: !function code.text
metric_list: [{metric: exact_match}]
"""
_YAML_PARTS = (
    "!!python/object/apply:os.mkdir [ran]",
    "!!bool abc",
    "!!timestamp 2024-13-45",
    "2024-13-45",
    "!!int x",
    "!!float y",
    "!!binary '***'",
    "!!set {a}",
    "!!omap [a: 1]",
    "<<: *options",
    "<<: [1, 2]",
    "<<: 3",
    "&a [*a]",
    "*nowhere",
    "x" * 300,
    "[" * 50,
    "{a: " * 50,
    "? [a, b]\n: c",
    "\t",
    "%YAML 9.9\n---",
    "'",
    "0o99",
    ".inf",
    "1e999",
    "1" * 5000,
    "\x07",
    "\x85",
)
_TEMPLATES = (
    "{{ 1 / 0 }}",
    "{{ messages[99].role }}",
    "{{ messages.x.y }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ 'a' * 100000000000 }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 2 ** 10 ** 9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a' | indent(1000000000) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{{ range(99999) | list | length }}{% endfor %}",
    "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=['a']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s | replace('a', 'aa') %}{% endfor %}",
    "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{{ lipsum(n=1000000) }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception('first\nsecond') }}",
    "{{ raise_exception(messages) }}",
    "{{ none + 1 }}",
    "{{ strftime_now('%' * 9999) }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% if %}",
    "{{ undefined() }}",
    "{{ '\ud800' }}",
    "{{ range(10) | map('nosuch') | list }}",
    "{{ messages | sum }}",
    "{{ messages | sort }}",
    "{{ (" * 5000,
)


@dataclass(frozen=True)
class Target:
    """A file below the bench, how it is mutated, and what reads it."""

    file: str
    mutations: Sequence[Mutate]
    read: Callable[[Path], object]
    weight: int = 1


def run(case: tuple[str, int]) -> tuple[str, str]:
    """One case, (target, seed): ``read``, ``refused``, ``uncaught``, or ``ran code``, and why."""
    name, seed = case
    target, directory = TARGETS[name], _bench(os.getpid())
    path = directory / target.file
    content = path.read_bytes()
    random = Random(seed)
    path.write_bytes(random.choice(target.mutations)(content, random))
    try:
        target.read(directory)
        outcome = "read", ""
    except BakeoutError as error:
        outcome = "refused", str(error)
    except BaseException:  # noqa: BLE001 - that is what is looked for
        outcome = "uncaught", traceback.format_exc()
    finally:
        path.write_bytes(content)
    if list(directory.rglob("ran")) or Path("ran").exists():
        outcome = "ran code", "a marker was written"
    return outcome


def warm_up() -> None:
    """Read everything as it is: what is loaded then, forked workers have. Raises where good input is refused."""
    for target in TARGETS.values():
        target.read(_bench(os.getpid()))


def cases(count: int, seed: int) -> list[tuple[str, int]]:
    """As many cases, spread over the targets by their weights."""
    random = Random(seed)
    names, weights = list(TARGETS), [target.weight for target in TARGETS.values()]
    return [(name, random.randrange(2**32)) for name in random.choices(names, weights, k=count)]


@cache
def _bench(process: int) -> Path:
    """Good input of every kind, in a directory of this process."""
    directory = Path(tempfile.gettempdir()) / f"bakeout-fuzz-{_PARENT}" / str(process)
    for name in ("checkpoint", "onnx"):
        shutil.copytree(_FIXTURES / name, directory / name)
    shutil.copytree(_FIXTURES / "artifacts" / "graph", directory / "artifact")
    shutil.copytree(_FIXTURES / "artifacts" / "checkpoint", directory / "weights")
    for plan in ("mixed", "key_space_detection_chosen", "reveal_and_release", "lunar", "zero_columns"):
        shutil.copyfile(_FIXTURES / "plans" / f"{plan}.safetensors", directory / f"{plan}.safetensors")
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    (directory / "recipe.yaml").write_text(_RECIPE)
    (directory / "figures.json").write_text(json.dumps({"schema": 1, "figures": FIGURES}))
    (directory / "evaluation.json").write_text(json.dumps(EVALUATION))
    (directory / "tasks").mkdir()
    (directory / "tasks" / "own.yaml").write_text(_TASK.replace("!function code.text", "'{{answer}}'"))
    (directory / "tasks" / "common.yml").write_text("test_split: test\n")
    return directory


@cache
def _good_tokenizer(directory: Path) -> JsonTokenizer:
    return JsonTokenizer(directory / "checkpoint")


@cache
def _good_plan(directory: Path) -> Any:
    return load_plan(directory / "artifact" / "plan.safetensors")


def _mutated_yaml(content: bytes, random: Random) -> bytes:
    rows = content.decode().splitlines()
    index = random.randrange(len(rows))
    head, colon, _ = rows[index].partition(":")
    part = random.choice(_YAML_PARTS)
    rows[index] = random.choice((part, f"{head}{colon} {part}", f"{rows[index]} {part}", f"  {part}"))
    return "\n".join(rows).encode()


def _deep(content: bytes, random: Random) -> bytes:
    opened = random.choice((b"[", b'{"a":', b"- ", b"{a: "))
    return random.choice((b"", content, b"a: ", b'{"schema": 1, "x": ')) + opened * mutations.DEEP


def _hostile_template(content: bytes, random: Random) -> bytes:
    text = random.choice(_TEMPLATES).encode("utf-8", "surrogatepass")
    return random.choice((text, content + text, text + content))


def _read_tokenizer(load: Callable[[Path], Any], name: str = "checkpoint") -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        tokenizer = load(directory / name)
        read_records(directory / "rows.jsonl", tokenizer)
        return tokenizer.decode(tokenizer.encode("What is 3+4?"), skip_special_tokens=True)

    return read


def _read_plan(name: str) -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        inspection = inspect(directory / name)
        json.dumps(inspection.as_json())
        plan_bytes(inspection.plan)
        model_card(inspection.plan, ())
        return list(lines(inspection))

    return read


def _read_artifact(directory: Path) -> object:
    artifact = directory / "artifact"
    read_manifest(artifact)
    stored_base_rows(artifact, {"rows": directory / "rows.jsonl"})
    verify(artifact, checks=["hashes"])
    return list(lines(inspect(artifact))), report([artifact])


def _read_weights(directory: Path) -> object:
    return verify(directory / "weights", checks=["hashes", "tensors"])


def _read_configuration(directory: Path) -> object:
    read_config(directory / "checkpoint")
    weight_files(resolve_checkpoint(directory / "checkpoint"))
    model_source(directory / "checkpoint")
    return read_end_of_text(directory / "checkpoint")


def _read_graph(directory: Path) -> object:
    graph = load_graph(directory / "onnx" / "model.onnx")
    apply_plan(graph, _good_plan(directory))
    return graph_bytes(graph)


def _command(*arguments: str) -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        words = [str(directory / word[1:]) if word.startswith("@") else word for word in arguments]
        result = CliRunner().invoke(main, words)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        if result.exit_code != 0 and result.stderr.count("\n") != 1 and "error" in result.stderr:
            raise AssertionError(f"more than a line: {result.stderr!r}")
        shown = [character for character in result.output if not character.isprintable() and character != "\n"]
        if shown:
            raise AssertionError(f"{shown[0]!r} is printed")
        return result

    return read


_JSON: Sequence[Mutate] = (mutated_json, mutated_json, mutated_json, mutated_bytes, _deep)
_PLAN: Sequence[Mutate] = (mutated_plan, mutated_plan, mutated_plan, mutated_bytes)
_GRAPH: Sequence[Mutate] = (mutated_graph, mutated_graph, mutated_graph, mutated_bytes)

TARGETS: Mapping[str, Target] = {
    "recipe": Target(
        "recipe.yaml",
        (_mutated_yaml, _mutated_yaml, mutated_bytes, _deep),
        lambda directory: load_recipe(directory / "recipe.yaml"),
        3,
    ),
    "rows": Target(
        "rows.jsonl",
        (mutated_lines, mutated_lines, mutated_bytes, _deep),
        lambda directory: read_records(directory / "rows.jsonl", _good_tokenizer(directory)),
        3,
    ),
    **{
        f"plan {name}": Target(f"{name}.safetensors", _PLAN, _read_plan(f"{name}.safetensors"))
        for name in ("mixed", "key_space_detection_chosen", "reveal_and_release", "lunar", "zero_columns")
    },
    "manifest": Target("artifact/bakeout.json", _JSON, _read_artifact, 3),
    "weights manifest": Target("weights/bakeout.json", _JSON, _read_weights),
    "artifact's plan": Target("artifact/plan.safetensors", _PLAN, _read_artifact),
    "tokenizer": Target("checkpoint/tokenizer.json", _JSON, _read_tokenizer(JsonTokenizer), 2),
    "tokenizer of transformers": Target("checkpoint/tokenizer.json", _JSON, _read_tokenizer(load_tokenizer), 2),
    "tokenizer settings": Target("checkpoint/tokenizer_config.json", _JSON, _read_tokenizer(JsonTokenizer), 2),
    "tokenizer settings of transformers": Target(
        "checkpoint/tokenizer_config.json", _JSON, _read_tokenizer(load_tokenizer), 2
    ),
    "special tokens": Target("checkpoint/special_tokens_map.json", _JSON, _read_tokenizer(load_tokenizer)),
    "chat template": Target(
        "checkpoint/chat_template.jinja", (_hostile_template, mutated_bytes), _read_tokenizer(JsonTokenizer), 2
    ),
    "chat template of transformers": Target(
        "checkpoint/chat_template.jinja", (_hostile_template, mutated_bytes), _read_tokenizer(load_tokenizer), 2
    ),
    "configuration": Target("checkpoint/config.json", _JSON, _read_configuration, 2),
    "generation configuration": Target("checkpoint/generation_config.json", _JSON, _read_configuration, 2),
    "graph": Target("onnx/model.onnx", _GRAPH, _read_graph, 4),
    "figures": Target("figures.json", _JSON, lambda directory: read_figures(directory / "figures.json")),
    "evaluation": Target("evaluation.json", _JSON, lambda directory: read_evaluation(directory / "evaluation.json")),
    "task": Target(
        "tasks/own.yaml", (_mutated_yaml, mutated_bytes, _deep), lambda directory: require_no_code(directory / "tasks")
    ),
    "command inspect": Target("mixed.safetensors", _PLAN, _command("inspect", "@mixed.safetensors")),
    "command verify": Target(
        "artifact/bakeout.json", _JSON, _command("verify", "@artifact", "--checks", "hashes,graph")
    ),
    "command report": Target("artifact/bakeout.json", _JSON, _command("report", "@artifact", "-o", "@artifact")),
}
