"""Files are whole or as before, and impossible ones are found out before the work."""

import errno
import os
import subprocess
import sys
import tempfile

import pytest

from stal.files import check_writable, read_lines, write_atomic


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    for data in (b"one", b"", b"\0\xff" * 1000):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    code = (
        "import os, sys; os.umask(0o027); sys.path.insert(0, os.getcwd())\n"
        "from stal.files import write_atomic\n"
        f"write_atomic({str(tmp_path / 'file')!r}, b'')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_of_a_link_the_target_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to(target)
    check_writable(link)
    write_atomic(link, b"data")
    assert link.is_symlink()
    assert target.read_bytes() == b"data"


@pytest.mark.parametrize("existing", [b"old", None], ids=["old file", "no file"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call, existing):
    path = tmp_path / "file"
    if existing is not None:
        path.write_bytes(existing)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if existing is None else [existing])


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    check_writable(path)
    write_atomic(path, b"data")
    assert path.read_bytes() == b"data"


def test_check_leaves_nothing_behind_and_nothing_changed(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old": b"old"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent/file", "output must be in an existing folder, got .*: create .*absent"),
        ("file/below", "output must be in an existing folder"),
        (".", "output must be a file, got the folder"),
        ("pipe", "output must be a file, got the device"),
        ("n" * 300, "output must be writable, got .*: File name too long"),
        ("dangling", "output must be in an existing folder, got .*dangling: create .*absent"),
    ],
)
def test_impossible_files_are_refused(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "file")
    with pytest.raises(ValueError, match=message):
        check_writable(tmp_path / name)


def test_a_folder_without_permission_is_refused_under_the_given_name(tmp_path, monkeypatch):
    # Not by permission bits: the superuser may write anywhere.
    def refuse(**kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"json must be writable, got .*: Permission denied"):
        check_writable(tmp_path / "file.json", name="json")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_lines_end_at_line_ends_alone(tmp_path, mark):
    path = tmp_path / "lines"
    path.write_bytes(f"a cat{mark}left\r\n\r a dog \rb\n".encode())
    assert read_lines(path, name="prompts") == [f"a cat{mark}left", "a dog", "b"]
