"""Salts: what turns a name, or a row, into a digest that nobody guesses who does not hold the salt."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import read_regular
from bakeout.models.files.writing import write_file

# Bytes: as many as nobody guesses.
_SALT = 32


@contextmanager
def kept_salt(path: Path) -> Iterator[bytes]:
    """The salt in a file of its own, which is made where it is not there, and removed again where the block fails.

    It is on the disk before the block writes what it is needed for. Raises as ``known_salt``.
    """
    is_new = not path.exists()
    if is_new:
        write_file(path, secrets.token_bytes(_SALT))
        # Nobody else's, where the file system knows of others.
        path.chmod(0o600)
    try:
        yield known_salt(path)
    except BaseException:
        if is_new:
            path.unlink(missing_ok=True)
        raise


def known_salt(path: Path) -> bytes:
    """The salt in a file. Raises ``BakeoutError`` for one that cannot be read, or that holds fewer than 32 bytes."""
    try:
        salt = read_regular(path)
    except OSError as error:
        raise BakeoutError(f"{path} cannot be read ({error.strerror}).", "Name the file of the salt.") from None
    if len(salt) < _SALT:
        raise BakeoutError(
            f"{path} holds {len(salt)} bytes, and a salt of fewer than {_SALT} can be guessed.",
            "Name a file that is not there yet: one is made.",
        )
    return salt
