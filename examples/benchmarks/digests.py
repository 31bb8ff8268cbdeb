"""What Bakeout writes, as digests: to prove that a change of the code changes no byte of any plan, graph or checkpoint.

    python examples/benchmarks/digests.py --out before.json
    python examples/benchmarks/digests.py --out after.json                  (with the code that is to be compared)
    python examples/benchmarks/digests.py --compare before.json after.json

Everything goes through the command line, so that the script outlives a move of modules. It runs on the CPU with one
thread: compare files of one machine.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from digest_comparison import compare
from digest_files import contents, normalised
from digest_items import ITEMS, OUTPUT, RECIPE, Item

_RECIPES = Path(__file__).parents[1] / "recipes"
_PATH = click.Path(path_type=Path)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
# The name of the data in an item's directory, and the rows of each skill to fit on and to test on.
_ROWS = {"small": (300, 12), "examples": (1000, 300)}


@click.command()
@click.option("--out", type=_PATH, help="Write the digests to this file; items that it holds already are kept.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(ITEMS)), metavar="NAME", help="Only this item; repeatable."
)
@click.option("--all", "everything", is_flag=True, help="The recipes that take many minutes too.")
@click.option("--keep", type=_PATH, help="Keep what is built in this directory.")
@click.option("--bakeout", type=_PATH, default=Path(sys.executable).with_name("bakeout"), help="The command to run.")
@click.option("--compare", "compared", nargs=2, type=_PATH, help="Print how two files of digests differ.")
def main(
    out: Path | None,
    only: tuple[str, ...],
    everything: bool,
    keep: Path | None,
    bakeout: Path,
    compared: tuple[Path, Path] | None,
) -> None:
    """Build the demo, the recipes in examples/recipes and a small recipe per method, and digest what is written."""
    if compared is not None:
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in compared)
        sys.exit(compare(before, after))
    if out is None:
        raise click.UsageError("Missing option '--out' or '--compare'.")
    chosen = only or [name for name, item in ITEMS.items() if everything or not item.slow]
    with tempfile.TemporaryDirectory(prefix="digests-") as scratch:
        failed = _run(chosen, (keep or Path(scratch)).absolute(), bakeout.absolute(), out)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def _run(names: Sequence[str], directory: Path, bakeout: Path, out: Path) -> list[str]:
    """Digest every item that ``out`` lacks, and return the names of those that failed."""
    written: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"items": {}}
    written["environment"] = _environment(bakeout)
    failed = []
    for name in names:
        if name in written["items"]:
            continue
        began = time.monotonic()
        try:
            digested = _digested(ITEMS[name], directory / name, bakeout)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {' '.join(error.cmd)} ended with {error.returncode}\n{error.stderr}", file=sys.stderr)
            failed.append(name)
            continue
        written["items"][name] = {**digested, "seconds": round(time.monotonic() - began)}
        temporary = out.with_name(f".{out.name}")
        temporary.write_text(json.dumps(written, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(out)
        print(f"{name}: {written['items'][name]['seconds']} s", flush=True)
    return failed


def _digested(item: Item, directory: Path, bakeout: Path) -> dict[str, Any]:
    """Run an item's commands in a new ``directory``: digests and values of its files and of what the commands print."""
    if directory.exists():
        raise click.ClickException(f"{directory} exists already: remove it, or keep what is built elsewhere.")
    (directory / OUTPUT).mkdir(parents=True)
    if item.data:
        _add_data(directory, item.data)
    if item.recipe.endswith(".yaml"):
        shutil.copyfile(_RECIPES / item.recipe, directory / RECIPE)
    elif item.recipe:
        (directory / RECIPE).write_text(item.recipe, encoding="utf-8")
    printed = {}
    for arguments in item.commands:
        printed[f"bakeout {' '.join(arguments)}"] = json.loads(_execute([str(bakeout), *arguments], directory))
    return normalised(contents(directory, printed), directory)


def _add_data(directory: Path, data: str) -> None:
    """The bundled model and its data in ``directory``: written once a run, then linked to."""
    shared = directory.with_name(f"inputs-{data}")
    if not shared.exists():
        probe, test = _ROWS[data]
        script = [sys.executable, str(_RECIPES / "write_data.py"), "--directory", str(shared)]
        _execute([*script, "--probe", str(probe), "--test", str(test)], directory)
    for name in ("model", "data"):
        (directory / name).symlink_to(shared / name)


def _execute(command: Sequence[str], directory: Path) -> str:
    return subprocess.run(
        command, cwd=directory, env={**os.environ, **_ENVIRONMENT}, check=True, capture_output=True, text=True
    ).stdout


def _environment(bakeout: Path) -> dict[str, str]:
    return {
        "bakeout": _execute([str(bakeout), "--version"], Path.cwd()).strip(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
