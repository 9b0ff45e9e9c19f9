"""Writes that are there whole or not at all, even after a kill or a loss of power.

Everything is written under a temporary name (`.NAME.tmp`), flushed to the disk, then renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from penchant.errors import SaveError
from penchant.train import manifest

_FULL = 2**20
"""Fewer free bytes than this: the disk counts as full."""


def temporary_name(final: Path) -> Path:
    """Where `final` is written before it is renamed: hidden, on the same disk."""
    return final.with_name(f".{final.name}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether the path is one that `temporary_name` gives."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_text(final: Path, text: str) -> None:
    """Replaces a file's content. Raises SaveError; the old content then stays."""
    temporary = temporary_name(final)
    with saving(final):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
            sync_folder(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def filling(final: Path) -> Iterator[Path]:
    """An empty temporary folder to write into; it gets a manifest and is flushed on leaving.

    What becomes of it then is the caller's. Removed again where anything goes wrong.
    Raises SaveError where something could not be written.
    """
    temporary = temporary_name(final)
    with saving(final):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            manifest.write(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def publish_folder(temporary: Path, final: Path) -> None:
    """Gives a flushed folder its name; an older one of that name is replaced."""
    with saving(final):
        if final.exists():
            aside = aside_name(final)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
            os.rename(temporary, final)
            sync_folder(final.parent)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(temporary, final)
            sync_folder(final.parent)


def publish_files(temporary: Path, folder: Path) -> None:
    """Moves a flushed folder's files into a folder, each as a whole, the manifest last."""
    with saving(folder):
        entries = sorted(temporary.iterdir(), key=lambda path: path.name == manifest.MANIFEST)
        for entry in entries:
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        temporary.rmdir()
        sync_folder(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder; under its own name it is never seen in part."""
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    os.rename(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def aside_name(final: Path) -> Path:
    """Where an older folder waits while its successor takes its name."""
    return final.with_name(f".{final.name}.old")


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that does not open folders
        return
    try:
        os.fsync(handle)
    except OSError:  # a file system that does not flush folders
        pass
    finally:
        os.close(handle)


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Turns a failed write into SaveError: one line with the folder and what to do."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise SaveError(
            f"{target.name} could not be written to {str(target.parent)!r}: "
            f"{_reason(error, target)}; what was saved before is whole: make room there, then "
            "run the same command to go on"
        ) from error


def _is_failed_write(error: Exception) -> bool:
    """The libraries' Rust and C++ parts report the system's errors as classes of their own."""
    if isinstance(error, (OSError, SafetensorError)):
        return True
    return "(os error" in str(error) or "inline_container" in str(error)


def _reason(error: Exception, target: Path) -> str:
    there = next(path for path in target.absolute().parents if path.exists())
    if shutil.disk_usage(there).free < _FULL:
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if "inline_container" in str(error):
        return "the system refused the write"
    return str(error).splitlines()[0]
