"""Rows read once to plan their pairs, and once more for their texts, which are not held meanwhile.

Of a ComparisonStream the first pass keeps digests in place of texts, so that memory does not grow
with what the rows say; rows that are in memory anyway are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from penchant.data import content
from penchant.data.comparisons import Comparisons
from penchant.data.data_report import DataReport, SourceReport
from penchant.data.fingerprint import RowsDigest
from penchant.data.gathered import NUM_EXAMPLES
from penchant.data.pairing import PairSettings
from penchant.data.plan import BuildSettings, Planned, Use, drop_unused, plan_rows
from penchant.data.reading import ComparisonStream
from penchant.data.rows import SetAside, excerpt
from penchant.errors import DataError
from penchant.types import Comparison


@dataclass
class Rows:
    """The usable rows after the first pass."""

    kept: Sequence[Comparison]
    """Without texts where these come from a stream; none once they are planned."""
    stream: ComparisonStream | None
    digest: str | None
    """Of everything that was read; None where nobody asked."""


def read_rows(comparisons: Iterable[Comparison], report: DataReport, digest: bool = False) -> Rows:
    """Reads all rows; sources and rows set aside go into the report."""
    hashed = RowsDigest() if digest else None
    stream = comparisons if isinstance(comparisons, ComparisonStream) else None
    kept: Sequence[Comparison]
    if stream is not None:
        kept = _read_stream(stream, report, hashed)
    else:
        kept = _take(comparisons, report, hashed)
    result = None if hashed is None else hashed.result(_read_as(report), report.left_out)
    return Rows(kept, stream, result)


def _take(
    comparisons: Iterable[Comparison], report: DataReport, hashed: RowsDigest | None
) -> Sequence[Comparison]:
    lost: tuple[SetAside, ...] = ()
    if isinstance(comparisons, Comparisons):
        report.left_out = comparisons.left_out
        report.sources = {name: SourceReport(kind) for name, kind in comparisons.formats.items()}
        lost = comparisons.set_aside
        _note_unread(comparisons.unread, report)
    rows = comparisons if isinstance(comparisons, Sequence) else list(comparisons)
    for one in lost:
        report.add_set_aside(one)
        if hashed is not None:
            hashed.add(one)
    for row in rows:
        report.sources.setdefault(row.source, SourceReport(row.format))
        if hashed is not None:
            hashed.add(row)
    return rows


def _read_stream(
    stream: ComparisonStream, report: DataReport, hashed: RowsDigest | None
) -> list[Comparison]:
    rows = []
    for one in stream:
        report.sources.setdefault(one.source, SourceReport(stream.formats[one.source]))
        if hashed is not None:
            hashed.add(one)
        if isinstance(one, Comparison):
            rows.append(content.without_texts(one))
        else:
            report.add_set_aside(one)
    report.left_out = stream.left_out
    _note_unread(stream.unread, report)
    return rows


def _read_as(report: DataReport) -> dict[str, str]:
    """How each source was read, for the digest: what the cached report says of that, too."""
    parts = report.sources.items()
    return {name: " ".join((part.format, *part.columns_not_read)) for name, part in parts}


def _note_unread(unread: Mapping[str, tuple[str, ...]], report: DataReport) -> None:
    for name, columns in unread.items():
        if columns:
            report.sources[name].columns_not_read = list(columns)
            report.notes.append(f"{name}: columns not read: {excerpt(', '.join(columns))}")


def plan_pairs_of(
    rows: Rows, build: BuildSettings, pair: PairSettings, report: DataReport
) -> list[Planned]:
    """The pairs of each row; still with the responses that no pair uses."""
    planned = plan_rows(rows.kept, build, pair, report, every_response=True)
    rows.kept = ()
    used = (drop_unused(one, build.use) for one in planned)
    report.repeats = content.repeats(((one.row, one.plan.pairs) for one in used), NUM_EXAMPLES)
    return planned


def plan_reported(
    comparisons: Iterable[Comparison], build: BuildSettings, pair: PairSettings, report: DataReport
) -> list[Planned]:
    """The pairs of each row, with sources, rows set aside and repeats put into the report."""
    held = list(comparisons) if isinstance(comparisons, ComparisonStream) else comparisons
    planned = plan_pairs_of(read_rows(held, report), build, pair, report)
    return [drop_unused(one, build.use) for one in planned]


def with_texts(
    planned: Iterable[Planned], rows: Rows, use: Use, report: DataReport
) -> Iterator[Planned]:
    """The planned rows with what they say, read again where it was not kept.

    Raises DataError where the source gives other rows than the first time.
    """
    if rows.stream is None:
        yield from (drop_unused(one, use) for one in planned)
        return
    lacking = _without_excerpt(report)
    hashed = None if rows.digest is None else RowsDigest()
    waiting = iter(planned)
    one = next(waiting, None)
    for row in rows.stream:
        if hashed is not None:
            hashed.add(row)
        if row.row_id in lacking and isinstance(row, Comparison):
            for shown in lacking[row.row_id]:
                shown["excerpt"] = excerpt(content.words(row))
        if one is not None and row.row_id == one.row.row_id and isinstance(row, Comparison):
            yield drop_unused(Planned(replace(row, scores=one.row.scores), one.plan), use)
            one = next(waiting, None)
    left_out = rows.stream.left_out
    same = hashed is None or hashed.result(_read_as(report), left_out) == rows.digest
    if one is not None or not same:
        raise DataError("a data file changed while it was read; start again")


def _without_excerpt(report: DataReport) -> dict[str, list[dict[str, str]]]:
    """Examples of rows that were set aside without their texts, by row."""
    found: dict[str, list[dict[str, str]]] = {}
    for shown in (one for examples in report.examples.values() for one in examples):
        if not shown["excerpt"]:
            found.setdefault(f"{shown['source']}:{shown['line']}", []).append(shown)
    return found
