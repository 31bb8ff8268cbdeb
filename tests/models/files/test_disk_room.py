from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.models.errors import BakeoutError
from bakeout.models.files.disk_room import require_space


def test_more_than_the_disk_holds_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="needed"):
        require_space(tmp_path, 1 << 60)
    require_space(tmp_path, 1)
