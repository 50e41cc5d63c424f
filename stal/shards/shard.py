"""One shard: the pictures of consecutive rows, which appear with their index or not at all.

    DIR/shard-00003.parquet      the index; with it the shard is done
    DIR/shard-00003/             its pictures, or shard-00003.tar with them
    DIR/.shard-00003/            one that is being drawn: pictures/, and their entries in rows.jsonl

Every picture is written whole and then has its line in rows.jsonl, so that a run that was killed
draws again what was being drawn, and nothing else. When every row has its line, the pictures move
to their place and then the index is written, which is what makes them a shard.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stal.files import write_atomic
from stal.runs import append_lines, whole_lines
from stal.shards.index import Entry, write_index

Format = Literal["png", "webdataset"]


@dataclass(frozen=True)
class ShardFolder:
    """Where the shards of a folder are.

    Attributes:
        folder: existing.
        format: of the pictures: a folder of PNG files a shard, or a tar file for webdataset.
    """

    folder: Path
    format: Format

    def index(self, number: int) -> Path:
        return self.folder / f"{_name(number)}.parquet"

    def pictures(self, number: int) -> Path:
        return self.folder / f"{_name(number)}{'.tar' * (self.format == 'webdataset')}"

    def partial(self, number: int) -> Path:
        return self.folder / f".{_name(number)}"

    def done(self) -> set[int]:
        """The numbers of the shards that have an index."""
        found = (path.stem.removeprefix("shard-") for path in self.folder.glob("shard-*.parquet"))
        return {int(digits) for digits in found if digits.isdecimal()}


def _name(number: int) -> str:
    return f"shard-{number:05}"


class OpenShard:
    """A shard that is not done, as it was left by whoever drew at it before.

    Args:
        place: where.
        number: which.

    Attributes:
        entries: by row, those that are on the disk, their pictures too.

    Raises:
        OSError: the disk is full, or the like.
    """

    def __init__(self, place: ShardFolder, number: int) -> None:
        self.place, self.number = place, number
        partial = place.partial(number)
        self._pictures, self._journal = partial / "pictures", partial / "rows.jsonl"
        partial.mkdir(exist_ok=True)
        moved = place.pictures(number)
        if moved.is_dir() and not self._pictures.exists():
            moved.rename(self._pictures)  # of a run that was killed before it wrote the index
        self._pictures.mkdir(exist_ok=True)
        self.entries: dict[int, Entry] = {}
        for line in whole_lines(self._journal):
            try:
                entry = Entry.from_json(line)
            except (ValueError, TypeError):
                raise ValueError(f"{self._journal} must have entries, got {line!r:.60}") from None
            if entry.file is None or self._digest(entry.file) == entry.sha256:
                self.entries[entry.row] = entry

    def add(self, entry: Entry, png: bytes | None = None) -> None:
        """Keeps an entry, and the picture that it tells of, on the disk.

        png: of an entry with neither file nor sha256, which then has both; None for one with an
            error.
        """
        values = entry.to_json()
        if png is not None:
            name = f"{entry.row:09}.png"
            write_atomic(self._pictures / name, png)
            inside = self.place.format == "webdataset"
            values["file"] = name if inside else f"{_name(self.number)}/{name}"
            values["sha256"] = hashlib.sha256(png).hexdigest()
        append_lines(self._journal, [values])
        self.entries[entry.row] = Entry(**values)

    def finish(self) -> None:
        """Makes it a shard, of the entries that it has. Raises OSError; then it is still open."""
        entries = [entry for _, entry in sorted(self.entries.items())]
        files = {Path(entry.file).name: entry for entry in entries if entry.file is not None}
        for path in self._pictures.iterdir():
            if path.name not in files:
                path.unlink()  # torn, or of a row that now has an error
        target = self.place.pictures(self.number)
        if self.place.format == "webdataset":
            self._write_tar(target, files)
        else:
            _sync(self._pictures)
            self._pictures.rename(target)
        _sync(self.place.folder)
        write_index(self.place.index(self.number), entries)
        _sync(self.place.folder)
        self.discard(self.place, self.number)

    @staticmethod
    def discard(place: ShardFolder, number: int) -> None:
        """Removes what an open shard has beside a done one."""
        shutil.rmtree(place.partial(number), ignore_errors=True)

    def _digest(self, file: str) -> str:
        try:
            return hashlib.sha256((self._pictures / Path(file).name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def _write_tar(self, target: Path, files: Mapping[str, Entry]) -> None:
        from webdataset import TarWriter

        partial = self.place.partial(self.number) / "pictures.tar"
        try:
            with open(partial, "wb") as file:
                # A fixed time, so that equal pictures make equal files.
                with TarWriter(file, encoder=False, mtime=0) as tar:
                    for name, entry in files.items():
                        sample = {
                            "__key__": Path(name).stem,
                            "png": (self._pictures / name).read_bytes(),
                            "txt": (entry.prompt or "").encode("utf-8", "backslashreplace"),
                            "json": (entry.settings or "{}").encode(),
                        }
                        tar.write(sample)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    if os.name == "nt":  # where no folder can be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
