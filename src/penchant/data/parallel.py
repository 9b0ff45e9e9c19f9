"""Batches made into trees by several processes, in order, and never waiting for a dead one.

Processes are forked where the system can: they begin with the tokenizer already loaded, where a
fresh interpreter spends two seconds on imports. A forked one never touches torch or a device.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from penchant.data.making import Made, Maker
from penchant.data.plan import Planned
from penchant.data.store import Columns, Trees, pack
from penchant.errors import WorkerError

SMALL = 2000
"""Rows below which further processes are not worth their start."""
MOST = 16
"""Processes that are used unasked; beyond, the one that reads and counts is what limits."""
BATCH = 256
"""Rows that go to a process at once."""
_BATCHES_AHEAD = 3
"""Batches per process that are waiting or done; more would only take memory."""


@dataclass(frozen=True)
class MadeBatch:
    """Rows with what became of them."""

    planned: list[Planned]
    made: list[Made]
    columns: Columns | None = None
    """The trees as flat arrays, where another process made them."""


def num_processes(asked: int | None, num_rows: int) -> int:
    """How many processes make trees: as asked; else this one, or one per core for large data."""
    if multiprocessing.current_process().daemon:
        return 1  # A daemon may not have children.
    if asked is not None:
        return asked
    if num_rows < SMALL:
        return 1
    return max(1, min(num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), MOST))


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def spared_garbage() -> Iterator[None]:
    """Meanwhile the garbage collector leaves alone what is there: modules, mostly.

    It would walk over all of it again and again, which took 7 % of the time.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def make_batches(
    maker: Maker, planned: Iterable[Planned], processes: int, start_method: str | None = None
) -> Iterator[MadeBatch]:
    """The rows in order, batch by batch, each with its outcome.

    Args:
        processes: 1: this one makes the trees itself.
        start_method: how others start; default: fork on Linux, else spawn.
    Raises:
        DataError: as the maker does.
        WorkerError: a process died.
    """
    batches = _batched(planned)
    if processes == 1:
        for batch in batches:
            yield MadeBatch(batch, maker.make(batch))
        return
    method = start_method or ("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context(method), initializer=_begin, initargs=(maker,)
    )
    try:
        yield from _in_order(pool, batches, processes * _BATCHES_AHEAD)
    except BrokenProcessPool as error:
        raise WorkerError(
            f"one of {processes} processes that tokenise died (killed, perhaps because memory ran "
            "out); give data.num_proc a smaller number, 1 to do without them"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batched(planned: Iterable[Planned]) -> Iterator[list[Planned]]:
    batch: list[Planned] = []
    for one in planned:
        batch.append(one)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_order(
    pool: ProcessPoolExecutor, batches: Iterable[list[Planned]], ahead: int
) -> Iterator[MadeBatch]:
    waiting: deque[tuple[list[Planned], Future[Any]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(_make, batch)))
        if len(waiting) >= ahead:
            yield _unpacked(*waiting.popleft())
    while waiting:
        yield _unpacked(*waiting.popleft())


def _unpacked(planned: list[Planned], future: Future[Any]) -> MadeBatch:
    made, columns = future.result()
    trees = iter(Trees(columns))
    for one in made:
        if one.error is None:
            one.tree = next(trees)
    return MadeBatch(planned, made, columns)


_maker: Maker | None = None
"""Of a process that makes trees."""


def _begin(maker: Maker) -> None:
    """Runs once in each process."""
    global _maker
    _maker = maker
    # Ctrl-C is for the process that the user sees; threads within processes only get in the way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing; without this its children would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _make(batch: list[Planned]) -> tuple[list[Made], Columns]:
    assert _maker is not None, "the process was not begun"
    made = _maker.make(batch)
    columns = pack([one.tree for one in made if one.tree is not None])
    for one in made:
        one.tree = None  # It travels in the columns.
    return made, columns
