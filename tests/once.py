"""Directories that one of pytest's workers makes for all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The directory ``name`` of this run, which is empty when ``make`` gets it, in the first worker that asks."""
    session = factory.getbasetemp()
    root = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    directory, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            made.touch()
    return directory
