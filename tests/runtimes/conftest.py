"""What the runtimes' tests share, made once for all of pytest's workers."""

from __future__ import annotations

import pytest

from tests.runtimes.locks import locked
from tests.runtimes.served import Served, make


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Served:
    """The artifact that all runtimes are given."""
    session = tmp_path_factory.getbasetemp()
    root = (session if worker_id == "master" else session.parent) / "served"
    root.mkdir(exist_ok=True)
    with locked(root / ".lock"):
        if not (root / "said.json").exists():
            make(root)
    return Served(root)
