"""Questions with a worked solution, for SFT: `question` or `problem`, `solution` or `answer`.

GSM8K, MATH and BMC's QA sets. Options, where there are any, stand below the question, one a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "solutions"

QUESTION = ("question", "problem")
SOLUTION = ("solution", "answer")
_OTHERS = {"prompt", "chosen", "rejected", "messages", "responses", "scores", "completions"}


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A question and a solution, and nothing that compares."""
    each = columns.intersection(QUESTION) and columns.intersection(SOLUTION)
    return bool(each) and not columns & _OTHERS


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One prompt with one response."""
    asked = fields.checked_string(fields.column(row, *QUESTION), "question")
    if not asked.strip():
        raise RowError("empty_prompt", "the question holds no text")
    options = row.get("options")
    if options is not None:
        lines = [
            fields.checked_string(one, "an option") for one in fields.listed(options, "options")
        ]
        asked = "\n".join([asked, "Options:", *lines])
    worked = fields.checked_string(fields.column(row, *SOLUTION), "solution")
    if fields.is_empty(worked):
        raise RowError("empty_response", "the solution holds no text")
    return Comparison(
        row_id=row_id,
        prompt=fields.user_turn(asked),
        responses=(fields.as_turn(worked),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )
