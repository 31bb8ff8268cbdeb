"""`bakeout record`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, show
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("directory", type=PATH)
@click.option(
    "--request", "requests", type=PATH, multiple=True, required=True, help="JSONL of rows to be erased; repeatable."
)
@click.option(
    "--salt", type=PATH, required=True, help="The file of the salt, which you keep; made where it is not there."
)
@click.option("--derived", type=PATH, multiple=True, help="An artifact or file made from this one; repeatable.")
@json_output
def record(directory: Path, requests: tuple[Path, ...], salt: Path, derived: tuple[Path, ...], machine: bool) -> None:
    """Write an erasure record into an artifact: `erasure.json`, and `erasure.md` for people.

    It holds what was asked to be forgotten as salted digests, never the content, with the methods, what was measured in
    which precision, and the digests of other artifacts that were derived. It says what suppresses and does not erase.
    An artifact has one record: name what it holds again, beside what is new, with the same salt.
    """
    from bakeout.export.artifacts.file_names import ERASURE_RECORD
    from bakeout.export.artifacts.salt import kept_salt
    from bakeout.export.evaluation.evaluate import data_names
    from bakeout.export.trust.erasure_record import add_record, erasure_record
    from bakeout.models.errors import BakeoutError

    names = {path.name: path for path in derived}
    if len(names) < len(derived):
        raise BakeoutError("Two derived files have the same name.", "Rename one of them: the record tells them apart.")
    with kept_salt(salt) as secret:
        content = erasure_record(directory, data_names(requests), secret, derived=names)
        add_record(directory, content)
    if machine:
        emit_json(content)
    else:
        rows = sum(request["rows"] for request in content["requests"])
        show(f"{directory / ERASURE_RECORD}: {rows} rows, as digests salted by {salt}")
