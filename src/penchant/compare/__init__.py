"""Comparing models fairly: intervals and paired tests, and what run folders say of themselves."""

from __future__ import annotations

from penchant.compare.collect import Run, read_run
from penchant.compare.stats import (
    Mean,
    PairedDifference,
    WinRate,
    mean_interval,
    paired_bootstrap,
    win_rate,
)

__all__ = [
    "Mean",
    "PairedDifference",
    "Run",
    "WinRate",
    "mean_interval",
    "paired_bootstrap",
    "read_run",
    "win_rate",
]
