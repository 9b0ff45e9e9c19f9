"""HTML pages: data in, one self-contained page out. Pure; text is escaped unless built here."""

from __future__ import annotations

from penchant.pages.demo import demo_page
from penchant.pages.report import Answer, Entry, Example, Report

__all__ = ["Answer", "Entry", "Example", "Report", "demo_page"]
