"""The shell of a page: one file that needs nothing else, with no script in it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from penchant.pages.markup import Content, Markup, join, tag

NUM_SERIES = 6
"""Colours of the style sheet; the first is for the policy that all others start from."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, *content: Content) -> str:
    """A whole HTML document; styles inside, and a policy under which nothing can run or load."""
    style = (resources.files("penchant.pages") / "style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        # Our own file: the one text that must not be escaped.
        tag("style", Markup(style)),
    )
    body = tag("body", tag("main", content))
    return f"<!doctype html>\n{tag('html', join(head, body), lang='en')}\n"


def section(heading: str, *content: Content) -> Markup:
    """A part of the page under its heading."""
    return tag("section", tag("h2", heading), content)


def terms(pairs: list[tuple[str, str]]) -> Markup:
    """A list of terms and what they mean."""
    return tag("dl", [(tag("dt", term), tag("dd", text)) for term, text in pairs], class_="terms")


def figure(
    draw: Callable[[float, float], Markup],
    wide: tuple[float, float],
    narrow: tuple[float, float],
    caption: str,
) -> Markup:
    """A chart with its caption, drawn for a desk and for a phone: the style sheet shows one.

    Args: `draw`: (width, height) -> chart; `wide`, `narrow`: those sizes [paper units].
    """
    both = tag("div", draw(*wide), class_="wide"), tag("div", draw(*narrow), class_="narrow")
    return tag("figure", both, tag("figcaption", caption))
