"""Contestants of a case take turns, step by step: each a process of its own that waits meanwhile.

Every round sees all of them within a minute or two, so that what the machine does by the hour
meets all alike, and a model is set up once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from step_contention import OtherPrograms

MEASURE = Path(__file__).parent / "step_measure.py"
MOST_STEPS = 5
"""Of a turn, where steps are short."""


class Contestant:
    """A process that makes a step when it is told to; a context that ends it."""

    def __init__(self, asked: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.name = asked["contestant"]
        self.ended: dict[str, Any] = {}
        """`record`, or `left_out` or `failed` with the reason; empty while it waits."""
        handle, name = tempfile.mkstemp()
        self._errors = Path(name)
        self._process = subprocess.Popen(
            [sys.executable, str(MEASURE), json.dumps(asked)],
            env=os.environ | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
        )
        os.close(handle)
        self._hear()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.unlink()

    def step(self) -> dict[str, float]:
        """Seconds of one step, and cores that all other programs used; nothing if it failed."""
        with OtherPrograms(self._process.pid) as others:
            step = self._tell("go")
        return step | ({"other_cores": others.cores} if step and others.cores is not None else {})

    def stop(self) -> dict[str, Any]:
        """Ends it; what it has measured of itself, or why it could not."""
        if not self.ended:
            self._tell("stop")
        return self.ended

    def _tell(self, what: str) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it died between its steps
            pass
        return self._hear()

    def _hear(self) -> dict[str, float]:
        """The step before, once it waits again; nothing where it has ended, `ended` says how."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = _message(line)
            if "waiting" in said:
                return dict(said["waiting"])
            if "record" in said:
                record = said["record"]
                self.ended = record if "left_out" in record else {"record": record}
        if not self.ended:
            code = self._process.wait()
            lines = self._errors.read_text().strip().splitlines() if code > 0 else []
            self.ended = {"failed": lines[-1][:300] if lines else f"exit code {code}"}
        return {}


def _message(line: str) -> dict[str, Any]:
    """What our side of the process says; libraries print, too."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def sit(
    contestants: Sequence[Callable[[], Contestant]],
    runs: int,
    tries: int,
    seconds: float,
    is_usable: Callable[[dict[str, Any]], bool],
    tell: Callable[[str, dict[str, Any]], None],
) -> dict[str, dict[str, Any]]:
    """All are set up one after the other and make a step to warm up; then they take turns.

    Args:
        contestants: start the processes.
        runs: usable turns that each is to have, within so many `tries`.
        seconds: a turn's steps repeat until they took so long, MOST_STEPS at most.
        tell: called with a name and its turn.
    Returns:
        By name: `about` (the process's record), `runs` and `discarded`; or `left_out` or `failed`.
    """
    with ExitStack() as open_ones:
        there = [open_ones.enter_context(start()) for start in contestants]
        found: dict[str, dict[str, Any]] = {
            one.name: {"runs": [], "discarded": []} for one in there
        }
        for one in there:
            if not one.ended:
                one.step()
        for _ in range(tries):
            for one in there:
                place = found[one.name]
                if one.ended or len(place["runs"]) >= runs:
                    continue
                run = _turn(one, seconds)
                if run:
                    usable = is_usable(run)
                    place["runs" if usable else "discarded"].append(run)
                    tell(one.name, run | {"usable": usable})
        for one in there:
            ended = one.stop()
            found[one.name] |= {"about": ended["record"]} if "record" in ended else ended
            tell(one.name, ended)
    return found


def _turn(one: Contestant, seconds: float) -> dict[str, Any]:
    """The steps of one turn as one run; nothing where it failed."""
    steps: list[dict[str, float]] = []
    while len(steps) < MOST_STEPS and sum(step["seconds"] for step in steps) < max(seconds, 1e-9):
        step = one.step()
        if not step:
            return {}
        steps.append(step)
    wall = sum(step["seconds"] for step in steps)
    others = [step["other_cores"] * step["seconds"] for step in steps if "other_cores" in step]
    return {
        "seconds": statistics.median(step["seconds"] for step in steps),
        "steps": len(steps),
        "cores": sum(step["cpu_seconds"] for step in steps) / wall,
        "other_cores": sum(others) / wall if len(others) == len(steps) else None,
    }
