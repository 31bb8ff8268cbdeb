"""The command line. Everything heavy is imported by the command that needs it: `bakeout --help` answers at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from bakeout.export.cli.assumptions import assumptions
from bakeout.export.cli.attack import attack
from bakeout.export.cli.evaluate import evaluate
from bakeout.export.cli.report import report
from bakeout.export.cli.tune import tune
from bakeout.export.console import emit_json, error_line, progress, say
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.export.baking.bake import BakeOptions
    from bakeout.export.running.sampling import Sampling
    from bakeout.models.plan import Plan


class _Commands(click.Group):
    """Commands whose errors are one line (with ``--json``: one object) that says cause and remedy."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        machine = "--json" in arguments
        if threading.current_thread() is threading.main_thread():
            # What stops a CI job: end as on an error, so that nothing half-written stays.
            signal.signal(signal.SIGTERM, _terminated)
        options["standalone_mode"] = False
        try:
            sys.exit(super().main(arguments, *rest, **options) or 0)
        except BakeoutError as error:
            error_line(error.cause, error.remedy, machine=machine)
            sys.exit(1)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "bakeout"
            error_line(error.format_message(), f"See `{where} --help`.", machine=machine)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            say("interrupted")
            sys.exit(130)


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


_PATH = click.Path(path_type=Path)
_json = click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
_base = click.option("--base", type=_PATH, help="The base model: its checkpoint's directory.")


# \b keeps the lines below it as they are.
_ABOUT = """Bake LLM unlearning into the model file.

\b
bakeout demo                       see it work on the bundled model
bakeout build recipe.yaml -o DIR   the whole way, for your own model
"""


@click.group(
    cls=_Commands,
    help=_ABOUT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="bakeout", message="%(prog)s %(version)s")
def main() -> None:
    """Every command."""


