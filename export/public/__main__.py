"""``python -m bakeout``: the command line."""

from bakeout.export.cli.main import main

main()
