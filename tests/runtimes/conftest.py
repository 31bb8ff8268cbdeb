"""What the runtimes' tests share, made once for all of pytest's workers."""

from __future__ import annotations

import os

import pytest

from tests.runtimes.locks import locked
from tests.runtimes.served import Served, make


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The artifact that all runtimes are given."""
    session = tmp_path_factory.getbasetemp()
    root = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "served"
    root.mkdir(exist_ok=True)
    with locked(root / ".lock"):
        if not (root / "said.json").exists():
            make(root)
    return Served(root)
