"""docs/objectives.md says what the docstrings say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_page_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "generate_objectives.py"))["render"]()
    assert page == (DOCS / "objectives.md").read_text(), "run python docs/generate_objectives.py"
