"""orca pairs as plain strings, as Intel's script read them: system and question joined by nothing.

Never detected (its columns are orca's); asked for with `data.format=orca-plain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.formats import orca
from penchant.types import Comparison

NAME = "orca-plain"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """Only by name."""
    return False


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One pair of strings."""
    system, question, chosen, rejected = orca.parts(row)
    return Comparison(
        row_id=row_id,
        prompt=system + question,
        responses=(chosen, rejected),
        scores=fields.pair_scores(row),
        pairs=((0, 1),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )
