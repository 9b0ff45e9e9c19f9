"""All entries of the store: what there is, whether it is whole, and what has to go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from penchant.engine.reference import claims, shards
from penchant.engine.reference.entry import ABOUT, LOCK, Entry, is_name, is_temporary
from penchant.engine.reference.locks import hold
from penchant.engine.reference.origin import name_of
from penchant.engine.reference.shards import DamagedError, Shard
from penchant.errors import RecipeError

SIZE_VARIABLE = "PENCHANT_REFERENCE_CACHE_SIZE"
MAX_BYTES = 20 * 10**9
"""What all entries may take unless the variable says otherwise."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNLOCKED_USE = 24 * 3600
"""[s] since the last use after which an entry counts as unused where there are no locks."""


@dataclass(frozen=True)
class Found:
    """An entry as it lies on the disk."""

    folder: Path
    about: Mapping[str, Any]
    """What its name is made of; empty where that cannot be read."""
    num_rows: int
    num_bytes: int
    last_used: float
    """[s since 1970]"""
    in_use: bool

    @property
    def name(self) -> str:
        """The digest that names it."""
        return self.folder.name


class Fault(NamedTuple):
    """A file that is not as it was written, or of which nobody can tell."""

    path: Path
    why: str
    is_damaged: bool
    """False where it cannot be read now, which says nothing about what it holds."""


class Pruned(NamedTuple):
    """What became of the shards that had to go."""

    removed: list[tuple[Path, int]]
    """Those that went, or would, with their sizes [bytes]."""
    left: list[tuple[Path, str]]
    """Those that could not be removed, or not be read where damaged ones had to go; and why."""


def entries(root: Path) -> list[Found]:
    """Every entry, the last used first."""
    found = []
    for folder in _folders(root):
        files = _shards(folder)
        found.append(
            Found(
                folder=folder,
                about=_about(folder),
                num_rows=sum(shards.num_rows(path) for _, _, path in files),
                num_bytes=sum(size for _, size, _ in files),
                last_used=_last_used(folder),
                in_use=_is_in_use(folder),
            )
        )
    return sorted(found, key=lambda one: -one.last_used)


def faults(folder: Path) -> Iterator[Fault]:
    """What of an entry is not as it was written, or cannot be read."""
    about = folder / ABOUT
    try:
        if name_of(_read_about(folder)["key"]) != folder.name:
            raise ValueError
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        yield Fault(about, "it does not say what the entry's name is made of", True)
    except OSError as error:
        yield Fault(about, error.strerror or str(error), False)
    for _, _, path in _shards(folder):
        fault = _fault(path)
        if fault is not None:
            yield fault


def prune(
    root: Path,
    max_bytes: float,
    *,
    unused_since: float = 0.0,
    damaged: bool = False,
    only: Iterable[Path] | None = None,
    own: Entry | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Removes the shards that were not used for longest until the others fit.

    What a process uses just now stays, whatever that comes to, and so does what the store did not
    make: folders and files of other names.

    Args:
        max_bytes: what all entries may take together.
        unused_since: also remove what was not used since [s since 1970].
        damaged: also remove what does not hold what was written.
        only: remove nothing but from these entries.
        own: an entry of this process, of which the shards in use stay; after a run, that is, and
            what could not be removed is said.
        dry_run: remove nothing.
    """
    everything = _folders(root)
    files = sorted(one for folder in everything for one in _shards(folder))
    total = sum(size for _, size, _ in files)
    pruned = Pruned([], [])
    with contextlib.ExitStack() as stack:
        folders = [*everything] if only is None else [*only]
        free = {folder for folder in folders if stack.enter_context(_unused(folder, own))}
        used_here = own.used if own is not None else set()
        for used, size, path in files:
            if path.parent not in free or path in used_here:
                continue
            if total > max_bytes or used < unused_since or (damaged and _is_damaged(path, pruned)):
                total -= size if _remove(path, size, pruned, dry_run) else 0
        for folder in free if not dry_run else ():
            if own is None or folder != own.folder:
                _remove_empty(folder)
    if own is not None and pruned.left:
        path, why = pruned.left[0]
        print(
            f"note: {len(pruned.left):,} shards of stored references could not be removed, such as "
            f"{path} ({why})",
            file=sys.stderr,
        )
    return pruned


def size_limit(environment: Mapping[str, str]) -> float:
    """Bytes that all entries may take, from the environment.

    Raises RecipeError where the variable is no size.
    """
    given = environment.get(SIZE_VARIABLE)
    if given is None or not given.strip():
        return MAX_BYTES
    return parse_size(SIZE_VARIABLE, given)


def parse_size(name: str, given: str) -> float:
    """Bytes: 500MB, 20GB, 1.5TB, a number, or none for no limit. Raises RecipeError."""
    text = given.strip().lower()
    if text == "none":
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text)
    if match is None:
        raise RecipeError(
            f"{name}={given!r} is no size; allowed: bytes, or such as 500MB, 20GB, 1.5TB; "
            "0 keeps nothing on disk, none has no limit"
        )
    unit = _UNITS[match[2]]
    if match[3]:
        unit = 1024 ** list(_UNITS).index(match[2])
    return float(match[1]) * unit


def _folders(root: Path) -> list[Path]:
    """Of entries: what else lies there is not the store's."""
    folders = root.iterdir() if root.is_dir() else []
    return [folder for folder in folders if is_name(folder.name) and folder.is_dir()]


def _shards(folder: Path) -> list[tuple[float, int, Path]]:
    """When they were last used, their sizes and paths."""
    found = []
    for path in folder.glob(f"*{shards.SUFFIX}"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if shards.is_shard(path.name):
                known = path.stat()
                found.append((known.st_mtime, known.st_size, path))
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        return _read_about(folder)
    except (OSError, ValueError, TypeError):
        return {}


def _read_about(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / ABOUT).read_text()))


