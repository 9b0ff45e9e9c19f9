"""The table of `penchant verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from penchant.commands.verify import Check


def print_checks(checks: Sequence[Check], console: Console | None = None) -> None:
    """One line per check; what failed in red."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("Checked", "Expected", "Found", ""):
        table.add_column(name, overflow="fold")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("DIFFERS", style="bold red")
        table.add_row(Text(check.what), Text(check.expected), Text(check.found), mark)
    console.print(table)
    failed = sum(not check.ok for check in checks)
    told = f"{failed} failed" if failed else "the run is what it says"
    console.print(Text(f"{len(checks)} checks: {told}", style="bold red" if failed else "bold"))
