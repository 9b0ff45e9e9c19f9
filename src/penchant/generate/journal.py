"""A journal of finished rows: a killed command goes on where it was, and no row is there twice.

Beside `OUT.jsonl` lies `.OUT.jsonl.journal/`, with an append-only file per process and start. A
line holds a checksum, the row's index and the row; one that is torn or damaged is as if it was
never written. When all rows are there they become one file, in order, in one rename, with
its summary (`row_file.summary_of`) beside it; the journal then goes. No torch here, and no network
of its own: with several processes the caller lets the main one open first, and publish last.

    journal = Journal.open(output, identity)          # refuses another recipe's work
    for index in range(num_rows):
        if index not in journal:
            journal.append(index, row)                # safe against a kill once it returns
    journal.publish(num_rows, summary)                # the file, whole, in order
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, final

from penchant.errors import RecipeError
from penchant.generate.row_file import (
    check,
    locked,
    replacing,
    saving,
    summary_of,
    write_rows,
    write_summary,
)

FLUSH_SECONDS = 5.0
"""What a loss of power may cost, about [s]; a kill costs nothing that was appended."""
_IDENTITY = "identity.json"


@final
class Journal:
    """Rows of one output file, some of them finished; build it with `open`."""

    def __init__(self, output: Path, identity: Mapping[str, Any], lock: int | None) -> None:
        self.output = output
        self.folder = folder_of(output)
        self.num_torn = 0
        """Lines that did not hold what was written: their rows are computed again."""
        self._identity = identity
        self._lock = lock
        self._handle: int | None = None
        self._flushed = time.monotonic()
        self._places: dict[int, tuple[Path, int, int]] = {}
        self._open_parts: dict[Path, IO[bytes]] = {}
        self._scan()

    @classmethod
    def open(
        cls,
        output: Path,
        identity: Mapping[str, Any],
        *,
        is_main: bool = True,
        again: bool = False,
    ) -> Journal:
        """The journal of an output file, with what an interrupted command left in it.

        Args:
            identity: what the rows depend on (models, data, settings), as JSON values.
            is_main: of several processes one makes the folder; the others open it after that,
                and all before the first row is appended.
            again: the output is there and is `finished`, and some of its rows are to be replaced.
        Raises:
            RecipeError: the file or the journal is another recipe's, or somebody writes it now.
            SaveError: the folder cannot be made.
        """
        check(output)
        return cls(output, identity, _begin(output, identity, again) if is_main else None)

    def __contains__(self, index: int) -> bool:
        """Whether a row is finished."""
        return index in self._places

    @property
    def done(self) -> frozenset[int]:
        """Indices of the rows that are there."""
        return frozenset(self._places)

    def append(self, index: int, row: Mapping[str, Any]) -> None:
        """Adds a finished row; raises SaveError, and the journal is as it was before."""
        body = b"%d %s" % (index, json.dumps(row).encode("ascii"))
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        with saving(self.output):
            if self._handle is None:
                self._handle, self._path = _new_part(self.folder)
                self._size = 0
            try:
                _write(self._handle, line)
            except BaseException:
                os.ftruncate(self._handle, self._size)
                os.lseek(self._handle, self._size, os.SEEK_SET)
                raise
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()
        self._places.setdefault(index, (self._path, self._size, len(line)))
        self._size += len(line)

    def flush(self) -> None:
        """Brings what was appended to the disk."""
        if self._handle is not None:
            with saving(self.output):
                os.fsync(self._handle)
        self._flushed = time.monotonic()

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Finished rows by index, read from the disk one at a time."""
        for index in sorted(self._places):
            yield index, self.row(index)

    def row(self, index: int) -> dict[str, Any]:
        """A finished row, read from the disk. Raises KeyError where it is not finished."""
        path, start, length = self._places[index]
        if path not in self._open_parts:
            self._open_parts[path] = path.open("rb")
        file = self._open_parts[path]
        file.seek(start)
        found = _parsed(file.read(length))
        assert found is not None, f"{path} changed while it was read"
        return found[1]

    def gather(self, num_rows: int) -> None:
        """Reads what other processes appended, after all have closed; all rows must be there."""
        self.close(keep_lock=True)
        self._scan()
        lacking = next((index for index in range(num_rows) if index not in self._places), None)
        assert lacking is None and len(self._places) == num_rows, f"row {lacking} is not there"

    def publish(
        self,
        num_rows: int,
        summary: Mapping[str, Any],
        rows: Iterable[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Writes the output and its summary, whole or not at all, and removes the journal.

        Reads again what other processes appended, so call it after all have closed.

        Args:
            num_rows: of the journal; all must be there.
            rows: what is written, where it is made of the journal's rows and not these themselves.

        Returns the summary with the identity. Raises SaveError; everything is then still in the
        journal.
        """
        self.gather(num_rows)
        full = {**summary, "identity": dict(self._identity)}
        write_rows(self.output, (row for _, row in self.rows()) if rows is None else rows)
        write_summary(self.output, full)
        # An earlier publication may have been killed before it removed its own.
        shutil.rmtree(_left_over(self.output), ignore_errors=True)
        with saving(self.output):
            os.rename(self.folder, _left_over(self.output))
        shutil.rmtree(_left_over(self.output), ignore_errors=True)
        self.close()
        return full

    def close(self, *, keep_lock: bool = False) -> None:
        """Flushes, and lets others have the journal; what is in it stays."""
        if self._handle is not None:
            self.flush()
            os.close(self._handle)
            self._handle = None
        while self._open_parts:
            self._open_parts.popitem()[1].close()
        if self._lock is not None and not keep_lock:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> None:
        """Notes where rows are; the first of an index counts."""
        self.num_torn = 0
        for part in sorted(self.folder.glob("part-*")):
            start = 0
            with part.open("rb") as file:
                for line in file:
                    found = _parsed(line)
                    if found is None:
                        self.num_torn += 1
                    else:
                        self._places.setdefault(found[0], (part, start, len(line)))
                    start += len(line)


def finished(output: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of an output that is there, whole, and of this identity; else None.

    Raises RecipeError where the file is another recipe's and no journal says that it is ours.
    """
    if not output.exists() or (folder_of(output) / _IDENTITY).exists():
        return None
    try:
        summary = json.loads(summary_of(output).read_text(encoding="utf-8"))
        other = summary["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(
            f"{output} is there already, and nothing says that this command wrote it; remove it "
            "or give another output"
        ) from None
    _compare(output, other, identity)
    shutil.rmtree(_left_over(output), ignore_errors=True)
    return dict(summary)


def folder_of(output: Path) -> Path:
    """Where an output's journal lies."""
    return output.with_name(f".{output.name}.journal")


def _left_over(output: Path) -> Path:
    """What a published journal is called while it is removed."""
    return output.with_name(f".{output.name}.journal.tmp")


def _begin(output: Path, identity: Mapping[str, Any], again: bool) -> int | None:
    """Makes the folder, or finds one of the same identity; returns the lock that is then held."""
    folder = folder_of(output)
    path = folder / _IDENTITY
    with saving(output):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = locked(folder / "lock")
        except BlockingIOError:
            raise RecipeError(f"another command is writing {output} now; wait for it") from None
    try:
        if path.exists():
            _compare(output, json.loads(path.read_text(encoding="utf-8")), identity)
        elif output.exists() and not again:
            raise RecipeError(
                f"{output} is there already and is not this command's work in progress; "
                "remove it or give another output"
            )
        else:
            with saving(output), replacing(path) as raw:
                raw.write(json.dumps(dict(identity)).encode())
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        raise
    return lock


def _compare(output: Path, other: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    own = json.loads(json.dumps(dict(identity)))
    names = [key for key in {**other, **own} if other.get(key) != own.get(key)]
    if names:
        raise RecipeError(
            f"{output} is the work of another recipe (it differs in {', '.join(sorted(names))}); "
            f"give another output, or remove it and {folder_of(output).name} beside it"
        )


def _new_part(folder: Path) -> tuple[int, Path]:
    """A file of one's own: never one that may end in a torn line."""
    number = 0
    while True:
        path = folder / f"part-{number:06d}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return os.open(path, flags, 0o666), path
        except FileExistsError:
            number += 1


def _write(handle: int, line: bytes) -> None:
    """The whole line; the system may take it in pieces."""
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _parsed(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """Index and row of a line; None where it is not what was written."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    index, _, row = body.partition(b" ")
    return int(index), json.loads(row)
