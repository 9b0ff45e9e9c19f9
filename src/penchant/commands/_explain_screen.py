"""One row on a terminal: the pair's numbers, then its tokens, then the least likely ones."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from penchant.pages.explain import (
    PAIR_COLUMNS,
    Explanation,
    ResponseView,
    TokenView,
    nats,
    visible,
)

_NUM_LISTED = 12
"""Tokens of a response whose numbers are listed; the page has all."""
_KINDS = {"scored": "green", "template": "blue", "read": "", "cut": "red strike"}
_BRACKETS = {"scored": "[]", "template": "<>", "read": ("", ""), "cut": "{}"}
"""What tells the kinds apart where there is no colour."""


def print_explanation(shown: Explanation, console: Console | None = None) -> None:
    """Prints the row."""
    console = console or Console(highlight=False)
    console.print(Text(f"row {shown.row_id}", style="bold"))
    console.print(Text(shown.lead))
    for warning in shown.warnings:
        console.print(Text(f"! {warning}", style="yellow"))
    if shown.pairs:
        console.print()
        console.print(_pairs(shown))
    console.print()
    is_marked = any(token.is_marked for one in shown.responses for token in one.tokens)
    console.print(_legend(console, is_marked))
    _print_tokens("Prompt", shown.prompt, console)
    for one in shown.responses:
        _print_tokens(one.title, one.tokens, console)
        for name, value in one.facts:
            console.print(Padding(Text(f"{name}: {value}", style="dim"), (0, 0, 0, 2)))
        _print_numbers(one, console)


def _pairs(shown: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, column in enumerate(PAIR_COLUMNS):
        table.add_column(column.heading, justify="left" if place == 0 else "right")
    for name, values in shown.pairs:
        table.add_row(name, *values)
    return table


def _legend(console: Console, is_marked: bool) -> Text:
    """What the signs mean; that of marks where some token has one."""
    text = Text()
    for kind in _KINDS:
        _append(text, kind, kind, console)
        text.append("  ")
    sign = "[*]" if console.color_system is None else "underlined"
    if is_marked:
        text.append(f"{sign}: differs from the other side", style="dim")
    return text


def _kind(token: TokenView) -> str:
    if token.is_cut:
        return "cut"
    if not token.is_content:
        return "template"
    return "scored" if token.is_scored else "read"


def _append(text: Text, words: str, kind: str, console: Console, extra: str = "") -> None:
    left, right = _BRACKETS[kind] if console.color_system is None else ("", "")
    left += "*" if left and extra else ""
    text.append(f"{left}{words}{right}", style=f"{_KINDS[kind]} {extra}".strip())


def _print_tokens(title: str, tokens: Sequence[TokenView], console: Console) -> None:
    """Runs of a kind, with a thin line between tokens."""
    console.print()
    console.print(Text(f"{title}: {len(tokens):,} tokens", style="bold"))
    text, run = Text(), ""
    for place, token in enumerate(tokens):
        run += isolated(visible(token.text))
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        ends_line = "\n" in token.text
        same = after is not None and _style_of(after) == _style_of(token)
        if same and not ends_line:
            run += "\u2502" if token.is_scored and not token.is_cut else ""
            continue
        extra = "underline" if token.is_marked else ""
        _append(text, run, _kind(token), console, extra)
        text.append("\n" if ends_line else "")
        run = ""
    text.rstrip()
    console.print(Padding(text, (0, 0, 0, 2)))


def _style_of(token: TokenView) -> tuple[str, bool]:
    return _kind(token), token.is_marked


def isolated(text: str) -> str:
    """Right-to-left text between signs that keep it from moving its neighbours."""
    if any(unicodedata.bidirectional(character) in ("R", "AL", "RLE", "RLO") for character in text):
        return f"\u2068{text}\u2069"
    return text


def _print_numbers(one: ResponseView, console: Console) -> None:
    """The least likely tokens, in their order."""
    scored = [(place, token) for place, token in enumerate(one.tokens) if token.policy is not None]
    if not scored:
        return
    hardest = sorted(scored, key=lambda item: item[1].policy or 0.0)[:_NUM_LISTED]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("token")
    for heading in ("place", "policy", "reference", "weight"):
        table.add_column(heading, justify="right")
    for place, token in sorted(hardest, key=lambda item: item[0]):
        assert token.policy is not None, "only scored tokens are listed"
        reference = "\u2013" if token.reference is None else nats(token.reference)
        weight = "\u2013" if token.weight is None else f"{token.weight:.2f}"
        shown = Text(isolated(visible(token.text)))
        table.add_row(shown, str(place + 1), nats(token.policy), reference, weight)
    which = "All" if len(hardest) == len(scored) else f"The {len(hardest)} least likely"
    heading = f"{which} of {len(scored):,} scored tokens [nats]"
    console.print(Padding(Text(heading, style="dim"), (0, 0, 0, 2)))
    console.print(Padding(table, (0, 0, 0, 4)))
