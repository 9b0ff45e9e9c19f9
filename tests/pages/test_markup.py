"""Escaping: text stays text, whatever a model says."""

from __future__ import annotations

import pytest

from penchant.pages.markup import Markup, escape, join, tag


def test_text_is_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = tag("b", "1 < 2 & 3")
    assert inner == "<b>1 &lt; 2 &amp; 3</b>"
    assert tag("p", inner, " <i>") == "<p><b>1 &lt; 2 &amp; 3</b> &lt;i&gt;</p>"
    assert isinstance(join("a", inner), Markup)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</style><img src=x onerror=alert(1)>",
        '"><svg onload=alert(1)>',
        "' onmouseover='alert(1)",
        "<!-- -->",
    ],
)
def test_nothing_in_a_text_ends_an_element_or_an_attribute(text: str) -> None:
    for markup in (tag("p", text), tag("p", title=text)):
        assert markup.count("<") == 2
        assert markup.count(">") == 2
        assert markup.count('"') in (0, 2)
        assert "'" not in markup


def test_attributes() -> None:
    drawn = tag(
        "td", class_="a b", aria_hidden="true", hidden=True, title=None, open=False, x=1 / 3
    )
    assert drawn == '<td class="a b" aria-hidden="true" hidden x="0.333333"></td>'
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("meta", name="viewport") == '<meta name="viewport">'


def test_nested_lists_numbers_and_none() -> None:
    assert tag("p", [1, None, ["a", (2.5,)]]) == "<p>1a2.5</p>"


def test_characters_that_html_cannot_hold_are_replaced() -> None:
    assert escape("a\x00b\x1bc\ud800d\x85") == "a\ufffdb\ufffdc\ufffdd\ufffd"
    assert escape("\u202eab\u00e9\U0001f600\n\t") == "\u202eab\u00e9\U0001f600\n\t"
    escape("\ud800").encode()
