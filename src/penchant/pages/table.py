"""Tables with row and column headers that a screen reader can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penchant.pages.markup import Content, Markup, tag


@dataclass(frozen=True)
class Column:
    """What stands over a column."""

    heading: str
    meaning: str
    """One sentence, shown on hovering."""


@dataclass(frozen=True)
class Cell:
    """A value, what stands small beneath it, and whether it is the column's best."""

    value: str
    range: str = ""
    is_best: bool = False
    extra: Markup | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table; `series` is its colour."""

    heading: str
    cells: Sequence[Cell]
    series: int | None = None


def table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Markup:
    """The first column names the rows; where it is too wide it scrolls on its own."""
    heads = [
        tag("th", column.heading, scope="col", title=column.meaning or None) for column in columns
    ]
    body = [tag("tr", _heading(row), [_cell(cell) for cell in row.cells]) for row in rows]
    # A span, so that a phone can keep the caption in sight while the table scrolls.
    said = tag("caption", tag("span", caption))
    drawn = tag("table", said, tag("thead", tag("tr", heads)), tag("tbody", body))
    # Focusable, so that the keyboard can scroll it too.
    return tag("div", drawn, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _heading(row: Row) -> Markup:
    if row.series is None:
        return tag("th", row.heading, scope="row")
    swatch = tag("span", class_=f"swatch s{row.series}", aria_hidden="true")
    return tag("th", swatch, row.heading, scope="row")


def _cell(cell: Cell) -> Markup:
    content: list[Content] = [tag("span", cell.value, class_="value")]
    if cell.range:
        content.append(tag("span", cell.range, class_="range"))
    content.append(cell.extra)
    return tag("td", content, class_="best" if cell.is_best else None)
