"""Readers of single files: JSONL, JSON, Parquet, CSV, TSV, all but Parquet also as .gz.

Each yields (line, value); a value that could not be read is a BrokenLine.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from penchant.data.rows import excerpt
from penchant.errors import DataError

_ROWS_AT_ONCE = 256
_JSON_COLUMNS = ("tools", "tool_calls")

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class BrokenLine:
    """What stands where a row should be."""

    reason: str
    detail: str
    excerpt: str


Read = tuple[int, Mapping[str, Any] | BrokenLine]


def kind(path: Path) -> str:
    """The suffix that says how to read a file, without .gz; raises DataError."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if suffixes and suffixes[-1] in SUFFIXES:
        return suffixes[-1]
    raise DataError(f"{path}: cannot tell what it is; data files end in {', '.join(SUFFIXES)}")


def stem(path: Path) -> str:
    """The file's name without the suffixes that say how it is read."""
    name = path.name
    for suffix in (".gz", *SUFFIXES):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name or path.name


def read_file(path: Path) -> Iterator[Read]:
    """Rows of one file.

    Raises DataError: a kind of file that is not read; a file that ends in mid-air.
    """
    readers = {".json": _json, ".parquet": _parquet, ".csv": _csv, ".tsv": _csv}
    try:
        yield from readers.get(kind(path), _jsonl)(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _jsonl(path: Path) -> Iterator[Read]:
    """One object a line; only a newline ends a line, not U+2028 within a string."""
    with _open(path) as stream:
        yield from _lines(stream)


def _lines(stream: IO[bytes]) -> Iterator[Read]:
    for number, raw in enumerate(stream, start=1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            shown = excerpt(line.decode("utf-8", "backslashreplace"))
            yield number, BrokenLine("broken_line", _first_line(error), shown)
        else:
            yield number, _object(value)


def _object(value: Any) -> Mapping[str, Any] | BrokenLine:
    if isinstance(value, Mapping):
        return value
    detail = f"a JSON {type(value).__name__} where an object belongs"
    return BrokenLine("broken_line", detail, excerpt(value))


def _json(path: Path) -> Iterator[Read]:
    """A list of objects, or {"data": [...]}; JSON lines under this name are read as such."""
    with _open(path) as stream:
        content = stream.read()
    if not content.strip():
        return
    try:
        loaded = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        first = content.lstrip().split(b"\n", 1)[0]
        if _is_json_object(first):
            yield from _lines(io.BytesIO(content))
            return
        raise DataError(f"{path}: not valid JSON ({_first_line(error)})") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("data"), list):
        loaded = loaded["data"]
    if isinstance(loaded, Mapping):
        loaded = [loaded]
    if not isinstance(loaded, list):
        raise DataError(f'{path}: holds neither a list of objects nor {{"data": [...]}}')
    for number, value in enumerate(loaded, start=1):
        yield number, _object(value)


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _parquet(path: Path) -> Iterator[Read]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(path)
        padded = has_padding(str(file.schema_arrow))
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for value in batch.to_pylist():
                number += 1
                yield number, unpadded(value) if padded else value
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole Parquet file ({_first_line(error)})") from error


def has_padding(schema: str) -> bool:
    """May rows of this Arrow schema hold objects that had keys of their own?"""
    return any(name in schema for name in _JSON_COLUMNS)


def unpadded(value: Any, within: bool = False) -> Any:
    """Without the keys that Arrow gave every tool and call because one of them has it."""
    if isinstance(value, Mapping):
        return {
            key: unpadded(inner, within or key in _JSON_COLUMNS)
            for key, inner in value.items()
            if inner is not None or not within
        }
    return [unpadded(inner, within) for inner in value] if isinstance(value, list) else value


def _csv(path: Path) -> Iterator[Read]:
    """A header and rows; a cell that holds a JSON list of objects becomes that list."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if kind(path) == ".tsv" else ","
    with io.TextIOWrapper(_open(path), "utf-8-sig", "backslashreplace", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        line = 0
        while True:
            line = max(reader.line_num + 1, 2)
            try:
                value = next(reader, None)
            except csv.Error as error:
                yield line, BrokenLine("broken_line", str(error), "")
                continue
            if value is None:
                return
            if None in value or None in value.values():
                detail = "more or fewer cells than the header has"
                yield line, BrokenLine("broken_line", detail, excerpt(list(value.values())))
            else:
                yield line, {name: cell(text) for name, text in value.items()}


def cell(text: str) -> Any:
    """What a cell holds: nothing, a list of objects in JSON, or its text."""
    if text.startswith("[{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text or None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
