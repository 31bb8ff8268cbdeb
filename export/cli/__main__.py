"""`python -m bakeout.export.cli`."""

from bakeout.__main__ import main

main()
