import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import bakeout
from bakeout.export.artifacts.inspection import Inspection
from bakeout.export.baking.bake import bake
from bakeout.export.cli.evaluate import print_evaluation
from bakeout.export.cli.flags import with_flags
from bakeout.export.cli.main import COMMANDS, MODULES, main
from bakeout.export.evaluation.rows import Evaluation, Row
from bakeout.export.pipeline.build import build
from bakeout.export.tuning.tune import tune
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests import plan_examples
from tests.recipe_files import rows, write_recipe, write_rows


def _run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("cli") / "artifact").directory


@pytest.fixture(scope="module")
def plan_file(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli-plan") / "plan.safetensors"
    save_plan(tiny_plan, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("cli-data") / "sums.jsonl", [{"prompt": "1 + 1 =", "response": " 2"}])


def test_help_comes_at_once_and_names_every_command() -> None:
    bare = [sys.executable, "-c", "import click"]
    helped = [sys.executable, "-m", "bakeout.export.cli", "--help"]

    def seconds(command: list[str]) -> float:
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begun

    # Half a second on an idle machine; on a busy one, not far from what starting Python costs there.
    fastest = min(seconds(helped) for _ in range(3))
    assert fastest < max(0.5, 4 * min(seconds(bare) for _ in range(3)))
    text = _run("--help").output
    for command in ("build", "fit", "bake", "verify", "evaluate", "inspect", "chat", "demo"):
        assert f"\n  {command} " in text
        assert _run(command, "--help").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "numpy", "rich", "pydantic", "jinja2"}
    program = (
        "import sys; from bakeout.export.cli.main import main\n"
        "try: main(['--help'])\n"
        f"finally: print(*({heavy} & sys.modules.keys()), file=sys.stderr)"
    )
    helped = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "Commands:" in helped.stdout
    assert helped.stderr.split() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "nowhere.yaml", "-o", "out"),
        ("fit", "nowhere.yaml", "-o", "plan"),
        ("bake", "no/such/model", "nowhere.safetensors", "-o", "out"),
        ("verify", "nowhere"),
        ("evaluate", "nowhere", "--data", "nowhere.jsonl"),
        ("inspect", "nowhere"),
        ("chat", "nowhere", "--prompt", "hello"),
        ("demo", "-o", __file__),
        ("chat", "nowhere", "--prompt", "hello", "--temperature", "-1"),
        ("chat", "nowhere", "--top-p", "0.5"),
        ("chat", "nowhere", "--seed", "3"),
        ("evaluate", "nowhere", "--text", "x.jsonl", "--max-new-tokens", "3"),
        ("evaluate", "nowhere", "--text", "x.jsonl", "--grade", "number"),
        ("evaluate", "nowhere", "--data", "x.jsonl", "--top-p", "0.5"),
        ("build",),
        ("bake", "a", "b", "-o", "c", "--dtype", "int2"),
        ("brew",),
    ],
    ids=" ".join,
)
def test_errors_are_one_line_or_one_object(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = _run(*arguments)
    assert plain.exit_code >= 1
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    machine = _run(*arguments, "--json")
    assert machine.exit_code == plain.exit_code
    assert machine.stdout == ""
    error = json.loads(machine.stderr)
    assert error.keys() == {"error", "remedy"}
    assert all(error.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit", "build"])
def test_a_name_that_is_too_long_for_the_system_is_one_line(command: str, tmp_path: Path) -> None:
    failed = _run(command, write_recipe(tmp_path, "x" * 5000), "-o", tmp_path / "out")
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "File name too long. Check the path" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("bakeout.export.artifacts.inspection.inspect", broken)
    assert isinstance(_run("inspect", "x").exception, KeyError)


def test_fit_then_bake_then_verify(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint)
    fitted = _run("fit", recipe, "-o", tmp_path / "plan", "--json")
    assert json.loads(fitted.stdout) == {"schema": 1, "plan": str(tmp_path / "plan")}
    again = _run("fit", recipe, "-o", tmp_path / "plan")
    assert again.exit_code == 1
    assert "exists" in again.stderr
    options = ("--inline", "--no-early-exit", "--monitor", "--dtype", "fp16")
    baked = _run("bake", llama_checkpoint, tmp_path / "plan", "-o", tmp_path / "out", *options, "--json")
    said = json.loads(baked.stdout)
    assert said["schema"] == 1
    assert said["directory"] == str(tmp_path / "out")
    assert {receipt["kind"] for receipt in said["receipts"]} == {"neuron_adjust", "key_space_detection"}
    verified = _run("verify", tmp_path / "out", "--digest", said["digest"], "--base", llama_checkpoint, "--json")
    assert verified.exit_code == 0, verified.output
    checks = json.loads(verified.stdout)
    assert checks["ok"] is True
    assert all(check.keys() == {"name", "ok", "detail"} for check in checks["checks"])


def test_verify_fails_with_exit_code_1(artifact: Path) -> None:
    skipped = _run("verify", artifact)
    assert skipped.exit_code == 1
    assert "NOT OK" in skipped.stdout
    machine = _run("verify", artifact, "--json")
    assert machine.exit_code == 1
    assert json.loads(machine.stdout)["ok"] is False


def test_evaluate_puts_artifact_and_base_side_by_side(artifact: Path, llama_export: Path, data: Path) -> None:
    machine = _run("evaluate", artifact, "--base", llama_export, "--data", data, "--json")
    said = json.loads(machine.stdout)
    assert said["schema"] == 1
    assert [row["model"] for row in said["rows"]] == ["base", "artifact"]
    assert all(row.keys() >= {"model", "data", "prompts", "accuracy", "refusals"} for row in said["rows"])
    assert [row["paired"] for row in said["rows"] if "change" in row] == [True]
    plain = _run("evaluate", artifact, "--base", llama_export, "--data", data).stdout
    assert "sums" in plain
    assert "base" in plain


def test_rows_with_keys_of_their_own_are_measured_and_attacked(artifact: Path, data: Path, tmp_path: Path) -> None:
    (row,) = (json.loads(line) for line in data.read_text(encoding="utf-8").splitlines())
    own = {"asked": row["prompt"], "said": row["response"]}
    file = write_rows(tmp_path / "sums.jsonl", [own])
    given = ("--columns", "{prompt: asked, response: said}")
    for command in (("evaluate", artifact), ("attack", artifact, "--attack", "none")):
        without = _run(*command, "--data", file)
        assert without.exit_code == 1
        assert "line 1: the row has neither prompt" in without.stderr
        assert "`--columns` name other keys" in without.stderr
        named = _run(*command, "--data", file, *given, "--json")
        assert named.exit_code == 0, named.output
        plain = _run(*command, "--data", data, "--json")
        assert json.loads(named.stdout)["rows"] == json.loads(plain.stdout)["rows"]
        absent = _run(*command, "--data", file, "--columns", "sums={prompt: task}")
        assert absent.exit_code == 1
        assert "line 1: the row has no 'task'. Correct `--columns`: the row has asked" in absent.stderr


def test_columns_are_for_all_data_or_for_those_that_they_name(artifact: Path, data: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"q": "1 + 1 =", "a": " 2"}])
    text = write_rows(tmp_path / "prose.jsonl", [{"body": "Some prose."}])
    files = ("--data", data, "--data", other, "--text", text)
    named = _run(
        "evaluate", artifact, *files, "--columns", "other={prompt: q, response: a}", "--columns", "prose={text: body}"
    )
    assert named.exit_code == 0, named.output
    mixed = _run(
        "attack",
        artifact,
        "--data",
        data,
        "--retain",
        other,
        "--attack",
        "batch_mixing",
        "--columns",
        "other={prompt: q}",
    )
    assert mixed.exit_code == 0, mixed.output
    for columns, says in (
        ("nobody={prompt: q}", "names nobody, and the data are sums, other, prose"),
        ("prompt", "are not written as in '{prompt: question}'"),
        ("{question: q}", "No column is called 'question'. Choose among prompt, context, response"),
        ("{prompt: 7}", "`--columns`: prompt is not the key of a row"),
        ("{prompt: q", "is not YAML"),
    ):
        refused = _run("evaluate", artifact, *files, "--columns", columns)
        assert refused.exit_code != 0
        assert says in refused.stderr, refused.stderr


