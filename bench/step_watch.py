"""Times steps and watches memory, the same way for every side; and what a matrix product reaches.

A side calls `begin` and `end` around each step until `done`. The first step is the warm-up: it
makes the optimiser's state and compiles what is compiled, and its loss and gradient norm are those
that sides are compared by, since later ones depend on the update. The steps after it are timed,
each when it is this process's turn.

Memory: peak over the timed steps minus the resting level, which is taken after the last of them,
with gradients and whatever a side keeps for the next step gone, Python's garbage collected and
freed memory given back to the system: what stays is libraries, model, data and optimiser state. On
a CPU both are of the resident set (Linux), on CUDA of what torch allocated.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch


class Watch:
    """Steps of one process: wall and CPU seconds, peak memory."""

    MOST_STEPS: ClassVar[int] = 200

    def __init__(self, device: str, turn: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Takes steps in turn.

        Args:
            turn: told of the step before (nothing of it before the first), waits for this
                process's turn; False ends the run. None: one timed step, at once.
        """
        self.device = device
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.results: list[tuple[float, float]] = []
        """Loss and gradient norm of each step, before its update."""
        self._turn = turn or (lambda _: len(self.wall) < 2)
        self._is_my_turn = False
        self._started = (0.0, 0.0)
        self._peak: int | None = None

    @property
    def done(self) -> bool:
        """Whether no step is wanted any more; waits for the turn."""
        if not self._is_my_turn:
            step = {"seconds": self.wall[-1], "cpu_seconds": self.cpu[-1]} if self.wall else {}
            self._is_my_turn = self._turn(step)
        return not self._is_my_turn

    def begin(self) -> None:
        """A step starts now."""
        assert not self.done, "a step begins that nobody asked for"
        self._is_my_turn = False
        if (
            len(self.wall) == 1
        ):  # its fresh pages take time: one of several runs whose median counts
            give_back(self.device)
            reset_peak(self.device)
        synchronise(self.device)
        self._started = (time.perf_counter(), time.process_time())

    def end(self, loss: float | None = None, norm: float | None = None) -> None:
        """The step is over: weights updated, gradients gone."""
        synchronise(self.device)
        wall, cpu = self._started
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self._peak = peak_bytes(self.device)
        if loss is not None and norm is not None:
            self.results.append((loss, norm))

    def record(self) -> dict[str, Any]:
        """What was measured; call it while the side's objects still live."""
        resting = resting_bytes(self.device)
        known = self._peak is not None and resting is not None
        return {
            "warm_up_seconds": self.wall[0],
            "memory_bytes": self._peak - resting if known else None,  # type: ignore[operator]
            "resting_bytes": resting,
            "loss": self.results[0][0],
            "grad_norm": self.results[0][1],
        }


def synchronise(device: str) -> None:
    """Waits for the accelerator."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """From here on the peak counts anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int | None:
    """Most memory since the reset; None where the system does not say."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def resting_bytes(device: str) -> int | None:
    """Memory now, after giving back what is not in use."""
    give_back(device)
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def give_back(device: str) -> None:
    """Gives what is unused back to the system, so that what is kept is not taken for a need."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and device == "cpu":
        trim(0)


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def gemm_rate(device: str, dtype: torch.dtype, size: int, repetitions: int = 4) -> float:
    """Flops per second of the best of some products of square matrices of `size`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repetitions):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
