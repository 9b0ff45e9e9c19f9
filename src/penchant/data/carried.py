"""Rows on their way through a command that adds to them: what was read, and what it left unread.

A row keeps the columns that its format does not look at, every response in its place, and the
`row_id` that an earlier command gave it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from penchant.data.formats import Reader, detect
from penchant.data.reading import looked_at, unread_columns
from penchant.data.rows import Row, RowError, SetAside, excerpt
from penchant.data.source import Source, parse_sources, read_rows
from penchant.types import Comparison

ROW_ID = "row_id"


@dataclass(frozen=True)
class CarriedRow:
    """One row of the input, usable or not."""

    row_id: str
    """The row's own, where it has one, else `<source>:<line>`."""
    comparison: Comparison | None
    set_aside: SetAside | None
    """Why there is no comparison."""
    columns: Mapping[str, Any]
    """What the format does not read; of a row set aside all."""
    num_empty: int = 0
    """Responses without text that the format leaves out."""


@dataclass
class CarriedRows:
    """The rows of some sources, in order; each iteration reads anew.

    The counts are those of the last iteration.
    """

    sources: tuple[Source, ...]
    format: str = "auto"
    seed: int = 42
    left_out: int = field(default=0, init=False)
    """Rows that `fraction` or `rows` did not draw; they count nowhere else."""
    num_empty: int = field(default=0, init=False)
    """Responses without text that their format leaves out, of the rows used."""

    @classmethod
    def of(cls, path: Any, *, format: str = "auto", seed: int = 42) -> CarriedRows:
        """Arguments as of `penchant.data.load`. Raises DataError for what names no source."""
        return cls(parse_sources(path), format, seed)

    def __iter__(self) -> Iterator[CarriedRow]:
        self.left_out = self.num_empty = 0
        for source in self.sources:
            rows, left_out = read_rows(source, self.seed)
            self.left_out += left_out
            values, rows = looked_at(rows)
            reader = _every(detect(values, source.name, source.format or self.format))
            for row in rows:
                found = _carried(row, reader)
                self.num_empty += found.num_empty
                yield found

    def count_and_digest(self) -> tuple[int, str]:
        """How many rows there are, and a digest of all that they say; one pass."""
        digest, num_rows = RowsDigest(), 0
        for row in self:
            digest.add(row)
            num_rows += 1
        return num_rows, digest.hexdigest()


@final
class RowsDigest:
    """A digest of rows one after another, of everything that is read of them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: CarriedRow) -> None:
        """The next row."""
        said = row.comparison or row.set_aside
        content = json.dumps([row.row_id, repr(said), row.columns], default=str, sort_keys=True)
        self._hash.update(content.encode("utf-8", "surrogatepass") + b"\n")

    def hexdigest(self) -> str:
        """Of the rows so far."""
        return self._hash.hexdigest()


def _carried(row: Row | SetAside, reader: Reader) -> CarriedRow:
    if isinstance(row, SetAside):
        return CarriedRow(row.row_id, None, row, {})
    given = row.value.get(ROW_ID)
    row_id = given if isinstance(given, str) and given else row.row_id
    try:
        comparison = _chosen_first(reader.read(row.value, row.row_id, row.source))
        names = unread_columns([row.value], reader)
    except RecursionError:
        lost = SetAside(row.source, row.line, "broken_line", "nested too deep")
        return CarriedRow(row_id, None, lost, {})
    except RowError as error:
        lost = SetAside(row.source, row.line, error.reason, error.detail, excerpt(row.value))
        return CarriedRow(row_id, None, lost, dict(row.value))
    columns = {name: row.value[name] for name in names if name != ROW_ID}
    if hasattr(reader.module, "more_columns"):
        columns = reader.module.more_columns(row.value, reader.choice) | columns
    num_given = getattr(reader.module, "num_given", None)
    num_empty = num_given(row.value) - len(comparison.responses) if num_given else 0
    return CarriedRow(row_id, comparison, None, columns, num_empty)


@dataclass(frozen=True)
class _Every:
    """A format that keeps empty responses in their places."""

    NAME: str
    read: Callable[[Mapping[str, Any], str, str], Comparison]


def _every(reader: Reader) -> Reader:
    """The reader, keeping every response where its format can."""
    read_every = getattr(reader.module, "read_every", None)
    return Reader(_Every(reader.module.NAME, read_every)) if read_every is not None else reader


def _chosen_first(comparison: Comparison) -> Comparison:
    """The chosen response of a pair in the first place."""
    if comparison.pairs != ((1, 0),) or len(comparison.responses) != 2:
        return comparison
    return replace(
        comparison,
        responses=_reversed(comparison.responses),
        scores=None if comparison.scores is None else _reversed(comparison.scores),
        labels=None if comparison.labels is None else _reversed(comparison.labels),
        pairs=((0, 1),),
    )


def _reversed(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(reversed(values))
