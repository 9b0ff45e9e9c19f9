"""The list of a folder's files with sizes and hashes, by which a damaged folder is known."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_THREADS = 4


def write(folder: Path) -> None:
    """Hashes and flushes every file of a folder; the manifest comes last."""
    paths = _files(folder)
    # Just written, the files are read from memory; hashing leaves the interpreter's lock alone.
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = list(pool.map(_flush_and_describe, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    content = {"algorithm": "sha256", "files": dict(zip(names, entries, strict=True))}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def find_fault(folder: Path) -> str | None:
    """What is wrong with a folder, in a few words; None where every listed file is whole."""
    try:
        listed = read(folder)
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    # Sizes first: they cost nothing.
    for name, (size, _) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    for name, (_, sha256) in listed.items():
        if _hash(folder / name) != sha256:
            return f"{name} has changed: its hash differs"
    return None


def read(folder: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of every listed file. Raises OSError, or ValueError."""
    content = json.loads((folder / MANIFEST).read_text())
    try:
        return {name: (one["bytes"], one["sha256"]) for name, one in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is no manifest") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _flush_and_describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a disk that no longer reads its sectors
        return None
