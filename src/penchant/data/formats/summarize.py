"""summarize-from-feedback comparisons: `info` of a post, summaries, and which one was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.formats import tldr
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "summarize-from-feedback"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """info, summaries, choice."""
    return columns >= {"info", "summaries", "choice"}


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """The chosen summary against each other one."""
    info = fields.column(row, "info")
    summaries = fields.listed(fields.column(row, "summaries"), "summaries")
    choice = fields.column(row, "choice")
    if not isinstance(info, Mapping) or not all(isinstance(one, Mapping) for one in summaries):
        raise RowError("wrong_type", "info is no object, or summaries are no list of objects")
    if isinstance(choice, str) and choice.strip().isdecimal():
        choice = int(choice)
    if not isinstance(choice, int) or not 0 <= choice < len(summaries):
        raise RowError("wrong_type", f"choice names none of {len(summaries)} summaries")
    texts = [fields.checked_string(fields.column(one, "text"), "a summary") for one in summaries]
    others = [index for index in range(len(texts)) if index != choice]
    if not others:
        raise RowError("no_pair", "one summary, and nothing to compare it with")
    for other in others:
        fields.check_sides(texts[choice], texts[other])
    post_id = info.get("id")
    return Comparison(
        row_id=row_id,
        prompt=tldr.question(info),
        responses=tuple(fields.as_turn(text) for text in texts),
        pairs=tuple((choice, other) for other in others),
        prompt_id=None if post_id is None else str(post_id),
        source=source,
        format=NAME,
    )
