"""The command line: a module for each command."""

from bakeout.export.cli.main import main

__all__ = ["main"]
