"""Lists, verifies and prunes stored reference log-probabilities (PENCHANT_CACHE/reference).

Where `verify` finds damage, or a file that it cannot read, the exit code is 1; what is damaged is
computed again when needed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import MissingFileError, VerificationError
from penchant.recipe.kinds import ReferenceRecipe

if TYPE_CHECKING:
    from penchant.engine.reference.catalogue import Found

_DAY = 24 * 3600.0


def run(recipe: ReferenceRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Prints a table and returns it.

    Raises VerificationError where `verify` finds damage or cannot read a file, MissingFileError
    where no entry is meant.
    """
    from penchant.engine.reference import catalogue
    from penchant.train.reference import folder

    limit = catalogue.size_limit(os.environ)
    if recipe.max_size is not None:
        limit = catalogue.parse_size("max_size", recipe.max_size)
    root = folder()
    found = [one for one in catalogue.entries(root) if one.name.startswith(recipe.entry or "")]
    if recipe.entry is not None and not found:
        raise MissingFileError(
            f"no entry in {str(root)!r} begins with {recipe.entry!r}; "
            "penchant reference list shows what there is"
        )
    if recipe.action == "verify":
        return _verify(root, found)
    if recipe.action == "prune":
        return _prune(recipe, root, found, limit, dry_run)
    from penchant.commands._reference_screen import print_entries

    print_entries(root, found, limit)
    most = None if limit == float("inf") else int(limit)
    return {"folder": str(root), "max_bytes": most, "entries": [_row(one) for one in found]}


def _verify(root: Path, found: list[Found]) -> dict[str, Any]:
    from penchant.commands._reference_screen import print_faults
    from penchant.engine.reference import catalogue

    faults = {one.name: [*catalogue.faults(one.folder)] for one in found}
    print_faults(found, faults)
    damaged = [fault.is_damaged for those in faults.values() for fault in those]
    says = []
    if any(damaged):
        says.append(
            f"{sum(damaged)} files in {root} do not hold what was written; their rows are computed "
            "again when they are needed, and penchant reference prune damaged=true removes them"
        )
    if not all(damaged):
        says.append(
            f"{len(damaged) - sum(damaged)} files in {root} cannot be read and were not checked; "
            "they stay as they are"
        )
    if says:
        raise VerificationError("; ".join(says))
    return {"folder": str(root), "entries": [_row(one) for one in found], "damaged": []}


def _prune(
    recipe: ReferenceRecipe, root: Path, found: list[Found], limit: float, dry_run: bool
) -> dict[str, Any]:
    from penchant.commands._reference_screen import print_pruned
    from penchant.engine.reference import catalogue
    from penchant.train.reference import forget_gone

    since = 0.0 if recipe.unused_days is None else time.time() - recipe.unused_days * _DAY
    pruned = catalogue.prune(
        root,
        limit,
        unused_since=since,
        damaged=recipe.damaged,
        only=None if recipe.entry is None else [one.folder for one in found],
        dry_run=dry_run,
    )
    if not dry_run:
        forget_gone()
    print_pruned(found, pruned, limit, dry_run)
    return {
        "folder": str(root),
        "removed": [str(path) for path, _ in pruned.removed],
        "freed_bytes": sum(size for _, size in pruned.removed),
        "left": [{"path": str(path), "why": why} for path, why in pruned.left],
    }


def _row(one: Found) -> dict[str, Any]:
    from penchant.engine.reference.origin import describe

    return {
        "entry": one.name,
        "model": str(one.about.get("model", "")),
        **describe(one.about.get("key", {})),
        "rows": one.num_rows,
        "bytes": one.num_bytes,
        "last_used": one.last_used,
        "in_use": one.in_use,
    }
