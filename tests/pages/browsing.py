"""Pages under test: what stands on them, and whether a real browser shows them as we want."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Callable
from pathlib import Path

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


class Outline(html.parser.HTMLParser):
    """Elements and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def without_policy(page: str) -> str:
    """Without our content policy, which would hide a hole in the escaping."""
    return re.sub('<meta http-equiv="Content-Security[^>]*>', "", page)


def assert_fits(browser: Callable[..., str], page: str, folder: Path, width: int) -> None:
    """Nothing on the page is wider than a window of this width [pixels]."""
    inner, outer = folder / "page.html", folder / "outer.html"
    measuring = (
        "<script>addEventListener('load', () => { const e = document.documentElement;"
        "parent.postMessage(e.scrollWidth > e.clientWidth ? 'too wide' : 'fits', '*') })</script>"
    )
    inner.write_text(without_policy(page).replace("</body>", f"{measuring}</body>"))
    # A frame, because a headless window cannot be as narrow as a phone.
    outer.write_text(
        "<!doctype html><title>?</title><script>onmessage = e => document.title = e.data</script>"
        f"<iframe src='{inner.as_uri()}' width='{width}' height='800' style='border:0'></iframe>"
    )
    assert "<title>fits</title>" in browser(outer, "--dump-dom", "--virtual-time-budget=5000")
