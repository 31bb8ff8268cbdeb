"""`certificate.json` as it is read back: its form is checked, since an artifact may come from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bakeout.export.artifacts.file_names import CERTIFICATE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json


class _Content(BaseModel):
    # Other keys are kept: later versions may write them.
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class _Protocol(_Content):
    version: int
    name: str
    seed: int


class _Runtime(_Content):
    name: str


class _Figure(_Content):
    section: str
    name: str
    slice: str
    precision: str
    n: int
    value: float
    interval: list[float] | None = None
    base: float | None = None


class _Missing(_Content):
    section: str
    name: str
    why: str


class _Certificate(_Content):
    protocol: _Protocol
    runtime: _Runtime
    figures: list[_Figure]
    not_measured: list[_Missing]
    statements: list[str]


def read_certificate(directory: Path) -> dict[str, Any] | None:
    """The certificate in an artifact, None where there is none; what is ``null`` in it is left out.

    Raises ``BakeoutError`` for a file of another form.
    """
    path = directory / CERTIFICATE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        checked = _Certificate.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BakeoutError(
            f"{path} is no certificate: {where}: {first['msg']}.", "Certify the artifact again."
        ) from None
    if odd := [figure.name for figure in checked.figures if figure.interval is not None and len(figure.interval) != 2]:
        raise BakeoutError(f"{path} is no certificate: the interval of {odd[0]}.", "Certify the artifact again.")
    return checked.model_dump(exclude_none=True)
