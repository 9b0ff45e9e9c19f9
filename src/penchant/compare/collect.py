"""Reads finished run folders: the recipe that was run, its curves and its summary.

Nothing else is read: no model is loaded, so runs from another machine can be compared here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from penchant.errors import DataError, MissingFileError


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says of itself."""

    path: Path
    name: str
    """The folder's name."""
    recipe: Mapping[str, Any]
    """The resolved recipe, as it was run."""
    summary: Mapping[str, Any]
    """Final metrics and counts."""
    metrics: tuple[Mapping[str, Any], ...]
    """One row per logged step or evaluation, in the order written."""

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric; rows without it, or with NaN, are left out."""
        rows = [row for row in self.metrics if _is_number(row.get(metric)) and "step" in row]
        return [float(row["step"]) for row in rows], [float(row[metric]) for row in rows]


def read_run(folder: str | Path) -> Run:
    """Reads one run folder.

    Raises MissingFileError where the folder or its summary is not there (the run did not finish);
    DataError where a file is not what a run leaves, naming the file and line.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MissingFileError(f"no run folder {path}")
    for name in ("summary.json", "recipe.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise MissingFileError(f"{path} has no {name}; is it the folder of a finished run?")
    return Run(
        path=path,
        name=path.name,
        recipe=_mapping(path / "recipe.yaml", yaml.safe_load, yaml.YAMLError),
        summary=_mapping(path / "summary.json", json.loads, ValueError),
        metrics=_rows(path / "metrics.jsonl"),
    )


def _mapping(path: Path, parse: Any, failure: type[Exception]) -> dict[str, Any]:
    """A file that holds one mapping."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except failure as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read: {reason}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a mapping, got {type(value).__name__}")
    return value


def _rows(path: Path) -> tuple[dict[str, Any], ...]:
    """A file with one mapping per line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} must be a mapping, got {type(row).__name__}")
        rows.append(row)
    return tuple(rows)


def _is_number(value: Any) -> bool:
    """A finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
