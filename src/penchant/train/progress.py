"""What a person sees while a run goes on: a live line, or plain lines without a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import final

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_LINES = 10
"""How many lines a phase prints where the output is not a terminal."""


@final
class ProgressLine:
    """One phase of a run (reference pass, training, evaluation): use as a context manager."""

    def __init__(self, name: str, total: int, unit: str, console: Console | None = None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.console = console or Console(stderr=True, quiet=not is_main_process())
        self._done = 0
        self._before = 0
        self._tokens = 0
        self._text = ""
        self._start = time.monotonic()
        self._printed = 0
        self._live: Live | None = None

    def __enter__(self) -> ProgressLine:
        self._start = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def advance(
        self, done: int = 1, *, tokens: int = 0, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Counts work done; `metrics` are shown as they were last given."""
        self._done += done
        self._tokens += tokens
        if metrics is not None:
            self._text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._live is not None:
            self._live.update(self._render())
        elif self._done * PLAIN_LINES // max(self.total, 1) > self._printed:
            self._printed = self._done * PLAIN_LINES // max(self.total, 1)
            if not self.console.quiet:
                print(self._render().plain, file=sys.stderr, flush=True)

    def skip(self, done: int) -> None:
        """Work that was done before this phase began, by an interrupted run: it took no time."""
        self._done = self._before = done
        self._printed = done * PLAIN_LINES // max(self.total, 1)

    def _render(self) -> Text:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self.name}  {self.unit} {self._done}/{self.total}"]
        if self._text:
            parts.append(self._text)
        if self._tokens:
            parts.append(f"{_short(self._tokens / elapsed)} tokens/s")
        if self._before < self._done < self.total:
            left = elapsed / (self._done - self._before) * (self.total - self._done)
            parts.append(f"{_clock(left)} left")
        else:
            parts.append(_clock(elapsed))
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


def is_main_process() -> bool:
    """Whether this process of a launch is the one that prints; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
