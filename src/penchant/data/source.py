"""Where rows come from: files, saved folders, folders in hub layout, hub ids; lists of them.

A source may be a path or id, or a mapping with `path` and optional `name`, `fraction`, `rows`,
`config`, `split` and `format`. A fraction or number of rows is drawn by the seed; the order stays.
Rows are read one after another; drawing reads a source twice, once to count. Only a .json file
that is one list has to be in memory whole.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from penchant.data.files import (
    SUFFIXES,
    BrokenLine,
    Read,
    has_padding,
    kind,
    read_file,
    stem,
    unpadded,
)
from penchant.data.rows import Row, SetAside
from penchant.errors import DataError, MissingFileError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^:]*){0,2}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set to read."""

    path: str
    name: str = ""
    fraction: float | None = None
    rows: int | None = None
    config: str | None = None
    split: str | None = None
    format: str | None = None


@dataclass(frozen=True)
class SourceRows:
    """What a source gave: its rows in order, and how many sampling left out."""

    source: Source
    rows: tuple[Row | SetAside, ...]
    left_out: int


def parse_sources(given: Any) -> tuple[Source, ...]:
    """Sources from a path, an id, a mapping or a list of those; names are made unique.

    Raises DataError for what names no source.
    """
    listed = given if isinstance(given, (list, tuple)) else [given]
    if not listed:
        raise DataError("no data source is given")
    sources = [_parse(one) for one in listed]
    counts: Counter[str] = Counter()
    unique = []
    for source in sources:
        counts[source.name] += 1
        nth = counts[source.name]
        unique.append(source if nth == 1 else replace(source, name=f"{source.name}#{nth}"))
    return tuple(unique)


def _parse(given: Any) -> Source:
    if isinstance(given, Source):
        source = given
    elif isinstance(given, (str, Path)):
        source = Source(path=str(given))
    elif isinstance(given, Mapping):
        known = [field.name for field in fields(Source)]
        if not given.get("path") or set(given) - set(known):
            raise DataError(f"a data source has path and optional {', '.join(known[1:])}: {given}")
        source = Source(**{key: value for key, value in given.items() if value is not None})
    else:
        raise DataError(f"a data source is a path, an id or a mapping, not {given!r}")
    if source.fraction is not None and not 0 < source.fraction <= 1:
        raise DataError(f"{source.path}: fraction {source.fraction} is not in (0, 1]")
    if source.rows is not None and source.rows < 1:
        raise DataError(f"{source.path}: rows {source.rows} is below 1")
    return replace(source, name=source.name or _name(source.path))


def _name(path: str) -> str:
    if Path(path).exists() or path.lower().endswith((*SUFFIXES, ".gz")):
        return stem(Path(path))
    named = _named_folder(Source(path=path))
    if named is not None:
        return stem(Path(named.path))
    return path.split(":")[0]


def read_source(source: Source, seed: int, default_split: str = "train") -> SourceRows:
    """Every row of a source, or those that its fraction or number of rows draws, in memory.

    Raises:
        MissingFileError: nothing has this name.
        DataError: nothing in it, nothing but broken lines, or a file that cannot be read.
    """
    rows, left_out = read_rows(source, seed, default_split)
    return SourceRows(source, tuple(rows), left_out)


def read_rows(
    source: Source, seed: int, default_split: str = "train"
) -> tuple[Iterator[Row | SetAside], int]:
    """The same rows one after another, and how many were not drawn; errors come with the rows."""
    drawn = None
    left_out = 0
    if source.fraction is not None or source.rows is not None:
        count = sum(1 for _ in _read(source, default_split))
        wanted = count
        if source.fraction is not None:
            wanted = max(1, round(source.fraction * count))
        if source.rows is not None:
            wanted = min(wanted, source.rows)
        if wanted < count:
            generator = random.Random(f"{seed}:{source.name}")
            drawn = frozenset(generator.sample(range(count), wanted))
            left_out = count - wanted
    return _rows(source, _read(source, default_split), drawn), left_out


