"""Whether a folder can be written to; asked before any work is done for it. Loads nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from penchant.errors import RecipeError


def check_new(output_dir: str) -> Path:
    """The folder to write to. Raises RecipeError where it holds anything or cannot be made."""
    folder = Path(output_dir)
    check_possible(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"output_dir={output_dir!r} is not empty; name a new folder")
    return folder


def check_possible(folder: Path) -> None:
    """Raises RecipeError where a file stands in the way, or nothing may be written there."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise RecipeError(
            f"output_dir={str(folder)!r} cannot be a folder: {str(there)!r} is a file; "
            "name a new folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(
            f"output_dir={str(folder)!r} cannot be written: no permission in {str(there)!r}; "
            "name another folder"
        )
