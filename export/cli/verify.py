"""`bakeout verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from bakeout.export.cli.console import emit_json, progress, show
from bakeout.export.cli.flags import with_flags
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import placement_options


@click.command()
@click.argument("directory", type=PATH)
@click.option("--digest", help="SHA-256 of bakeout.json, from a source that you trust more than the directory.")
@click.option(
    "--signature", type=PATH, help="The public key, or root certificates, in PEM, that `model.sig` is checked with."
)
@click.option("--base", type=PATH, help="The base model: its checkpoint's directory or hub id.")
@click.option("--data", type=PATH, multiple=True, help="JSONL of prompts to compare with the reference too.")
@click.option("--checks", help="These checks alone, as in files,graph,canary: they are the verdict.")
@placement_options
@json_output
@click.pass_context
def verify(
    context: click.Context,
    directory: Path,
    digest: str | None,
    signature: Path | None,
    base: Path | None,
    data: tuple[Path, ...],
    checks: str | None,
    device: str | None,
    dtype: str | None,
    device_map: str | None,
    machine: bool,
) -> None:
    """Check an artifact: files (by their hashes), graph (for a checkpoint: tensors), canary, parity, and its signature.

    Parity compares with the PyTorch reference, and needs the base model's checkpoint, which runs in float32 on the CPU
    unless it is told to run elsewhere. A check that cannot run is not
    ok.
    """
    from bakeout.export.verification.verify import AskedName, not_asked, verify
    from bakeout.models.checkpoint.placement import REFERENCE

    asked = None if checks is None else cast("list[AskedName]", [name.strip() for name in checks.split(",")])
    prompts = [prompt for path in data for prompt in _prompts(directory, path)]
    with progress() as track:
        done = verify(
            directory,
            digest=digest,
            signature=signature,
            base=base,
            prompts=prompts,
            checks=asked,
            placement=REFERENCE.changed(device=device, dtype=dtype, device_map=device_map),
            track=track,
        )
    ok = all(check.ok for check in done)
    others = not_asked(directory, asked)
    if machine:
        emit_json({"ok": ok, "checks": [check.as_json() for check in done], "not_asked": others})
    else:
        for check in done:
            detail = with_flags(check.detail, context.command.params)
            show(f"{'ok' if check.ok else 'NOT OK':<7} {check.name:<7} {detail}".replace("\n", "\\n"))
        for name in others:
            show(f"{'-':<7} {name:<7} not asked for")
    sys.exit(0 if ok else 1)


def _prompts(directory: Path, path: Path) -> list[list[int]]:
    from bakeout.models.data.limits import Limits
    from bakeout.models.data.rows import read_records
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer
    from bakeout.models.files.json_object import read_json

    limits = Limits.of_config(read_json(directory / "config.json"))
    return [record.prompt_ids for record in read_records(path, load_tokenizer(directory), limits) if record.prompt_ids]
