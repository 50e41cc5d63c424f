"""Files are whole or as before, and impossible ones are found out before the work."""

import errno
import os
import stat
import subprocess
import sys
import tempfile

import pytest

from stal.files import (
    check_writable,
    load_text,
    open_regular,
    read_bytes,
    read_lines,
    read_text,
    write_atomic,
)


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
        ("pipe", "output must be a file, got the pipe"),
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


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfa", "a"),
        ("à \u2028 b".encode(), "à \u2028 b"),
        ("à".encode("utf-16"), "à"),
        (b"\xfe\xff" + "à\r\n".encode("utf-16-be"), "à\n"),
        (b"", ""),
    ],
    ids=["line ends", "mark", "accents", "utf-16", "big-endian", "empty"],
)
def test_text_is_read_in_unicode(tmp_path, data, text):
    (tmp_path / "file").write_bytes(data)
    assert read_text(tmp_path / "file", name="prompts") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\nà".encode("latin-1"), "prompts must be text in UTF-8, got other bytes in line 2 of"),
        (b"a\nb\0", "prompts must be text, got a zero byte in line 2 of"),
        ("ab".encode("utf-32"), "prompts must be text, got a zero byte"),
        (b"\xff\xfea", "prompts must be text in UTF-8"),
        (b"\xed\xa0\x80", "prompts must be text in UTF-8"),
        (b"12345678", "prompts must have at most 7 bytes, got 8 in"),
    ],
    ids=["latin-1", "zero", "utf-32", "half of utf-16", "surrogate", "long"],
)
def test_what_is_no_text_is_refused(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "file", name="prompts", limit=7 if len(data) == 8 else 100)


def _read(read, path):
    limit = {"limit": 100} if read is read_bytes else {}
    return read(path, name="prompts", **limit)


@pytest.mark.parametrize("read", [open_regular, read_bytes, read_text, read_lines])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe", "prompts must be a file, got the pipe .*: save what it gives in a file"),
        ("link", "prompts must be a file, got the pipe"),
        (".", "prompts must be a file, got the folder"),
        ("/dev/zero", "prompts must be a file, got the device /dev/zero"),
        ("a\0b", "prompts must be a file, got .*x00b"),
    ],
)
def test_what_may_never_end_is_not_waited_for(tmp_path, read, name, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match=message):
        _read(read, tmp_path / name)


@pytest.mark.parametrize("name", ["absent", "dangling", "n" * 300, "file/below"])
def test_of_no_file_the_system_tells(tmp_path, name):
    (tmp_path / "file").write_bytes(b"a")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for read in (open_regular, read_bytes, load_text):
        with pytest.raises(OSError, match=r"No such file|too long|Not a directory"):
            _read(read, tmp_path / name)
    for read in (read_text, read_lines):
        with pytest.raises(ValueError, match="prompts must be a text file, got"):
            _read(read, tmp_path / name)


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)  # takes no room
    for read in (read_bytes, read_text, read_lines):
        with pytest.raises(
            ValueError, match=r"prompts must have at most .* bytes, got 1099511627776"
        ):
            _read(read, tmp_path / "file")


def test_files_of_strange_names_are_read(tmp_path):
    for name in ("a b", "-", "*", "\udcff", "é\n"):
        (tmp_path / name).write_bytes(b"a")
        assert read_text(tmp_path / name, name="prompts") == "a"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_lines_end_at_line_ends_alone(tmp_path, mark):
    path = tmp_path / "lines"
    path.write_bytes(f"a cat{mark}left\r\n\r a dog \rb\n".encode())
    assert read_lines(path, name="prompts") == [f"a cat{mark}left", "a dog", "b"]


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
