"""SHP: a post (`history`), two comments and their votes.

The comment with more votes is chosen; where the votes are equal or not given, `labels` decides
(1: the first), and `data.ties=drop` leaves such pairs out. A prompt has at most five pairs unless
`data.max_pairs_per_prompt` says otherwise: a few posts have hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "shp"
MAX_PAIRS_PER_PROMPT = 5

_SIDES = ("human_ref_A", "human_ref_B")
_VOTES = ("score_A", "score_B")


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """history, both comments, and votes or labels."""
    decided = columns.issuperset(_VOTES) or "labels" in columns
    return columns.issuperset(("history", *_SIDES)) and decided


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One pair, with votes as scores."""
    post = fields.checked_string(fields.column(row, "history"), "history")
    first, second = (fields.checked_string(fields.column(row, name), name) for name in _SIDES)
    fields.check_sides(first, second)
    votes = tuple(fields.score(row.get(name), name) for name in _VOTES)
    if votes[0] != votes[1] and votes[0] == votes[0] and votes[1] == votes[1]:
        first_is_better = votes[0] > votes[1]
    else:
        first_is_better = fields.label(row.get("labels"), "labels")
    post_id = row.get("post_id")
    return Comparison(
        row_id=row_id,
        prompt=fields.user_turn(_words(post)),
        responses=(fields.as_turn(first), fields.as_turn(second)),
        scores=votes if row.get(_VOTES[0]) is not None else None,
        pairs=((0, 1),) if first_is_better else ((1, 0),),
        prompt_id=fields.prompt_id(row) or (None if post_id is None else str(post_id)),
        source=source,
        format=NAME,
    )


def _words(post: str) -> str:
    if not post.strip():
        raise RowError("empty_prompt", "history holds no text")
    return post
