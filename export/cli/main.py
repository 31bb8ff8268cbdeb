"""The group of all commands: it loads a command's module when it is needed, and reports every error in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from bakeout.export.cli.console import error_line, output_errors, say, set_up_streams, show_messages
from bakeout.export.cli.flags import with_flags
from bakeout.export.cli.signals import ended_by_signals
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import missing_extra
from bakeout.models.files.writing import disk_errors
from bakeout.models.launched import launched_processes

# Each is the name of a module in this package, and of the command in that module, unless ``MODULES`` names another.
COMMANDS = (
    "assumptions",
    "attack",
    "bake",
    "bom",
    "build",
    "certify",
    "chat",
    "combine",
    "demo",
    "evaluate",
    "export-adapter",
    "fit",
    "import",
    "inspect",
    "recipe",
    "record",
    "report",
    "sign",
    "tune",
    "verify",
)
# Python's own words, and names with hyphens.
MODULES = {"export-adapter": "export_adapter", "import": "import_plan"}


class _Commands(click.Group):
    """Commands whose errors are one line (with ``--json``: one object) that gives the cause and the remedy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = MODULES.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(f"bakeout.export.cli.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        _require_one_process(name)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise (missing_extra(error, f"`bakeout {ctx.invoked_subcommand}`") or error) from error
        except OSError as error:
            # Those without a file are of the standard streams.
            if error.filename is None:
                raise
            with disk_errors(Path(str(error.filename))):
                raise
        except BakeoutError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            options = command.params if command else []
            raise BakeoutError(with_flags(error.cause, options), with_flags(error.remedy, options)) from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        machine = "--json" in arguments
        set_up_streams()
        show_messages()
        options["standalone_mode"] = False
        try:
            with ended_by_signals(), output_errors():
                _require_directory()
                status = super().main(arguments, *rest, **options)
            sys.exit(status or 0)
        except BakeoutError as error:
            error_line(error.cause, error.remedy, machine=machine)
            sys.exit(1)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "bakeout"
            error_line(error.format_message(), f"See `{where} --help`.", machine=machine)
            sys.exit(error.exit_code)
        except click.Abort:
            say("interrupted")
            sys.exit(130)


def _require_one_process(name: str | None) -> None:
    """All commands but ``fit`` would do the same work in each process, and write the same files."""
    if name != "fit" and launched_processes() > 1:
        raise BakeoutError(
            f"`bakeout {name}` was started in several processes, which share the work of `bakeout fit` alone.",
            f"Start `bakeout {name}` by itself, with a plan where it takes one.",
        )


def _require_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise BakeoutError(
            f"The current directory is not there any more ({error.strerror}).", "Change to another directory."
        ) from None


# \b keeps the lines below it as they are.
_ABOUT = """Bake LLM unlearning into the model file.

\b
bakeout demo                       see it work on the bundled model
bakeout build recipe.yaml -o DIR   all steps, for your own model
"""


@click.group(
    cls=_Commands,
    help=_ABOUT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="bakeout", message="%(prog)s %(version)s")
def main() -> None:
    """Every command."""
