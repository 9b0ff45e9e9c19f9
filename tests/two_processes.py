"""Real processes on this machine, under torchrun: programs, and two that share some work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

PATIENCE = 300
"""Seconds; a launch that takes longer hangs."""
_ROOT = Path(__file__).resolve().parents[1]


def launched(
    *command: str, processes: int = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python with a script, or `-m` and a module, and its arguments; for one process as it is."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *command],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def results_of(module: str, folder: Path) -> list[dict[Any, Any]]:
    """What the two processes of a module that calls `take_part` came to, by rank."""
    done = launched("-m", module, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def take_part(work: Callable[[Path], dict[Any, Any]]) -> None:
    """As one of the two: does the work of its rank and leaves what it came to in the folder."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    torch.save(work(folder), folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole_gradients(model: torch.nn.Module) -> dict[str, Tensor | None]:
    """Every parameter's gradient by name, gathered where weights are split; all ranks must ask."""
    return {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
    }
