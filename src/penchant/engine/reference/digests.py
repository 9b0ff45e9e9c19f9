"""SHA-256 of files, computed once per change of a file: not per run, nor per process.

A digest is kept with the file's size, times and inode, and serves while all of them are what they
were. A file that changed in the seconds before it was looked at is read again the next time too: it
could change once more within the clock's resolution, and look the same. Reading many bytes, or
waiting for somebody who reads them, is said in a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penchant.engine.reference.locks import Lock, hold

Stamp = tuple[int, int, int, int]
"""Inode, size, and the times of the last change of content and of status [ns].

Not the device: its number is given anew at every mount, and the path says which one it is.
"""

_SETTLED = 2_000_000_000
"""[ns] after which a file that changes gets another time, on every file system."""
_THREADS = 4
_PATIENCE = 3600.0
"""[s] to wait for somebody who reads the same file."""
_SILENCE = 5.0
"""[s] after which it is said what takes so long."""
_awaited: list[str] = []
"""Files that others read just now."""
_known: dict[tuple[str, Stamp], str] = {}


def stamp(path: Path) -> Stamp:
    """By which one can tell that a file changed. Raises OSError where there is none."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def of_files(paths: Sequence[Path], folder: Path) -> list[str]:
    """SHA-256 of each file's bytes, several at a time; see `of_file`."""
    with _said(paths), ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: of_file(path, folder), paths))


def of_file(path: Path, folder: Path) -> str:
    """SHA-256 of a file's bytes.

    Args:
        folder: where digests are kept; made where it is not there.
    Raises:
        OSError: the file cannot be read.
    """
    real = os.path.realpath(path)
    now = time.time_ns()  # before the file is looked at: what changes later has another time
    before = stamp(path)
    found = _known.get((real, before)) or _stored(real, before, folder)
    if found is None:
        with contextlib.ExitStack() as stack:
            name = _name(real, folder)
            with contextlib.suppress(OSError):  # nothing can be kept or locked there
                folder.mkdir(parents=True, exist_ok=True)
                lock = _turn(name.with_suffix(".lock"), path)
                if lock is not None:
                    stack.callback(lock.release, remove=True)
            found = _stored(real, before, folder) or _read(path)
            if now - before[-1] < _SETTLED or stamp(path) != before:
                return found
            _keep(real, before, found, name)
    _known[real, before] = found
    return found


def forget_gone(folder: Path) -> int:
    """Removes the digests of files that are not there any more; how many."""
    removed = 0
    for kept in folder.glob("*.json") if folder.is_dir() else []:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not os.path.exists(json.loads(kept.read_text())["path"]):
                kept.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def _said(paths: Sequence[Path]) -> Iterator[None]:
    """One line where reading takes long: other processes may sit and wait for this one."""

    def say() -> None:
        with contextlib.suppress(OSError):
            size = sum(path.stat().st_size for path in paths)
            what = f"reading {len(paths)} files ({size / 1e9:,.1f} GB), once until they change"
            for name in _awaited[:1]:
                what = f"waiting for another process, which reads {name}"
            print(f"digests of the model's files: {what}", file=sys.stderr, flush=True)

    timer = threading.Timer(_SILENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _turn(file: Path, path: Path) -> Lock | None:
    """The lock on a file that is to be read; None where somebody reads it for very long."""
    _awaited.append(path.name)
    try:
        return hold(file, patience=_PATIENCE)
    finally:
        _awaited.remove(path.name)


def _stored(real: str, wanted: Stamp, folder: Path) -> str | None:
    try:
        found = json.loads(_name(real, folder).read_text())
        if found["path"] == real and tuple(found["stamp"]) == wanted and len(found["sha256"]) == 64:
            return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(real: str, known: Stamp, sha256: str, name: Path) -> None:
    temporary = name.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}.tmp")
    with contextlib.suppress(OSError):
        try:
            temporary.write_text(json.dumps({"path": real, "stamp": known, "sha256": sha256}))
            os.replace(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(real: str, folder: Path) -> Path:
    digest = hashlib.blake2b(real.encode("utf-8", "surrogateescape"), digest_size=16)
    return folder / f"{digest.hexdigest()}.json"