@main.command()
@click.argument("recipe", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The artifact's directory; it must not exist.")
@_json
def build(recipe: Path, output: Path, machine: bool) -> None:
    """Probe, fit, export, bake and verify: the whole way."""
    from bakeout.export.pipeline.build import build

    with progress() as track:
        built = build(recipe, output, track=track)
    _report_artifact(built.directory, [receipt.as_json() for receipt in built.receipts], machine)


@main.command()
@click.argument("recipe", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The plan's file; it must not exist.")
@_json
def fit(recipe: Path, output: Path, machine: bool) -> None:
    """Probe a model and fit a recipe's interventions to a plan."""
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe
    from bakeout.models.plan.plan_file import save_plan

    _require_new_file(output)
    with progress() as track:
        plan = fit(load_recipe(recipe), track)
    save_plan(plan, output)
    if machine:
        emit_json({"plan": str(output)})
    else:
        click.echo(f"{output}: {output.stat().st_size:,} bytes. Next: bakeout bake MODEL {output} -o DIR")


@main.command()
@click.argument("model")
@click.argument("plan", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The artifact's directory; it must not exist.")
@click.option(
    "--to",
    type=click.Choice(["onnx", "safetensors"]),
    default="onnx",
    show_default=True,
    help="An ONNX graph or, of weight edits alone, a checkpoint.",
)
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of an export.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Quantise a float32 graph's weights dynamically.")
@click.option("--inline", is_flag=True, help="Neuron Adjust as standard operators, without a local function.")
@click.option("--early-exit/--no-early-exit", default=True, help="Skip what a refusal does not need, in an `If`.")
@click.option("--monitor", is_flag=True, help="Two more outputs: `refused` and `margin`.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="A runtime that the artifact must serve, repeatable: onnxruntime, optimum, genai, node, web, transformers.js, "
    "openvino, reference.",
)
@click.option("--canary/--no-canary", default=True, help="Run the plan's canary through the baked graph.")
@click.option("--dry-run", is_flag=True, help="Only say what would change, and the disk and memory it takes.")
@_json
def bake(
    model: str,
    plan: Path,
    output: Path | None,
    to: Literal["onnx", "safetensors"],
    dtype: Literal["fp32", "fp16"],
    quantize: Literal["int8"] | None,
    inline: bool,
    early_exit: bool,
    monitor: bool,
    runtimes: tuple[str, ...],
    canary: bool,
    dry_run: bool,
    machine: bool,
) -> None:
    """Apply a plan to a checkpoint or an ONNX model.

    MODEL: a checkpoint's directory or hub id, or an ONNX directory or file made by anybody.
    """
    from bakeout.export.baking.bake import BakeOptions, bake
    from bakeout.export.baking.runtimes import runtime_names
    from bakeout.models.plan.plan_file import load_plan

    options = BakeOptions(to, dtype, inline, early_exit, monitor, canary, runtime_names(runtimes), quantize)
    if dry_run:
        _dry_run(model, load_plan(plan), options, machine)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    with progress() as track:
        baked = bake(model, load_plan(plan), output, options, track=track)
    _report_artifact(baked.directory, [receipt.as_json() for receipt in baked.receipts], machine)


@main.command()
@click.argument("directory", type=_PATH)
@click.option("--digest", help="SHA-256 of bakeout.json, from a source that you trust more than the directory.")
@_base
@click.option("--data", type=_PATH, multiple=True, help="JSONL: compare with the reference on these prompts too.")
@_json
def verify(directory: Path, digest: str | None, base: Path | None, data: tuple[Path, ...], machine: bool) -> None:
    """Check an artifact: files, graph, canary, parity.

    Parity is with the PyTorch reference, and needs the base model's checkpoint. A check that cannot run is not ok.
    """
    from bakeout.export.verification.verify import verify

    prompts = [prompt for path in data for prompt in _prompts(directory, path)]
    with progress() as track:
        checks = verify(directory, digest=digest, base=base, prompts=prompts, track=track)
    ok = all(check.ok for check in checks)
    if machine:
        emit_json({"ok": ok, "checks": [check.as_json() for check in checks]})
    else:
        for check in checks:
            click.echo(f"{'ok' if check.ok else 'NOT OK':<7} {check.name:<7} {check.detail}")
    sys.exit(0 if ok else 1)


@main.command()
@click.argument("path", type=_PATH)
@_json
def inspect(path: Path, machine: bool) -> None:
    """Show what a plan or an artifact holds."""
    from bakeout.export.artifacts.inspection import inspect, lines

    found = inspect(path)
    if machine:
        emit_json(found)
    else:
        click.echo("\n".join(lines(found)))


@main.command()
@click.argument("directory", type=_PATH)
@click.option("--prompt", help="Answer this one prompt and stop.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=float, help="Sample; without it, the likeliest token is said (greedy).")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Sample among the likeliest tokens alone.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--single-turn", is_flag=True, help="Each prompt stands alone, without those before it.")
@_json
def chat(
    directory: Path,
    prompt: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
    seed: int,
    single_turn: bool,
    machine: bool,
) -> None:
    """Talk to an artifact through ONNX Runtime.

    DIRECTORY: an artifact, or any ONNX directory or file. Prompts go through the tokenizer's chat template, if any.
    """
    if machine and prompt is None:
        raise BakeoutError("A conversation is not one JSON object.", "Give --prompt with --json.")
    sampling = _sampling(temperature, top_p, seed)
    from bakeout.export.running.chat import Chat
    from bakeout.export.running.runner import Runner

    runner = Runner(directory)
    conversation = Chat(runner, max_new_tokens, sampling, single_turn)
    if machine:
        answer = "".join(conversation.answer(prompt or "")).strip()
        emit_json({"provider": runner.provider, "prompt": prompt, "answer": answer})
        return
    say(f"{directory} on {runner.provider}")
    if prompt is not None:
        _print_answer(conversation.answer(prompt))
        return
    say("An empty line ends the conversation" + (", /new begins another." if conversation.remembers else "."))
    while question := _ask():
        if question == "/new":
            conversation.forget()
        else:
            _print_answer(conversation.answer(question))


@main.command()
@click.option("-o", "--output", type=_PATH, default=Path("bakeout-demo"), show_default=True, help="Where it all goes.")
@click.option("--model", type=_PATH, help="Another checkpoint of the skills model than the bundled one.")
@_json
def demo(output: Path, model: Path | None, machine: bool) -> None:
    """Make the bundled model forget arithmetic, two ways.

    Builds two artifacts (Neuron Adjust, Key Space Detection) and shows what became of every skill.
    """
    from bakeout.export.pipeline.demo import print_demo, run_demo

    with progress() as track:
        result = run_demo(output, model, track=track)
    if machine:
        emit_json({"rows": [row.as_json() for row in result.rows]})
    else:
        print_demo(result)


main.add_command(assumptions)
main.add_command(attack)
main.add_command(evaluate)
main.add_command(report)
main.add_command(tune)


def _dry_run(model: str, plan: Plan, options: BakeOptions, machine: bool) -> None:
    from bakeout.export.baking.dry_run import dry_run, lines

    found = dry_run(model, plan, options)
    if machine:
        emit_json(found.as_json())
    else:
        click.echo("\n".join(lines(found)))


def _report_artifact(directory: Path, receipts: list[dict[str, Any]], machine: bool) -> None:
    from bakeout.export.artifacts.artifact import GRAPH, MANIFEST
    from bakeout.models.files.hashing import hash_file

    digest = hash_file(directory / MANIFEST)
    if machine:
        emit_json({"directory": str(directory), "receipts": receipts, "digest": digest})
        return
    click.echo(f"{directory}: edits with a receipt: {len(receipts)}; {MANIFEST} has sha256 {digest}")
    if (directory / GRAPH).is_file():
        click.echo(f"Next: bakeout chat {directory}, or bakeout inspect {directory}")
    else:
        click.echo(f"Next: bakeout verify {directory} --base MODEL, or bakeout inspect {directory}")


def _prompts(directory: Path, path: Path) -> list[list[int]]:
    from bakeout.models.checkpoint.checkpoint_files import load_tokenizer
    from bakeout.models.data.rows import read_records

    return [record.prompt_ids for record in read_records(path, load_tokenizer(directory)) if record.prompt_ids]


def _sampling(temperature: float | None, top_p: float, seed: int) -> Sampling | None:
    if temperature is None:
        if top_p != 1.0:
            raise BakeoutError("top_p is for sampling, and greedy decoding was asked for.", "Give --temperature too.")
        return None
    from bakeout.export.running.sampling import Sampling

    return Sampling(temperature, top_p, seed)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _print_answer(pieces: Iterable[str]) -> None:
    begun = False
    for piece in pieces:
        # Many tokenizers begin an answer with a space.
        click.echo(piece if begun else piece.lstrip(), nl=False)
        begun = begun or bool(piece.strip())
    click.echo()


def _require_new_file(path: Path) -> None:
    if path.exists():
        raise BakeoutError(f"{path} exists already.", "Name another file, or remove this one.")
    if not path.parent.is_dir():
        raise BakeoutError(f"There is no directory {path.parent}.", "Make it, or name another.")


if __name__ == "__main__":
    main()
