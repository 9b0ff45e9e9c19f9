"""Rows before they are comparisons: what was read, from where, and why some are set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXCERPT_LENGTH = 160
"""Characters of a row that a report shows."""


@dataclass(frozen=True)
class Row:
    """One object of a source, as it was read."""

    source: str
    """Name of the data set."""
    line: int
    """Line of a text file, else the number of the row; from 1."""
    value: Mapping[str, Any]

    @property
    def row_id(self) -> str:
        """`<source>:<line>`."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class SetAside:
    """A row that is not used, and why."""

    source: str
    line: int
    reason: str
    """One of a few short names, counted in the report."""
    detail: str = ""
    excerpt: str = ""

    @property
    def row_id(self) -> str:
        """`<source>:<line>`."""
        return f"{self.source}:{self.line}"


class RowError(Exception):
    """Raised for a row that cannot be used; becomes a SetAside, never reaches the user."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def excerpt(value: Any) -> str:
    """The start of a row as one printable line."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            value = f"({type(value).__name__} too deep to show)"
    flat = " ".join(value.split())
    flat = flat.encode("utf-8", "backslashreplace").decode("utf-8")
    return flat if len(flat) <= EXCERPT_LENGTH else flat[: EXCERPT_LENGTH - 1] + "…"
