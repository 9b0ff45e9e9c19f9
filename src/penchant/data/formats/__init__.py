"""Source formats, one per file; dropping a file here makes it known, no list to extend.

A format is a module with `NAME`, `matches(columns, row) -> bool` (recognised by its columns) and
`read(row, row_id, source) -> Comparison`, which raises RowError where a row cannot be used.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from penchant.errors import DataError
from penchant.types import Comparison

_ROWS_LOOKED_AT = 100


class Format(Protocol):
    """What a module of this folder offers."""

    NAME: str

    def matches(self, columns: frozenset[str], row: Mapping[str, Any]) -> bool:
        """Are these the columns of this format?"""
        ...

    def read(self, row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
        """The comparison in a row; raises RowError."""
        ...


@cache
def known() -> dict[str, Format]:
    """Every format by name, in alphabetical order."""
    modules = [
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    ]
    return {module.NAME: module for module in sorted(modules, key=lambda module: module.NAME)}


def usual_columns(values: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Columns that at least half of the first rows have; a damaged row decides nothing."""
    looked_at = values[:_ROWS_LOOKED_AT]
    counts = Counter(str(name) for value in looked_at for name in value)
    return frozenset(name for name, count in counts.items() if 2 * count >= len(looked_at))


def detect(values: Sequence[Mapping[str, Any]], source: str, wanted: str = "auto") -> Format:
    """The format of a data set.

    Args:
        values: its first rows.
        source: its name, for messages.
        wanted: a format's name, or "auto": by columns.
    Raises:
        DataError: unknown name; no format has these columns; more than one has.
    """
    formats = known()
    names = ", ".join(formats)
    if wanted != "auto":
        if wanted not in formats:
            raise DataError(f"data.format is {wanted!r}; known formats: auto, {names}")
        return formats[wanted]
    columns = usual_columns(values)
    full = next((value for value in values if columns <= set(value)), values[0] if values else {})
    found = [name for name, module in formats.items() if module.matches(columns, full)]
    if len(found) == 1:
        return formats[found[0]]
    shown = ", ".join(sorted(columns)) or "none"
    if found:
        raise DataError(
            f"{source}: the columns ({shown}) fit more than one format: {' and '.join(found)}; "
            f"say which with data.format={found[0]}"
        )
    raise DataError(
        f"{source}: no format has the columns found ({shown}); known formats: {names}; "
        "name one with data.format=..., or rename the columns to prompt, chosen, rejected"
    )
