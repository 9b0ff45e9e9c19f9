"""Source formats, one per file; dropping a file here makes it known, no list to extend.

A format is a module with `NAME`, `matches(columns, row) -> bool` (recognised by its columns) and
`read(row, row_id, source) -> Comparison`, which raises RowError where a row cannot be used.
It may also have

- `choices(row) -> tuple[str, ...]`, where a row can be read in several ways; `read` then has a
  fourth argument, the one chosen by `data.format=name:choice`, and `DEFAULT_CHOICE` may name one;
- `to_rows(comparison) -> list[dict]`, which makes it a format that `penchant.data.write` writes,
  and `DRAWS_PAIRS = True` where it wants pairs drawn from scores first;
- `read_every`, which is `read` with empty responses kept in their places, so that columns with a
  value per response still fit;
- `num_given(row) -> int`, where `read` leaves empty responses out and nothing keeps them: how many
  the row has with those;
- `more_columns(row, choice) -> dict`, columns with a value per response that the row says in
  another way, for commands that carry columns along;
- `MAX_PAIRS_PER_PROMPT`, the cap where the recipe sets none.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from penchant.data.rows import excerpt
from penchant.errors import DataError
from penchant.types import Comparison

ROWS_LOOKED_AT = 100
"""Rows that decide on the format."""


class Format(Protocol):
    """What every module of this folder offers."""

    NAME: str

    def matches(self, columns: frozenset[str], row: Mapping[str, Any]) -> bool:
        """Are these the columns of this format?"""
        ...

    def read(self, row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
        """The comparison in a row; raises RowError."""
        ...


@dataclass(frozen=True)
class Reader:
    """A format with what was chosen of it."""

    module: Any
    choice: str | None = None

    @property
    def label(self) -> str:
        """As `data.format` would say it."""
        return self.module.NAME if self.choice is None else f"{self.module.NAME}:{self.choice}"

    def read(self, row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
        """The comparison in a row; raises RowError."""
        if self.choice is None:
            return self.module.read(row, row_id, source)
        return self.module.read(row, row_id, source, self.choice)


@cache
def known() -> dict[str, Format]:
    """Every format by name, in alphabetical order."""
    modules = [
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    ]
    return {module.NAME: module for module in sorted(modules, key=lambda module: module.NAME)}


def max_pairs_per_prompt(name: str) -> int | None:
    """The cap of a format where the recipe sets none."""
    return getattr(known().get(name), "MAX_PAIRS_PER_PROMPT", None)


def usual_columns(values: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Columns that at least half of the first rows have; a damaged row decides nothing."""
    looked_at = values[:ROWS_LOOKED_AT]
    counts = Counter(str(name) for value in looked_at for name in value)
    return frozenset(name for name, count in counts.items() if 2 * count >= len(looked_at))


def detect(values: Sequence[Mapping[str, Any]], source: str, wanted: str = "auto") -> Reader:
    """The format of a data set.

    Args:
        values: its first rows.
        source: its name, for messages.
        wanted: a format's name, with a choice after a colon where it has any; or "auto": by
            columns.
    Raises:
        DataError: unknown name or choice; no format has these columns; more than one has.
    """
    name, _, choice = wanted.partition(":")
    if wanted == "auto":
        module: Any = _by_columns(values, source)
    elif name in known():
        module = known()[name]
    else:
        names = ", ".join(known())
        raise DataError(f"data.format is {wanted!r}; known formats: auto, {names}")
    return Reader(module, _choice(module, choice or None, values, source))


def _by_columns(values: Sequence[Mapping[str, Any]], source: str) -> Format:
    columns = usual_columns(values)
    looked_at = values[:ROWS_LOOKED_AT]
    full = [value for value in looked_at if columns <= set(value)] or looked_at[:1] or [{}]
    found = {
        name: module
        for name, module in known().items()
        if 2 * sum(module.matches(columns, value) for value in full) >= len(full)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    shown = ", ".join(sorted(columns)) or "none"
    if found:
        raise DataError(
            f"{source}: the columns ({shown}) fit more than one format: {' and '.join(found)}; "
            f"say which with data.format={next(iter(found))}"
        )
    raise DataError(
        f"{source}: no format has the columns found ({shown}); known formats: "
        f"{', '.join(known())}; "
        "name one with data.format=..., or rename the columns to prompt, chosen, rejected"
    )


def _choice(
    module: Any, given: str | None, values: Sequence[Mapping[str, Any]], source: str
) -> str | None:
    """The way in which a format's rows are read; None where there is only one."""
    if not hasattr(module, "choices"):
        if given is not None:
            raise DataError(f"data.format is {module.NAME}:{given}, but it has no choice")
        return None
    allowed = sorted(
        {choice for value in values[:ROWS_LOOKED_AT] for choice in module.choices(value)}
    )
    if given is None and hasattr(module, "DEFAULT_CHOICE"):
        return module.DEFAULT_CHOICE
    if given in allowed:
        return given
    # They come from the rows, and may hold anything.
    shown = [excerpt(choice) for choice in allowed]
    first = shown[0] if shown else "..."
    asked = "needs a choice" if given is None else f"has no {given!r}"
    raise DataError(
        f"{source}: the format {module.NAME} {asked}; say which of {', '.join(shown) or 'none'} "
        f"with data.format={module.NAME}:{first}"
    )
