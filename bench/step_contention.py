"""What other programs use of the machine while a process works (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path


class OtherPrograms:
    """A context in which a process works, and this one waits.

    Afterwards `cores` says how many cores all others used, with what a host took away from this
    virtual machine (steal); None where the system does not tell.
    """

    def __init__(self, worker: int) -> None:
        """Takes the id of the process that works."""
        self.cores: float | None = None
        self._worker = worker
        self._before: tuple[float, float, float] | None = None

    def __enter__(self) -> OtherPrograms:
        self._before = self._now()
        return self

    def __exit__(self, *raised: object) -> None:
        after = self._now()
        if self._before is None or after is None:
            return
        wall, busy, own = (new - old for new, old in zip(after, self._before, strict=True))
        self.cores = max(0.0, busy - own) / wall if wall > 0 else 0.0

    def _now(self) -> tuple[float, float, float] | None:
        """Wall seconds, busy seconds of all processors, CPU seconds of the worker and this one."""
        all_of_them, worker = Path("/proc/stat"), Path(f"/proc/{self._worker}/stat")
        try:
            # user nice system idle iowait irq softirq steal; a guest's time is part of user's.
            ticks = [int(t) for t in all_of_them.read_text().splitlines()[0].split()[1:9]]
            # After the name in brackets come state and ids; the 12th and 13th are user and system.
            own = worker.read_text().rpartition(")")[2].split()[11:13]
        except (OSError, ValueError, IndexError):
            return None
        each = os.sysconf("SC_CLK_TCK")
        busy = (sum(ticks) - ticks[3] - ticks[4]) / each
        return time.perf_counter(), busy, sum(map(int, own)) / each + time.process_time()
