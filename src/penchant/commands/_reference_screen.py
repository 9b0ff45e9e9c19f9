"""The tables of `penchant reference`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from penchant.commands._show import counted, duration, size

if TYPE_CHECKING:
    from penchant.engine.reference.catalogue import Fault, Found, Pruned

_NAME_SHOWN = 12


def print_entries(root: Path, found: Sequence[Found], limit: float) -> None:
    """One line per entry: what it is of, how much it is, when it was last used."""
    from penchant.engine.reference.origin import describe

    console = Console(highlight=False)
    if found:
        table = _table("Entry", "Model", "Numbers", "Rows", "Size", "Last used")
        for one in found:
            words = describe(one.about.get("key", {})).values()
            table.add_row(
                one.name[:_NAME_SHOWN],
                Text(str(one.about.get("model", "unknown"))),
                " ".join(filter(None, words)),
                f"{one.num_rows:,}",
                size(one.num_bytes),
                "in use" if one.in_use else f"{duration(time.time() - one.last_used)} ago",
            )
        console.print(table)
    console.print(Text(f"{_sum(found)} in {root} ({_of(limit)})"), soft_wrap=True)


def print_faults(found: Sequence[Found], faults: Mapping[str, Sequence[Fault]]) -> None:
    """One line per entry, and one per file that is damaged or cannot be read."""
    console = Console(highlight=False)
    if found:
        table = _table("Entry", "Model", "Rows", "Size", "")
        for one in found:
            damaged = sum(fault.is_damaged for fault in faults[one.name])
            unread = len(faults[one.name]) - damaged
            marks = [Text(f"{damaged} DAMAGED", style="bold red")] if damaged else []
            marks += [Text(f"{unread} UNREADABLE", style="bold yellow")] if unread else []
            mark = Text(", ").join(marks) if marks else Text("ok", style="green")
            model = Text(str(one.about.get("model", "unknown")))
            table.add_row(
                one.name[:_NAME_SHOWN], model, f"{one.num_rows:,}", size(one.num_bytes), mark
            )
        console.print(table)
    for fault in (fault for those in faults.values() for fault in those):
        what = fault.why if fault.is_damaged else f"cannot be read: {fault.why}"
        style = "red" if fault.is_damaged else "yellow"
        console.print(Text(f"{fault.path}: {what}", style=style), soft_wrap=True)
    unread = sum(not fault.is_damaged for those in faults.values() for fault in those)
    but = f", but for {counted(unread, 'file')}" if unread else ""
    console.print(Text(f"{_sum(found)} read and checked{but}"), soft_wrap=True)


def print_pruned(found: Sequence[Found], pruned: Pruned, limit: float, dry_run: bool) -> None:
    """What went, what could not, and what stays because it is in use."""
    console = Console(highlight=False)
    number, freed = len(pruned.removed), sum(size for _, size in pruned.removed)
    done = "would be removed" if dry_run else "removed"
    console.print(Text(f"{counted(number, 'shard')} {done}: {size(freed)} ({_of(limit)})"))
    for path, why in pruned.left:
        console.print(Text(f"{path} was left as it is: {why}"), soft_wrap=True)
    for one in found:
        if one.in_use:
            console.print(Text(f"{one.name[:_NAME_SHOWN]} is in use and was left as it is"))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in names:
        right = name in ("Rows", "Size")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    return table


def _sum(found: Sequence[Found]) -> str:
    num_rows, num_bytes = (sum(getattr(one, n) for one in found) for n in ("num_rows", "num_bytes"))
    count = f"{len(found):,} {'entry' if len(found) == 1 else 'entries'}"
    return f"{count}, {counted(num_rows, 'row')}, {size(num_bytes)}"


def _of(limit: float) -> str:
    """In the units in which a limit is given: 20 GB."""
    return "no limit" if limit == float("inf") else f"limit {limit / 1e9:g} GB"
