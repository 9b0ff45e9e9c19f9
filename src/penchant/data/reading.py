"""Rows into comparisons one after another: what is in memory does not grow with the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from penchant.data.contamination import Contamination
from penchant.data.formats import ROWS_LOOKED_AT, Reader, detect
from penchant.data.rows import Row, RowError, SetAside, excerpt
from penchant.data.source import Source, parse_sources, read_rows
from penchant.types import Comparison


@dataclass
class ComparisonStream:
    """Comparisons and rows set aside, in the order of the sources; each iteration reads anew.

    The counts are those of the rows read so far in the last iteration.
    """

    sources: tuple[Source, ...]
    format: str = "auto"
    seed: int = 42
    default_split: str = "train"
    prompts: Contamination | None = None
    """Evaluation prompts whose rows are set aside."""
    formats: dict[str, str] = field(default_factory=dict, init=False)
    """Name of the format that each data set was read as, from its first row on."""
    unread: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    """Columns of each data set that its format does not look at."""
    left_out: int = field(default=0, init=False)
    """Rows that `fraction` or `rows` did not draw; they count nowhere else."""
    rows_used: int = field(default=0, init=False)
    set_aside: Counter[str] = field(default_factory=Counter, init=False)
    """Rows by reason."""

    @property
    def rows_in(self) -> int:
        """Rows read: the usable ones and those set aside."""
        return self.rows_used + self.set_aside.total()

    def __iter__(self) -> Iterator[Comparison | SetAside]:
        self.formats, self.unread, self.set_aside = {}, {}, Counter()
        self.left_out = self.rows_used = 0
        for source in self.sources:
            for row in self._read(source):
                if isinstance(row, SetAside):
                    self.set_aside[row.reason] += 1
                else:
                    self.rows_used += 1
                yield row

    def _read(self, source: Source) -> Iterator[Comparison | SetAside]:
        rows, left_out = read_rows(source, self.seed, self.default_split)
        self.left_out += left_out
        values, rows = looked_at(rows)
        reader = detect(values, source.name, source.format or self.format)
        self.formats[source.name] = reader.label
        self.unread[source.name] = unread_columns(values, reader)
        for row in rows:
            yield row if isinstance(row, SetAside) else self._comparison(row, reader)

    def _comparison(self, row: Row, reader: Reader) -> Comparison | SetAside:
        try:
            comparison = reader.read(row.value, row.row_id, row.source)
            if self.prompts is not None:
                self.prompts.check(comparison)
        except RecursionError:
            return SetAside(row.source, row.line, "broken_line", "nested too deep")
        except RowError as error:
            shown = excerpt(row.value)
            return SetAside(row.source, row.line, error.reason, error.detail, shown)
        return comparison


def looked_at(
    rows: Iterator[Row | SetAside],
) -> tuple[list[Mapping[str, Any]], Iterator[Row | SetAside]]:
    """The first rows' values, which say what the format is, and all rows to be read."""
    first: list[Row | SetAside] = []
    values: list[Mapping[str, Any]] = []
    for row in rows:
        first.append(row)
        values += [row.value] if isinstance(row, Row) else []
        if len(values) == ROWS_LOOKED_AT:
            break
    return values, chain(first, rows)


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were looked at."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)


def unread_columns(values: Sequence[Any], reader: Reader) -> tuple[str, ...]:
    """Columns of some rows that reading them never asks for, in their order."""
    columns: dict[str, None] = {}
    seen: set[str] = set()
    for value in values:
        row = _Watched(value)
        try:
            reader.read(row, "", "")
        except (RowError, RecursionError):
            continue  # left early: what it did not get to is not known to be unread
        columns |= dict.fromkeys(row)
        seen |= row.seen
    return tuple(name for name in columns if name not in seen)


def read_comparisons(
    path: Any,
    *,
    format: str = "auto",
    seed: int = 42,
    decontaminate: Sequence[Any] = (),
    default_split: str = "train",
) -> ComparisonStream:
    """Comparisons one after another, for files larger than memory; arguments as of `load`.

    Raises DataError for what names no source; everything else comes with the rows, as `load`
    raises it.
    """
    prompts = Contamination.read(decontaminate) if decontaminate else None
    return ComparisonStream(parse_sources(path), format, seed, default_split, prompts)
