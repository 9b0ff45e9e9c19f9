"""Trackers (`training.report_to`), by the names that Accelerate gives them."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from penchant.errors import MissingExtraError, RecipeError


def check_trackers(names: Sequence[str]) -> list[str]:
    """The names again. Raises, before any work, for one that is unknown or not installed."""
    known, there = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in names:
        if name not in known:
            raise RecipeError(f"training.report_to: given {name!r}, allowed: {' | '.join(known)}")
        if name not in there:
            raise MissingExtraError(
                f"training.report_to={name} needs a library that is not installed: "
                f"pip install {name.replace('_', '-')}"
            )
    return list(names)
