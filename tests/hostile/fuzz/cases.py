"""Cases: a target, a seed, and what became of it."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from random import Random

from bakeout.models.errors import BakeoutError

from tests.hostile.fuzz.bench import bench
from tests.hostile.fuzz.commands import COMMANDS
from tests.hostile.fuzz.targets import LOADERS, Target

TARGETS: Mapping[str, Target] = {**LOADERS, **COMMANDS}
# Loaders read. Commands fit and bake models, which takes seconds where nothing hangs.
_SECONDS, _OF_COMMANDS = 5.0, 90.0
# How often a whole other good file stands in a file's place.
_EXCHANGED = 0.03

# A target and a seed; with none, the good input.
Case = tuple[str, int | None]


def cases(loaders: int, commands: int, seed: int) -> list[Case]:
    """As many cases of both kinds, spread over the targets by their weights, in a drawn order."""
    random = Random(seed)
    chosen: list[Case] = [
        (name, random.randrange(2**32))
        for targets, count in ((COMMANDS, commands), (LOADERS, loaders))
        for name in random.choices(list(targets), [target.weight for target in targets.values()], k=count)
    ]
    random.shuffle(chosen)
    return chosen


def seconds(case: Case) -> float:
    """After how long a case hangs."""
    return _SECONDS if case[0] in LOADERS else _OF_COMMANDS


def run(case: Case) -> tuple[str, str]:
    """One case: ``read``, ``refused``, ``uncaught``, or ``ran code``, and why."""
    name, seed = case
    target, directory = TARGETS[name], bench(os.getpid())
    os.chdir(directory)
    # What is put together outside of the output lies here too.
    tempfile.tempdir = str(directory / "scratch")
    # Set anew for each process: workers inherit what their parent had.
    os.environ["BAKEOUT_CACHE"] = str(directory / "scratch" / "cache")
    if target.put:
        target.put(directory)
    path = directory / target.file
    content = path.read_bytes()
    if seed is not None:
        path.write_bytes(_mutated(target, content, Random(seed), directory))
    try:
        told = target.read(directory)
        outcome = "read", told if isinstance(told, str) else ""
    except BakeoutError as error:
        outcome = "refused", str(error)
        if any(character in outcome[1] for character in "\r\n"):
            outcome = "uncaught", f"an error of several lines: {outcome[1]!r}"
    except BaseException:  # noqa: BLE001 - that is what is looked for
        outcome = "uncaught", traceback.format_exc()
    finally:
        path.write_bytes(content)
    if list(directory.rglob("ran")):
        outcome = "ran code", "a marker was written"
    return outcome


def warm_up() -> None:
    """Read everything as it is: what is loaded then, forked workers have. Raises where good input is refused."""
    for name in LOADERS:
        kind, detail = run((name, None))
        if kind != "read":
            raise AssertionError(f"{name}: good input is {kind}: {detail}")
    # Imported, and not run: threads do not survive a fork.
    for name in ("exporting.onnx_export", "running.runner", "fitting.fit", "pipeline.build"):
        import_module(f"bakeout.export.{name}")


def _mutated(target: Target, content: bytes, random: Random, directory: Path) -> bytes:
    if random.random() < _EXCHANGED:
        other = random.choice([loader.file for loader in LOADERS.values() if (directory / loader.file).is_file()])
        return (directory / other).read_bytes()
    return random.choice(target.mutations)(content, random)
