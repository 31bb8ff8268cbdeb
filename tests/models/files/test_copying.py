"""Copies have the same bytes, holes included, and are files of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.files.copying import copy_by_kernel


@given(pieces=st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([0, 1, 5000])), max_size=4))
def test_copies_have_the_same_bytes_holes_included(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bytes, int]]
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    source = directory / "source"
    with source.open("wb") as file:
        for piece, hole in pieces:
            file.write(piece)
            file.seek(hole, os.SEEK_CUR)
        file.truncate()
    copy_by_kernel(source, directory / "copy")
    assert (directory / "copy").read_bytes() == source.read_bytes()


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    (tmp_path / "link").symlink_to("source")
    copy_by_kernel(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").stat().st_nlink == (tmp_path / "source").stat().st_nlink == 1
    with pytest.raises(FileExistsError):
        copy_by_kernel(tmp_path / "source", tmp_path / "copy")