def _rows(
    source: Source, values: Iterator[Read], drawn: frozenset[int] | None
) -> Iterator[Row | SetAside]:
    """Rows by number; raises DataError at the end where none of them could be read."""
    num_broken, first_broken, found = 0, None, False
    for number, (line, value) in enumerate(values):
        if drawn is not None and number not in drawn:
            continue
        row = _row(source.name, line, value)
        if isinstance(row, Row):
            found = True
        else:
            num_broken += 1
            first_broken = first_broken or row
        yield row
    if found:
        return
    if first_broken is None:
        raise DataError(f"{source.path}: holds no rows")
    raise DataError(
        f"{source.path}: nothing but broken lines ({num_broken}); line {first_broken.line}: "
        f"{first_broken.detail}: {first_broken.excerpt}"
    )


def _row(name: str, line: int, value: Mapping[str, Any] | BrokenLine) -> Row | SetAside:
    if isinstance(value, BrokenLine):
        return SetAside(name, line, value.reason, value.detail, value.excerpt)
    return Row(name, line, value)


def _read(source: Source, default: str) -> Iterator[Read]:
    path = Path(source.path).expanduser()
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        return _read_folder(path, source, default)
    named = _named_folder(source)
    if named is not None:
        return _read_folder(Path(named.path).expanduser(), named, default)
    if _looks_like_file(source.path) or not _HUB_ID.fullmatch(source.path):
        raise MissingFileError(f"no file or folder {source.path}")
    name, _, rest = source.path.partition(":")
    config, _, split = rest.partition(":")
    found = _load_dataset(name, source.config or config or None, source.split or split or None)
    return _one_split(found, name, None, default)


def _named_folder(source: Source) -> Source | None:
    """`folder:split` or `folder:config:split`, taken apart."""
    outer, _, split = source.path.rpartition(":")
    if outer and Path(outer).expanduser().is_dir():
        return replace(source, path=outer, split=source.split or split)
    outer, _, config = outer.rpartition(":")
    if outer and Path(outer).expanduser().is_dir():
        config, split = source.config or config, source.split or split
        return replace(source, path=outer, config=config or None, split=split or None)
    return None


def _looks_like_file(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.lower().endswith((*SUFFIXES, ".gz"))


def _read_folder(path: Path, source: Source, default: str) -> Iterator[Read]:
    """A folder that `save_to_disk` left, else one in hub layout, else its data files in order."""
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _one_split(_load_saved(path), str(path), source.split, default)
    inside = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file))
    if not inside:
        raise DataError(f"{path}: a folder without data files ({', '.join(SUFFIXES)})")
    found = _load_dataset(str(path), source.config, source.split)
    return _one_split(found, str(path), source.split, default)


def _is_data(path: Path) -> bool:
    try:
        return bool(kind(path))
    except DataError:
        return False


def _load_saved(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: not a whole saved data set ({_one_line(error)})") from error


def _load_dataset(name: str, config: str | None, split: str | None) -> Any:
    """The ordinary Hugging Face call: offline mode, tokens and cache as users know them."""
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:
        if isinstance(error, (FileNotFoundError, ConnectionError)) and not Path(name).exists():
            raise MissingFileError(
                f"no file or folder {name}, and no hub data set could be loaded by that id "
                f"({_one_line(error)})"
            ) from error
        cause = error.__cause__ or error
        raise DataError(f"{name}: could not be loaded ({_one_line(cause)})") from error


def _one_split(loaded: Any, name: str, split: str | None, default: str) -> Iterator[Read]:
    """The rows of the split asked for, else of the only one, else of the default one."""
    if isinstance(loaded, Mapping):
        available = [str(key) for key in loaded]
        wanted = split or (available[0] if len(available) == 1 else default)
        if wanted not in available:
            raise DataError(f"{name}: no split {wanted!r}; it has {', '.join(available)}")
        loaded = loaded[wanted]
    if has_padding(str(loaded.features)):
        return enumerate(map(unpadded, loaded), start=1)
    return enumerate(loaded, start=1)


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
