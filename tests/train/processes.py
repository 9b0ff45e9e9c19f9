"""Runs of the command line as processes of their own, to be killed, signalled and starved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands.world import recipe

PATIENCE = 240
"""Seconds until a process that should have come to something counts as hung."""


def start(world: Path, *, before: Callable[[], None] | None = None, **changes: Any) -> Any:
    """`penchant train` in a new process, with what it prints collected.

    Args:
        before: runs in the child ahead of Python, for limits.
    """
    given = [f"{key}={json.dumps(value)}" for key, value in recipe(world, **changes).items()]

    def ready() -> None:
        # A shell's background job would hand down an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-m", "penchant.cli", "train", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a killed process printed is not to be lost with its buffers.
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=ready,
    )


def wait_until(process: Any, ready: Callable[[], bool], pause: float = 0.002) -> bool:
    """Polls until something is there; False where the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"hung: {process.communicate()[1][-2000:]}")
        time.sleep(pause)
    return True


def finish(process: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process, which gets no longer than our patience."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def num_rows(run: Path) -> int:
    """Lines of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
