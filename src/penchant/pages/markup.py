"""HTML and SVG from plain values: text is escaped unless it was built here.

tag("p", "1 < 2", class_="note")  ->  <p class="note">1 &lt; 2</p>
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import final

_VOID = frozenset({"br", "col", "hr", "link", "meta"})


@final
class Markup(str):
    """Finished HTML; the one kind of text that is not escaped again."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]
"""What an element can hold; None is nothing."""


def escape(text: str) -> Markup:
    """Text for an element or a quoted attribute; what HTML cannot hold becomes U+FFFD."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape("".join(c if _is_allowed(c) else "\ufffd" for c in text)))


def join(*content: Content) -> Markup:
    """Contents one after the other, each escaped unless it is Markup."""
    parts: list[str] = []
    for item in content:
        if item is None:
            continue
        if isinstance(item, str):
            parts.append(escape(item))
        elif isinstance(item, int | float):
            parts.append(escape(str(item)))
        else:
            parts.append(join(*item))
    return Markup("".join(parts))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """One element. `class_` is class, `aria_label` is aria-label; None and False leave it out."""
    pairs = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        pairs.append(f" {key}" if value is True else f' {key}="{escape(str(text))}"')
    opening = f"<{name}{''.join(pairs)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*content)}</{name}>")


def _is_allowed(character: str) -> bool:
    """Control characters and lone surrogates cannot stand in an HTML file."""
    code = ord(character)
    is_control = code < 32 and character not in "\t\n\r"
    return not (is_control or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000)
