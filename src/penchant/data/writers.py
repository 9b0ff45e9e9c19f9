"""Writers of single files: JSONL, JSON, Parquet, CSV, TSV, all but Parquet also as .gz.

Rows go out as they come. A table (Parquet, CSV, TSV) has the columns of its first rows; nested
values are JSON text in its cells, but for messages in Parquet, which are lists of structs.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from penchant.data.files import cell, kind

MESSAGE_KEYS = ("role", "content", "name", "tool_call_id", "tool_calls")
"""What a turn may hold in a Parquet file."""
TURN_KEYS = ("from", "value")
_JSON_COLUMNS = ("tools", "chat_template_kwargs")


class Writer(Protocol):
    """A file that is being written."""

    def held(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row as a reader of the file will see it; None where it does not fit in."""
        ...

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes one row."""
        ...


@contextmanager
def open_writer(path: Path, first: Sequence[Mapping[str, Any]]) -> Iterator[Writer]:
    """A writer for the file's kind; the first rows say which columns a table has."""
    name = kind(path)
    if name == ".parquet":
        with _ParquetFile(path, first) as parquet:
            yield parquet
        return
    binary: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with binary(path, "wb") as raw, io.TextIOWrapper(raw, "utf-8", newline="") as stream:
        if name in (".csv", ".tsv"):
            yield _CsvFile(stream, first, "\t" if name == ".tsv" else ",")
        elif name == ".json":
            writer = _JsonFile(stream, "[\n", ",\n")
            yield writer
            stream.write("\n]\n" if writer.num_rows else "[]\n")
        else:
            writer = _JsonFile(stream, "", "\n")
            yield writer
            stream.write("\n" if writer.num_rows else "")


class _JsonFile:
    """Objects with something between them."""

    def __init__(self, stream: IO[str], start: str, between: str) -> None:
        self._stream, self._start, self._between = stream, start, between
        self.num_rows = 0

    def held(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return json.loads(json.dumps(row))
        except (TypeError, ValueError):
            return None

    def add(self, row: Mapping[str, Any]) -> None:
        self._stream.write(self._between if self.num_rows else self._start)
        self._stream.write(json.dumps(row, ensure_ascii=False))
        self.num_rows += 1


class _CsvFile:
    """Cells of text; what is not text is JSON."""

    def __init__(self, stream: IO[str], first: Sequence[Mapping[str, Any]], between: str) -> None:
        self._names = columns(first)
        self._table = csv.writer(stream, delimiter=between)
        self._table.writerow(self._names)

    def held(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return {name: cell(text) for name, text in zip(self._names, self._cells(row))}
        except (TypeError, ValueError):
            return None

    def add(self, row: Mapping[str, Any]) -> None:
        self._table.writerow(self._cells(row))

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        values = [row.get(name) for name in self._names]
        return [
            "" if value is None else value if isinstance(value, str) else json.dumps(value)
            for value in values
        ]


class _ParquetFile:
    """A table with typed columns, written in groups of rows."""

    _GROUP = 4096

    def __init__(self, path: Path, first: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        found: dict[str, Any] = {}
        for row in first:
            for name, value in self._packed(row).items():
                found.setdefault(name, arrow_type(value))
        self._types = {name: found[name] for name in columns(first) if found[name] is not None}
        self._file = pyarrow.parquet.ParquetWriter(path, pyarrow.schema(list(self._types.items())))
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> _ParquetFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._file.close()

    def held(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        packed = self._packed(row)
        wrong = [
            name
            for name, kind_ in self._types.items()
            if packed.get(name) is not None and arrow_type(packed[name]) != kind_
        ]
        return None if wrong else {name: packed.get(name) for name in self._types}

    def add(self, row: Mapping[str, Any]) -> None:
        packed = self._packed(row)
        self._rows.append({name: packed.get(name) for name in self._types})
        if len(self._rows) == self._GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._file.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._file.schema))
        self._rows = []

    def _packed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: json.dumps(value) if name in _JSON_COLUMNS else _packed_turns(value)
            for name, value in row.items()
        }


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column that one of these rows has, in the order of their first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _packed_turns(value: Any) -> Any:
    """Turns with the keys that a struct has; tool calls as JSON text."""
    if isinstance(value, Mapping):
        keys = TURN_KEYS if "from" in value else MESSAGE_KEYS
        texts = {key: value[key] for key in keys if value.get(key) is not None}
        return {key: _text(texts.get(key)) for key in keys}
    if isinstance(value, (list, tuple)):
        return [_packed_turns(inner) for inner in value]
    return value


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def arrow_type(value: Any) -> Any:
    """The Arrow type of a packed value; None where it says nothing (None, an empty list)."""
    import pyarrow

    if isinstance(value, bool):
        return pyarrow.bool_()
    if isinstance(value, (int, float)):
        return pyarrow.float64()
    if isinstance(value, str):
        return pyarrow.string()
    if isinstance(value, Mapping):
        return pyarrow.struct([(key, pyarrow.string()) for key in value])
    kinds = [arrow_type(inner) for inner in value or ()]
    known = {str(kind_): kind_ for kind_ in kinds if kind_ is not None}
    return pyarrow.list_(next(iter(known.values()))) if len(known) == 1 else None