def _is_in_use(folder: Path) -> bool:
    with _unused(folder, None) as free:
        return not free


@contextlib.contextmanager
def _unused(folder: Path, own: Entry | None) -> Iterator[bool]:
    """Whether nobody uses an entry, which stays so while the block runs."""
    if own is not None and folder == own.folder:
        with own.alone() as alone:
            yield alone
        return
    lock = None
    try:
        lock = hold(folder / LOCK, create=False)
    except OSError:  # no locks here, or nothing may be written
        yield _last_used(folder) < time.time() - _UNLOCKED_USE
        return
    if lock is None:
        yield False
        return
    with lock:
        yield True


def _fault(path: Path) -> Fault | None:
    try:
        Shard(path).check()
    except DamagedError as error:
        return Fault(path, str(error), True)
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        return Fault(path, error.strerror or str(error), False)
    return None


def _is_damaged(path: Path, pruned: Pruned) -> bool:
    """Whether a shard is; one that cannot be read is left and noted."""
    fault = _fault(path)
    if fault is not None and not fault.is_damaged:
        pruned.left.append((path, f"it cannot be read: {fault.why}"))
    return fault is not None and fault.is_damaged


def _remove(path: Path, size: int, pruned: Pruned, dry_run: bool) -> bool:
    """Whether a shard is gone, or would be; noted either way."""
    try:
        if not dry_run:
            path.unlink()
    except FileNotFoundError:  # somebody else removed it
        return True
    except OSError as error:
        pruned.left.append((path, f"it cannot be removed: {error.strerror or error}"))
        return False
    pruned.removed.append((path, size))
    return True


def _remove_empty(folder: Path) -> None:
    """An entry without shards goes whole; who waits for its lock makes it anew.

    Where somebody else put a file there, all of it stays.
    """
    with contextlib.suppress(OSError):
        claimed = folder / claims.FOLDER
        own = [path for path in folder.iterdir() if path != claimed]
        claim_files = [*claimed.iterdir()] if claimed.is_dir() else []
        if all(map(_is_ours, own)) and all(claims.is_claim(path.name) for path in claim_files):
            # The lock goes last: without it a new process could take the entry meanwhile.
            for path in (*claim_files, *sorted(own, key=lambda path: path.name == LOCK)):
                path.unlink()
            if claimed.is_dir():
                claimed.rmdir()
            folder.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether the store made this file of an entry without shards."""
    return path.name in (ABOUT, LOCK) or is_temporary(path.name)


def _last_used(folder: Path) -> float:
    """[s since 1970]; of an entry without shards, when its folder was last changed."""
    try:
        return max((used for used, _, _ in _shards(folder)), default=os.stat(folder).st_mtime)
    except OSError:
        return 0.0
