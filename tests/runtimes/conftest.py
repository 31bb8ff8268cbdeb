"""What the runtimes' tests share, made once for all of pytest's workers."""

from __future__ import annotations

import pytest

from tests.once import made_once
from tests.runtimes.served import Served, make


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The artifact that all runtimes are given."""
    return Served(made_once(tmp_path_factory, "served", make))
