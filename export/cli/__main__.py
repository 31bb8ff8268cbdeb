"""`python -m bakeout.export.cli`."""

from bakeout.export.cli.main import main

main()
