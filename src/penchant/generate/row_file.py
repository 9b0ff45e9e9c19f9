"""Files of JSON rows that are there whole or not at all: `.jsonl`, `.ndjson`, `.json`, or with .gz.

Written under a temporary name beside the final one, flushed to the disk, then renamed.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from penchant.data.files import kind
from penchant.errors import RecipeError, SaveError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KINDS = (".jsonl", ".ndjson", ".json")
_ENDS = (*KINDS, *(f"{one}.gz" for one in KINDS))
_SUMMARY = ".summary.json"


def check(output: Path) -> None:
    """Raises RecipeError where the output's name is none that rows are written to."""
    if kind(output) not in KINDS:
        raise RecipeError(
            f"output={output}: rows are written to files that end in {', '.join(KINDS)}, "
            "or these with .gz"
        )
    if output.name.endswith(_SUMMARY):
        raise RecipeError(
            f"output={output}: files that end in {_SUMMARY} are summaries of others; give another "
            "name"
        )
    if output.is_dir():
        raise RecipeError(f"output={output} is a folder; give a file")


def summary_of(output: Path) -> Path:
    """Where an output's summary lies: of `OUT.jsonl` in `OUT.summary.json`, of any other file in
    `FILE.summary.json` with its whole name (`OUT.json.summary.json`), so that no two share one.
    """
    short = output.name.removesuffix(".jsonl")
    if short.lower().endswith(_ENDS):  # OUT.json.jsonl: its short name is another output's whole
        short = output.name
    return output.with_name(f"{short}{_SUMMARY}")


def write_rows(output: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as they come and returns how many; raises SaveError, and nothing has changed.

    JSON lines, or a JSON list, as the output's name says.
    """
    num_rows = 0
    start, between, end = ("[\n", ",\n", "\n]\n") if kind(output) == ".json" else ("", "\n", "\n")
    with saving(output), replacing(output) as raw:
        is_gzip = output.suffix.lower() == ".gz"
        stream = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_gzip else raw
        for row in rows:
            stream.write((between if num_rows else start).encode() + _encoded(row))
            num_rows += 1
        stream.write((end if num_rows else "[]\n" if start else "").encode())
        if is_gzip:
            stream.close()
    return num_rows


def write_summary(output: Path, summary: Mapping[str, Any]) -> None:
    """Writes an output's summary; raises SaveError."""
    with saving(output), replacing(summary_of(output)) as raw:
        raw.write((json.dumps(dict(summary), indent=2) + "\n").encode())


def _encoded(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        return json.dumps(row).encode("ascii")


@contextmanager
def replacing(final_path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is whole and on the disk."""
    temporary = final_path.with_name(f".{final_path.name}.tmp")
    try:
        with temporary.open("wb") as raw:
            yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, final_path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def saving(output: Path) -> Iterator[None]:
    """Turns a failed write into SaveError: one line with the folder and what to do."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"{output.name} could not be written to {str(output.parent)!r}: "
            f"{(error.strerror or str(error)).lower()}; finished work is kept: make room there, "
            "then run the same command to go on"
        ) from error


def locked(path: Path) -> int | None:
    """An exclusive lock on a file, as the handle that holds it; it ends with the process.

    None where the system or the file system has no locks, so that nobody can be kept out.
    Raises BlockingIOError where another process has it.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle
