"""An entry: what one model, computed in one way, says of every row that was ever asked of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from penchant.engine.reference import shards
from penchant.engine.reference.claims import NOTHING, Claim, Claims
from penchant.engine.reference.locks import Lock, hold
from penchant.engine.reference.shards import KEY, DamagedError, Shard

ABOUT = "about.json"
LOCK = "lock"
_NAME = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"[0-9a-f]+-[0-9a-f]{12}\..+\.tmp|\d+\.\d+\.about\.tmp")
_PATIENCE = 60.0
"""[s] to wait while somebody removes shards."""
_ABANDONED = 24 * 3600
"""[s] after which a half-written file belongs to nobody, where no lock can say so."""


def is_name(name: str) -> bool:
    """Whether a folder goes by the name of an entry; others are not the store's."""
    return _NAME.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether a file of an entry goes by the name of one that is not whole yet."""
    return _TEMPORARY.fullmatch(name) is not None


@final
class Entry:
    """The shards of an entry, and an index of their rows. It is in use until it is freed."""

    def __init__(
        self, root: Path, name: str, about: Mapping[str, Any], *, hold_it: bool = True
    ) -> None:
        """Opens an entry, or begins it.

        Args:
            root: the folder of all entries.
            about: what the name is a digest of, for people; empty where that stands there.
            hold_it: keep it from being pruned; of the processes of a run one does so for all.
        Raises:
            OSError: it is not there and cannot be made or read.
        """
        if not is_name(name):
            raise FileNotFoundError(f"{name!r} is no entry's name")
        self.folder = root / name
        self._speaks = hold_it
        self._lock = self._begin(about)
        if not hold_it and self._lock is not None:
            self._lock.release()
        self._claims = Claims(self.folder)
        self._shards: list[Shard] = []
        self._known: set[str] = set()
        self._left_out: set[Path] = set()
        self.used: set[Path] = set()
        """Shards whose rows somebody here asked for."""
        self._keys_N = np.empty(0, KEY)
        self._shard_N = self._place_N = np.empty(0, np.int64)
        self._is_indexed = True
        self._take_in(os.listdir(self.folder))

    def __len__(self) -> int:
        """Rows stored, as of the last `refresh` or `write`."""
        self._index()
        return len(self._keys_N)

    def refresh(self) -> bool:
        """Takes in what others wrote meanwhile, and says whether there was something.

        Damaged shards are removed, and said so. What cannot be read stays and is left out.
        """
        try:
            return self._take_in(os.listdir(self.folder))
        except FileNotFoundError:
            return False
        except OSError as error:
            self._leave_out([(self.folder, error)])
            return False

    def find(self, keys_N: np.ndarray) -> np.ndarray:
        """Which keys are stored; what holds them is checked before the first use.

        A damaged shard is removed, said so, and its rows are not there any more.
        """
        while True:
            places = self._places(keys_N)
            found = places >= 0
            damaged = []
            for number in np.unique(self._shard_N[places[found]]):
                try:
                    self._shards[number].check()
                except DamagedError as error:
                    damaged.append(self._shards[number])
                    _put_away(damaged[-1].path, error)
            if not damaged:
                return found
            self._shards = [shard for shard in self._shards if shard not in damaged]
            self._is_indexed = False

    def get(self, key: bytes) -> Tensor | None:
        """The values of a row, in the memory that the file is mapped to; None where unknown."""
        self._index()
        place = int(np.searchsorted(self._keys_N, np.array(key, KEY)))
        if place == len(self._keys_N) or self._keys_N[place] != key.rstrip(b"\0"):
            return None
        shard = self._shards[self._shard_N[place]]
        if not shard.is_checked:  # it came after the last `find`
            return self.get(key) if self.find(np.array([key], KEY)).all() else None
        return shard.row(int(self._place_N[place]))

    def claim(
        self,
        keys_N: np.ndarray,
        costs_N: np.ndarray,
        most: float,
        *,
        is_new: bool = True,
        anyway: bool = False,
    ) -> tuple[Claim, list[int], np.ndarray]:
        """Claims the first rows that are neither stored nor claimed by others.

        Args:
            costs_N: of each row; together they come to `most`, or to one row.
            is_new: False where none of these rows was stored the last time it was asked.
            anyway: also what others claim.
        Returns:
            The claim, its rows as places in `keys_N`, and for every key whether it is stored.
        """
        with self._claims.deciding() as claimed:
            stored = np.zeros(len(keys_N), bool)
            if self.refresh() or is_new:
                stored = self.find(keys_N)
            free = ~stored
            if claimed is not None and len(claimed) and not anyway:
                free &= ~np.isin(keys_N, claimed)
            places = np.flatnonzero(free)
            num = int(np.searchsorted(np.cumsum(costs_N[places]), most, side="right"))
            chosen = places[: max(1, num)].tolist()
            taken = [bytes(keys_N[place]).ljust(KEY.itemsize, b"\0") for place in chosen]
            claim = self._claims.take(taken, locked=claimed is not None) if taken else NOTHING
        return claim, chosen, stored

    def write(self, owner: str, keys: Sequence[bytes], values: Sequence[Tensor]) -> None:
        """Stores rows as a new shard.

        Args:
            owner: of the claim that they belong to.
        Raises:
            OSError: nothing was stored.
        """
        path = shards.write(self.folder, owner, keys, values)
        self._known.add(path.name)
        try:
            shard = Shard(path)
            shard.check()
        except DamagedError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise OSError(f"{path.name} was written and is damaged: {error}") from error
        self._shards.append(shard)
        self._is_indexed = False

    def touch(self, keys_N: np.ndarray) -> None:
        """Notes that these rows were used now: what was not for longest is pruned first."""
        places = self._places(keys_N)
        for number in np.unique(self._shard_N[places[places >= 0]]):
            self.used.add(self._shards[number].path)
            with contextlib.suppress(OSError):  # a folder that may only be read
                os.utime(self._shards[number].path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else uses the entry, which stays so while the block runs."""
        alone = self._lock is not None and self._lock.exclusively()
        try:
            yield alone
        finally:
            if alone and self._lock is not None:
                self._lock.shared()

    def close(self) -> None:
        """The entry is not in use any more; it cannot be used after that."""
        if self._lock is not None:
            self._lock.release()
        self._shards, self._keys_N = [], np.empty(0, KEY)

    def _begin(self, about: Mapping[str, Any]) -> Lock | None:
        """Makes what is lacking and holds the entry; without a lock where there are none."""
        lock = None
        while True:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(parents=True)
            with contextlib.suppress(OSError):
                lock = hold(self.folder / LOCK, shared=True, patience=_PATIENCE)
            if self.folder.is_dir():  # else it was pruned in between
                break
        if about and not (self.folder / ABOUT).is_file():
            with contextlib.suppress(OSError):  # a full disk: only the name is lost
                temporary = self.folder / f"{os.getpid()}.{time.time_ns()}.about.tmp"
                temporary.write_text(json.dumps(dict(about), indent=2) + "\n")
                os.replace(temporary, self.folder / ABOUT)
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if is_temporary(path.name) and path.stat().st_mtime < time.time() - _ABANDONED:
                    path.unlink()
        return lock

    def _take_in(self, names: Iterable[str]) -> bool:
        """Whether there are new shards among the files of these names."""
        new, unreadable = [], []
        for name in sorted(names):
            if name not in self._known and shards.is_shard(name):
                self._known.add(name)
                path = self.folder / name
                try:
                    new.append(Shard(path))
                except DamagedError as error:
                    _put_away(path, error)
                except FileNotFoundError:  # removed meanwhile
                    pass
                except OSError as error:
                    unreadable.append((path, error))
        self._leave_out(unreadable)
        self._shards += new
        self._is_indexed &= not new
        return bool(new)

    def _index(self) -> None:
        """All rows by key, made when it is needed.

        Of a row that was stored twice, what was checked before, which so stays what it is; else
        the newer, as it may have been written because the older is damaged.
        """
        if self._is_indexed:
            return
        self._shards.sort(key=lambda shard: (shard.is_checked, shard.path.name), reverse=True)
        keys = [np.empty(0, KEY), *(shard.keys_N for shard in self._shards)]
        sizes = [len(shard.keys_N) for shard in self._shards]
        self._keys_N, first = np.unique(np.concatenate(keys), return_index=True)
        self._shard_N = np.repeat(np.arange(len(sizes)), sizes)[first]
        starts = np.cumsum([0, *sizes])[:-1]
        self._place_N = first - starts[self._shard_N] if sizes else first
        self._is_indexed = True

    def _places(self, keys_N: np.ndarray) -> np.ndarray:
        """Where keys stand in the index; -1 where they do not."""
        self._index()
        if not len(self._keys_N):
            return np.full(len(keys_N), -1, np.int64)
        places = np.searchsorted(self._keys_N, keys_N)
        places[places == len(self._keys_N)] = 0
        return np.where(self._keys_N[places] == keys_N, places, -1)

    def _leave_out(self, files: Sequence[tuple[Path, OSError]]) -> None:
        """Says what is not used in this run; the process that holds the entry does so for all."""
        files = [one for one in files if one[0] not in self._left_out]
        self._left_out.update(path for path, _ in files)
        if files and self._speaks:
            (path, error), num = files[0], len(files)
            what = f"{path} and {num - 1} more" if num > 1 else f"{path}"
            print(
                f"reference: {what} cannot be read now ({error.strerror or error}); nothing is "
                "removed, but this run does without the rows there",
                file=sys.stderr,
            )


def _put_away(path: Path, why: DamagedError) -> None:
    """Removes a damaged shard; of several processes that see it, the one that does so says so."""
    left = ""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        left = f"; it cannot be removed: {error.strerror or error}"
    print(
        f"reference: the shard {path} is damaged ({why}); its rows are computed again{left}",
        file=sys.stderr,
    )
