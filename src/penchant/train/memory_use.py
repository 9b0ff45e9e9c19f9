"""Memory of this process and of its device: how much is free, how much was used at most.

On a CPU the limits of control groups (containers, batch systems) count as well as the machine's
memory, and what is free is shared out among the run's processes on this host.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import psutil
import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_GROUPS = Path("/sys/fs/cgroup")
_KERNELS = 128
"""oneDNN kernels kept: of some micro-batches, all layers of which share theirs; see docs/log.md."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = -1, 2**31 - 1
"""Of glibc's mallopt: its parameters, and values that mean no trimming, and blocks below 2 GiB."""
_UNLIMITED = 2**60
"""Where a control group has no limit, version 1 says a number beyond all memory."""


def free_bytes(device: torch.device, environment: Mapping[str, str] = os.environ) -> int:
    """What this process may still take: of a GPU what is free, of a host its share of that."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = min([psutil.virtual_memory().available, *control_group_room()])
    return free // local_processes(environment)


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of this run on this host, as launchers say."""
    return max(1, int(environment.get("LOCAL_WORLD_SIZE", "1")))


def control_group_room(
    membership: Path = Path("/proc/self/cgroup"), root: Path = _GROUPS
) -> list[int]:
    """Bytes that each limit above this process still allows; empty where there is no limit.

    Pages of files that were only read are not counted as used: the system takes them back.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, base = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        for folder in _upwards(base, path):
            rooms += _room(folder, *names)
    return rooms


def prepare(device: torch.device) -> None:
    """What a process that trains does first: bounds caches, keeps freed memory, has none unused."""
    bound_caches()
    keep_freed(device)
    release()


def bound_caches(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps oneDNN from holding memory for every size of batch that it has met.

    In bfloat16 each of its cached kernels owns scratch memory, and packed batches are all of
    different sizes: a run would grow by the activations of a layer or two per micro-batch, up to a
    thousand kernels. It reads these settings when it multiplies for the first time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        environment.setdefault(name, str(_KERNELS))


def keep_freed(device: torch.device, environment: Mapping[str, str] = os.environ) -> None:
    """Has glibc keep what is freed, on a CPU: in steps of one size it is soon needed again.

    As it comes it gives large blocks back at once, and the pages of every activation are made anew
    in every step, which can take as long as the arithmetic on them. `release` gives back what is
    unused. Where a MALLOC_ variable is set, its owner has decided.
    """
    if device.type != "cpu" or any(name.startswith("MALLOC_") for name in environment):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def release() -> None:
    """Gives back to system and device what is no longer needed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # What was freed and kept would hide what is taken next.
    _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def restart_peak(device: torch.device) -> None:
    """Starts counting the peak anew from what is in use, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif can_measure(device):
        _trim()
        _CLEAR.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory since `restart_peak`: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        return _status("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) * (1 if sys.platform == "darwin" else 1024)


def can_measure(device: torch.device) -> bool:
    """Whether the peak of a part of a run can be told from what came before it."""
    if device.type == "cuda":
        return True
    return sys.platform == "linux" and os.access(_CLEAR, os.W_OK)


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those above it; in a container its own may be the root."""
    folder = base / path.strip("/")
    yield folder
    while folder != base:
        folder = folder.parent
        yield folder


def _room(folder: Path, limit: str, usage: str, idle: str) -> list[int]:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= _UNLIMITED:
            return []
        used = int((folder / usage).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        return [max(0, int(most) - used + int(statistics.get(idle, 0)))]
    except (OSError, ValueError):
        return []


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
