"""Claims: which rows a process computes just now, so that no other one does.

A claim is a file of keys that its process holds locked. It is made under a lock of the folder
(`claims/lock`), so that two processes never claim the same row; and it ends with its process: a
claim whose lock is free belongs to one that was killed, and the next one to look removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import numpy as np

from penchant.engine.reference import shards
from penchant.engine.reference.locks import Lock, hold
from penchant.engine.reference.shards import KEY

FOLDER = "claims"
_LOCK = "lock"
_SUFFIX = ".claim"
_NAME = re.compile(rf"[0-9a-f]+-[0-9a-f]{{12}}{re.escape(_SUFFIX)}")
_PATIENCE = 60.0
"""[s] to wait for the folder's lock, which is held for milliseconds."""


def is_claim(name: str) -> bool:
    """Whether a file in the folder of claims goes by a name that is made here."""
    return name == _LOCK or _NAME.fullmatch(name) is not None


@final
class Claim:
    """Some rows, kept from other processes until `release`."""

    def __init__(self, owner: str, lock: Lock | None) -> None:
        self.owner = owner
        """Names the process's work on it, also in what it writes."""
        self._lock = lock

    def release(self) -> None:
        """Lets others have what is not stored by now."""
        if self._lock is not None:
            self._lock.release(remove=True)


def new_owner() -> str:
    """A name for some work of this process that no other has."""
    return f"{os.getpid():x}-{os.urandom(6).hex()}"


NOTHING = Claim("", None)
"""A claim on no row."""


@final
class Claims:
    """The claims on the rows of an entry."""

    def __init__(self, folder: Path) -> None:
        self._entry, self._folder = folder, folder / FOLDER

    @contextlib.contextmanager
    def deciding(self) -> Iterator[np.ndarray | None]:
        """The keys that others hold; while the block runs, nobody else claims any.

        None where files cannot be locked there (or the lock's holder hangs): nobody is kept out.
        What is stored must be looked up within the block, after the claims were read: a row is
        stored first and given up then.
        """
        lock = None
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            lock = hold(self._folder / _LOCK, patience=_PATIENCE)
        if lock is None:
            yield None
            return
        with lock:
            yield self._claimed()

    def take(self, keys: Sequence[bytes], *, locked: bool) -> Claim:
        """Claims rows; called within `deciding`.

        Args:
            locked: whether it gave claims; without locks a claim keeps nobody out.
        """
        owner = new_owner()
        if not locked:
            return Claim(owner, None)
        path = self._folder / f"{owner}{_SUFFIX}"
        try:
            lock = hold(path)
            path.write_bytes(b"".join(keys))
        except OSError:  # a full disk: what is computed cannot be stored there either
            return Claim(owner, None)
        return Claim(owner, lock)

    def _claimed(self) -> np.ndarray:
        """The keys of all claims whose process is there; the others are removed."""
        found = [np.empty(0, KEY)]
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                lock = hold(path, create=False)
                if lock is not None:
                    shards.remove_remains(self._entry, path.stem)
                    lock.release(remove=True)
                    continue
                content = path.read_bytes()
            except OSError:  # given up meanwhile
                continue
            whole = len(content) // KEY.itemsize * KEY.itemsize
            found.append(np.frombuffer(content[:whole], KEY))
        return np.concatenate(found)
