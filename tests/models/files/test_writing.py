"""Files and directories appear whole or not at all, and what exists is never overwritten."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import (
    new_directory,
    replace_file,
    replaced_directory,
    require_new,
    scratch_directory,
    write_file,
)

from tests.directory_tree import tree


def test_a_directory_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "artifact"
    with new_directory(output) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("content")
        assert not output.exists()
    assert tree(tmp_path) == ["new", "new/artifact", "new/artifact/sub", "new/artifact/sub/file"]
    (tmp_path / "plain").mkdir()
    assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3), BakeoutError("Cause.", "Remedy.")]
)
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_directory(tmp_path / "new" / "artifact") as directory:
        (directory / "file").write_text("content")
        raise error
    assert tree(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="No space left") as caught, new_directory(tmp_path / "a") as directory:
        (directory / "some").write_text("content")
        Path("/dev/full").write_text("too much")
    assert "room" in caught.value.remedy
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", ["new", "sub/new", "bakeout.json", "beside/new"])
def test_nothing_new_is_written_into_an_artifact(tmp_path: Path, name: str) -> None:
    """Its manifest lists all that belongs there."""
    artifact = tmp_path / "artifact"
    (artifact / "earlier").mkdir(parents=True)
    (artifact / "bakeout.json").write_text("{}")
    (tmp_path / "beside").symlink_to(artifact)
    output = tmp_path / name if name.startswith("beside") else artifact / name
    before = tree(tmp_path)
    writes: list[Callable[[], object]] = [
        lambda: require_new(output),
        lambda: write_file(output, "content"),
        lambda: new_directory(output).__enter__(),
        lambda: replaced_directory(artifact / "earlier").__enter__(),
    ]
    for write in writes:
        with pytest.raises(BakeoutError, match=rf"lies in the artifact {artifact}, whose manifest"):
            write()
    assert tree(tmp_path) == before
    # What belongs to an artifact is still put into it.
    replace_file(artifact / "model.sig", "signed")
    require_new(tmp_path / "artifact-2")


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "artifact"
    if kind == "directory":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BakeoutError, match="exists already"), new_directory(output):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == ["artifact"]
    assert kind != "file" or output.read_text() == "mine"


def test_a_directory_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with pytest.raises(BakeoutError, match="exists already"), new_directory(output):
        output.mkdir()
        (output / "mine").write_text("content")
    assert tree(tmp_path) == ["artifact", "artifact/mine"]


def test_a_file_appears_whole_with_its_parents(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "deep" / "file", "Ä\n")
    assert tree(tmp_path) == ["new", "new/deep", "new/deep/file"]
    assert (tmp_path / "new" / "deep" / "file").read_bytes() == "Ä\n".encode()
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "new" / "deep" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_in_an_earlier_ones_place(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", "one")
    replace_file(tmp_path / "file", b"two")
    (tmp_path / "link").symlink_to("file")
    replace_file(tmp_path / "link", "three")
    assert [(tmp_path / name).read_text() for name in ("file", "link")] == ["two", "three"]
    assert tree(tmp_path) == ["file", "link"]
    (tmp_path / "directory").mkdir()
    with pytest.raises(BakeoutError, match="cannot be read or written"):
        replace_file(tmp_path / "directory", "four")
    assert tree(tmp_path) == ["directory", "file", "link"]


def test_a_limit_of_file_sizes_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bakeout.models.errors import BakeoutError\n"
        "from bakeout.models.files.writing import write_file\n"
        "try: write_file(Path(sys.argv[1]), bytes(2000))\n"
        "except BakeoutError as error: print(error)"
    )
    written = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "new" / "file"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert "File too large" in written.stdout
    assert "ulimit" in written.stdout
    assert tree(tmp_path) == []


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link", "below a file", "a name too long"])
def test_a_target_is_checked_before_the_work(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "directory":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    elif kind == "below a file":
        target.write_text("mine")
        target = target / "below"
    else:
        target = tmp_path / ("x" * 300)
    before = tree(tmp_path)
    for refuse in (require_new, lambda path: write_file(path, "content")):
        with pytest.raises(BakeoutError, match=r"exists already|cannot be read or written"):
            refuse(target)
    assert tree(tmp_path) == before


def test_a_free_place_is_accepted_and_left_alone(tmp_path: Path) -> None:
    require_new(tmp_path / "new" / "deep" / "file")
    assert tree(tmp_path) == []


def test_a_directory_is_replaced_once_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    for text in ("first", "second"):
        with replaced_directory(path) as directory:
            (directory / text).write_text("content")
        assert tree(tmp_path) == ["directory", f"directory/{text}"]


def test_a_directory_stays_where_its_replacement_fails(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    (path / "first").write_text("content")
    with pytest.raises(KeyboardInterrupt), replaced_directory(path) as directory:
        (directory / "second").write_text("content")
        raise KeyboardInterrupt
    assert tree(tmp_path) == ["directory", "directory/first"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Exception("File too large (os error 27)"), "File too large"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "No space left"),
        (OSError("1000 requested and 12 written"), "No space left"),
    ],
)
def test_what_libraries_tell_of_the_disk_is_understood(tmp_path: Path, error: Exception, cause: str) -> None:
    with pytest.raises(BakeoutError, match=cause), new_directory(tmp_path / "directory"):
        raise error
    assert tree(tmp_path) == []


def test_errors_name_no_temporary_directory(tmp_path: Path) -> None:
    with (
        pytest.raises(BakeoutError, match=f"^{tmp_path}/artifact cannot be read or written: Permission denied"),
        new_directory(tmp_path / "artifact") as directory,
    ):
        raise PermissionError(13, "Permission denied", str(directory / "file"))
    with (
        pytest.raises(BakeoutError, match=f"^{tmp_path} cannot be written: No space left"),
        new_directory(tmp_path / "artifact") as directory,
        scratch_directory(directory),
    ):
        raise OSError(28, "No space left on device")


def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    place = Path("/proc/new")
    if not place.parent.is_dir():
        pytest.skip("there is no /proc here")
    with pytest.raises(BakeoutError, match="/proc"):
        require_new(place)


@pytest.mark.parametrize("error", [ValueError("code 28"), OSError("cannot be loaded"), KeyError("[Errno 2] gone")])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, new_directory(tmp_path / "directory"):
        raise error
    assert caught.value is error
