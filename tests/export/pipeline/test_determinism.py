"""Two builds in different directories, by processes with different hash seeds, are the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.recipe_files import write_recipe

PROGRAM = """
import sys
from pathlib import Path
from bakeout.export.pipeline.build import build
build(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def _build(directory: Path, checkpoint: Path, output: Path, hash_seed: str) -> dict[str, bytes]:
    directory.mkdir(parents=True)
    shutil.copytree(checkpoint, directory / "model")
    recipe = write_recipe(directory, "model")
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", PROGRAM, recipe, output], check=True, env=environment, cwd=directory)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_builds_do_not_depend_on_place_or_hash_seed(llama_checkpoint: Path, tmp_path: Path) -> None:
    one = _build(tmp_path / "one", llama_checkpoint, tmp_path / "first", "1")
    two = _build(tmp_path / "a" / "longer" / "two", llama_checkpoint, tmp_path / "b" / "second one", "2")
    assert one.keys() == two.keys()
    assert len(one) >= 12
    assert [name for name in one if one[name] != two[name]] == []
    assert [name for name, content in one.items() if os.fsencode(tmp_path) in content] == []
