"""The command line: one module a command. Nothing outside this package prints."""

from bakeout.export.cli.main import main

__all__ = ["main"]
