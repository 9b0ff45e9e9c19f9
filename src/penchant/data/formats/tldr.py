"""TL;DR for SFT: a post of a subreddit and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison, Message

NAME = "tldr"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """subreddit, title, post, summary."""
    return columns >= {"subreddit", "title", "post", "summary"}


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One prompt with one response."""
    summary = fields.checked_string(fields.column(row, "summary"), "summary")
    if fields.is_empty(summary):
        raise RowError("empty_response", "the summary holds no text")
    return Comparison(
        row_id=row_id,
        prompt=question(row),
        responses=(fields.as_turn(summary),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )


def question(post: Mapping[str, Any]) -> tuple[Message, ...]:
    """What is asked for a post, or for a news article where there is no post."""
    if post.get("post") is None:
        article = fields.checked_string(fields.column(post, "article", "post"), "article")
        title = fields.checked_string(post.get("title") or "", "title")
        return fields.user_turn(f"TITLE: {title}\nARTICLE: {article}\nTL;DR: ")
    parts = {
        name: fields.checked_string(fields.column(post, name), name)
        for name in ("subreddit", "title", "post")
    }
    return fields.user_turn(
        f"SUBREDDIT: r/{parts['subreddit']}\nTITLE: {parts['title']}\n"
        f"POST: {parts['post']}\nTL;DR: "
    )
