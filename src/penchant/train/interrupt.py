"""Signals that ask a run to end: SIGTERM (a scheduler) and SIGINT (Ctrl-C).

Where nothing is lost the run leaves at once; inside `held` it leaves at the next `check`. A second
Ctrl-C ends it wherever it is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

from penchant.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@final
class Interrupt:
    """Whether the run was asked to end, and whether it may do so now."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal's number."""
        self._held = False

    def check(self) -> None:
        """Raises Stopped where the run was asked to end."""
        if self.received is not None:
            raise self.stopped("stopped before training; run the same command to go on")

    def stopped(self, message: str) -> Stopped:
        """The exception for the signal that came, with a message."""
        assert self.received is not None, "no signal came"
        return Stopped(message, 128 + self.received)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Here a signal waits for `check`: for updates, and for writing."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Here a signal raises Stopped where it comes: for work that changes nothing."""
        before, self._held = self._held, False
        try:
            self.check()
            yield
        finally:
            self._held = before

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler."""
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # schedulers and launchers repeat themselves
        self.received = number
        if not self._held:
            self.check()
        elif os.isatty(2):
            # Not print: the handler may have come in the middle of one.
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")


@contextmanager
def watch() -> Iterator[Interrupt]:
    """Listens while the block runs; the handlers that were there come back.

    Outside the main thread, where Python allows no handlers, nothing is heard. A signal that the
    process was started to ignore (nohup, a shell's background job) stays ignored.
    """
    interrupt = Interrupt()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt.handle)
    try:
        yield interrupt
    finally:
        for listened, handler in before.items():
            signal.signal(listened, handler)
