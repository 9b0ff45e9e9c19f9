"""RewardBench: prompt, chosen, rejected, subset, id; both sides may be lists (version 2).

Read as messages, so that the model's chat template applies. `id` becomes the prompt id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "rewardbench"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """The five columns, with answers that are text or lists of text."""
    sides = (row.get("chosen"), row.get("rejected"))
    texts = [side[0] if isinstance(side, list) and side else side for side in sides]
    five = columns >= {"prompt", "chosen", "rejected", "subset", "id"}
    return five and all(isinstance(text, str) for text in texts)


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """Each chosen answer against each rejected one."""
    asked = fields.text(fields.column(row, "prompt"), "prompt")
    prompt = fields.user_turn(asked) if isinstance(asked, str) else asked
    if fields.is_empty(prompt):
        raise RowError("empty_prompt", "the prompt holds no text")
    chosen, rejected = (_answers(row, name) for name in ("chosen", "rejected"))
    for good in chosen:
        for bad in rejected:
            fields.check_sides(good, bad)
    number = row.get("id")
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=tuple(fields.as_turn(text) for text in (*chosen, *rejected)),
        pairs=tuple(
            (good, len(chosen) + bad) for good in range(len(chosen)) for bad in range(len(rejected))
        ),
        prompt_id=None if number is None else str(number),
        source=source,
        format=NAME,
    )


def _answers(row: Mapping[str, Any], name: str) -> list[str]:
    given = fields.column(row, name)
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise RowError("empty_response", f"{name} holds no answer")
    return [fields.checked_string(one, name) for one in listed]
