"""`bakeout verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("directory", type=PATH)
@click.option("--digest", help="SHA-256 of bakeout.json, from a source that you trust more than the directory.")
@click.option("--base", type=PATH, help="The base model: its checkpoint's directory.")
@click.option("--data", type=PATH, multiple=True, help="JSONL of prompts to compare with the reference too.")
@json_output
def verify(directory: Path, digest: str | None, base: Path | None, data: tuple[Path, ...], machine: bool) -> None:
    """Check an artifact: files, graph, canary, parity.

    Parity compares with the PyTorch reference, and needs the base model's checkpoint. A check that cannot run is not
    ok.
    """
    from bakeout.export.verification.verify import verify

    prompts = [prompt for path in data for prompt in _prompts(directory, path)]
    with progress() as track:
        checks = verify(directory, digest=digest, base=base, prompts=prompts, track=track)
    ok = all(check.ok for check in checks)
    if machine:
        emit_json({"ok": ok, "checks": [check.as_json() for check in checks]})
    else:
        for check in checks:
            click.echo(f"{'ok' if check.ok else 'NOT OK':<7} {check.name:<7} {check.detail}")
    sys.exit(0 if ok else 1)


def _prompts(directory: Path, path: Path) -> list[list[int]]:
    from bakeout.models.data.rows import read_records
    from bakeout.models.data.tokenization import load_tokenizer

    return [record.prompt_ids for record in read_records(path, load_tokenizer(directory)) if record.prompt_ids]
