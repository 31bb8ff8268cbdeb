"""The JavaScript examples with their packages, installed beside the Python ones from the npm registry, once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

_REPOSITORY = Path(__file__).parents[2]
_INSTALLED = _REPOSITORY / ".venv" / "javascript"


def installed(example: str) -> Path:
    """A copy of ``examples/<example>`` with its packages. Skips where there is no Node.js, no npm, or no registry."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        pytest.skip(f"there is no {missing[0]} here")
    source, target = _REPOSITORY / "examples" / example, _INSTALLED / example
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(_INSTALLED / f"{example}.lock"):
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, target / path.name)
        wanted = (source / "package-lock.json").read_bytes()
        stamp = _INSTALLED / f"{example}.installed"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            # No script of a package is run: onnxruntime-node's would download CUDA libraries.
            command = [
                "npm",
                "ci",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
                "--fetch-retries=1",
            ]
            done = subprocess.run(command, cwd=target, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm ci failed: {' '.join(done.stderr.split())[:300]}")
            stamp.write_bytes(wanted)
    return target