def test_evaluate_says_of_how_many_rows_each_figure_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr("bakeout.export.cli.evaluate.emit_table", lambda columns, table: shown.extend(table))
    for counts, prompts in (((200, 30), "base: 200, ours: 30"), ((30, 30), "30")):
        evaluated = [Row(name, "sums", asked, 0.5, 0.0) for name, asked in zip(("base", "ours"), counts, strict=True)]
        print_evaluation(Evaluation(tuple(evaluated), ()))
        assert shown.pop()[:2] == ["sums", prompts]


def test_an_artifact_is_no_base_model(artifact: Path, data: Path) -> None:
    refused = _run("evaluate", artifact, "--base", artifact, "--data", data)
    assert refused.exit_code == 1
    assert "is an artifact" in refused.stderr


def test_nothing_is_written_into_an_artifact(artifact: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(artifact.rglob("*"))
    for arguments in (("bom", artifact, "-o", artifact / "bom.json"), ("report", artifact, "-o", artifact / "a" / "b")):
        refused = _run(*arguments)
        assert refused.exit_code == 1
        assert "lies in the artifact" in refused.stderr
    monkeypatch.chdir(artifact)
    assert "lies in the artifact" in _run("evaluate", ".", "--data", data, "--csv", "figures.csv").stderr
    assert sorted(artifact.rglob("*")) == before
    # Beside it is not in it, whatever the path says; and what is read may lie there.
    assert "lies in the artifact" not in _run("report", ".", "-o", "../beside/page.html", "--figures", "f.json").stderr


def test_nothing_is_written_into_an_artifact_from_python(
    artifact: Path, plan_file: Path, llama_export: Path, data: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    before = sorted(artifact.rglob("*"))
    plan, output = bakeout.load_plan(plan_file), artifact / "new"
    recipe = write_recipe(tmp_path, llama_checkpoint)
    options = {"answers": output}
    revealing = {"instructions": ["1"], "patterns": ["1"], "retain": ["names"], "directory": str(artifact)}
    writes: list[Callable[[], object]] = [
        lambda: plan.save(output),
        lambda: bakeout.bake(llama_export, plan, output),
        lambda: bakeout.export_adapter(plan, output),
        lambda: bakeout.export_adapter(plan, output, artifact=artifact),
        lambda: bakeout.export_adapter(plan, output, policy=True),
        lambda: bakeout.evaluate(artifact, [data], options=options),
        lambda: build(recipe, output),
        lambda: tune(recipe, output),
        lambda: tune(recipe, tmp_path / "tuned.yaml", directory=artifact),
        lambda: bakeout.fit(
            write_recipe(tmp_path / "revealing", llama_checkpoint, [{"reveal_and_release": revealing}])
        ),
        lambda: bakeout.certify(artifact, llama_checkpoint, [data], {"kept": rows("names", "test")}, journal=output),
    ]
    for write in writes:
        with pytest.raises(bakeout.BakeoutError, match="lies in the artifact"):
            write()
    assert "lies in the artifact" in _run("export-adapter", plan_file, "--to", "peft", "-o", output).stderr
    assert sorted(artifact.rglob("*")) == before


def test_of_an_artifact_given_for_a_plan_the_plan_in_it_is_named(artifact: Path, tmp_path: Path) -> None:
    for command in (("bake", tmp_path, artifact), ("export-adapter", artifact, "--to", "peft")):
        refused = _run(*command, "-o", tmp_path / "new")
        assert refused.exit_code == 1
        assert f"{artifact}: a directory, not a plan." in refused.stderr
        assert f"Name the plan in it: {artifact / 'plan.safetensors'}" in refused.stderr


def test_inspect_prints_one_object_or_lines(plan_file: Path) -> None:
    assert json.loads(_run("inspect", plan_file, "--json").stdout)["schema"] == 1
    assert "Key Space Detection" in _run("inspect", plan_file).stdout


def test_chat_answers_one_prompt_or_many(artifact: Path) -> None:
    machine = json.loads(_run("chat", artifact, "--prompt", "1 + 1 =", "--max-new-tokens", "4", "--json").stdout)
    assert machine.keys() == {"schema", "provider", "prompt", "answer"}
    once = _run("chat", artifact, "--prompt", "1 + 1 =", "--max-new-tokens", "4")
    assert once.stdout.strip() == machine["answer"]
    assert machine["provider"] in once.stderr
    several = _run("chat", artifact, "--max-new-tokens", "4", input="one\n/new\ntwo\n\nnever read\n")
    assert several.exit_code == 0
    assert several.stdout.count(">") >= 4
    refused = _run("chat", artifact, "--json")
    assert refused.exit_code == 1


def test_every_command_is_a_module_of_its_own_name() -> None:
    modules = {path.stem for path in Path(str(files("bakeout.export.cli"))).glob("*.py")}
    assert {MODULES.get(command, command) for command in COMMANDS} <= modules
    # Others than Python can call so have none.
    assert all(not command.isidentifier() or iskeyword(command) for command in MODULES)
    assert list(COMMANDS) == sorted(COMMANDS)


def test_what_the_library_logs_is_a_line_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def logging_inspect(path: Path) -> Inspection:
        logging.getLogger("bakeout.export.artifacts.inspection").info("reading %s", path)
        logging.getLogger("bakeout.export.artifacts.inspection").debug("not for people")
        return Inspection(plan_examples.plan(), ())

    monkeypatch.setattr("bakeout.export.artifacts.inspection.inspect", logging_inspect)
    result = _run("inspect", "x", "--json")
    assert result.stderr == "reading x\n"
    assert json.loads(result.stdout)["schema"] == 1


def test_errors_name_the_flags_of_the_running_command() -> None:
    error = _run("chat", "nowhere", "--top-p", "0.5")
    assert error.stderr == "error: `--top-p` is for sampling, and decoding is greedy. Give `--temperature` too.\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Give `base`.", "Give `--base`."),
        ("Bake with `to: onnx`.", "Bake with `--to onnx`."),
        ("Bake with `inline: true`.", "Bake with `--inline`."),
        ("Bake with `canary: false`.", "Bake with `--no-canary`."),
        ("Name another `output`.", "Name another `--output`."),
        ("Set `ratio: 0.1`, or `model`, or base.", "Set `ratio: 0.1`, or `model`, or base."),
    ],
)
def test_options_are_shown_as_flags(text: str, shown: str) -> None:
    @click.command()
    @click.argument("model")
    @click.option("--base")
    @click.option("-o", "--output")
    @click.option("--to")
    @click.option("--inline", is_flag=True)
    @click.option("--canary/--no-canary")
    def command() -> None:
        """Nothing."""

    assert with_flags(text, command.params) == shown


def test_progress_is_plain_lines_where_there_is_no_terminal(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What another test probed is not probed again.
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "cache"))
    fitted = _run("fit", write_recipe(tmp_path, llama_checkpoint), "-o", tmp_path / "plan")
    assert "\x1b" not in fitted.stderr
    assert "probing" in fitted.stderr
    assert str(Path(tmp_path / "plan")) in fitted.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without telling them")
def test_a_command_that_is_stopped_leaves_nothing_behind(
    llama_checkpoint: Path, plan_file: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "bakeout.export.cli",
        "bake",
        llama_checkpoint,
        plan_file,
        "-o",
        tmp_path / "out",
    ]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
    assert process.returncode == 143
    assert not any(tmp_path.iterdir())
