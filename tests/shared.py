"""Where the public data and reference vectors lie, for tests that can use them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    """`PENCHANT_SHARED`, or `../shared` beside the repository; skips the test without either."""
    named = os.environ.get("PENCHANT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder
