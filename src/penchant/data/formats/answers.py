"""MORE's file of generated answers: `prompt`, and `answer`, a list of texts; `id` stays a column.

A prompt that is a transcript of "Human:" and "Assistant:" becomes messages, as in `samples`. An
empty answer stays in its place, since it is an answer like any other that a model gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.formats import samples
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "answers"

_OTHERS = {
    "responses", "completions", "solutions", "completion", "messages", "conversations", "chosen",
    "rejected", "scores", "ratings", "is_correct", "score", "label", "kto_tag",
}  # fmt: skip


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A prompt of text and a list of texts, and nothing that says which are better."""
    given = row.get("answer")
    texts = isinstance(given, list) and all(isinstance(one, str) for one in given)
    asked = {"prompt", "answer"} <= columns and isinstance(row.get("prompt"), str)
    return asked and texts and not columns & _OTHERS


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One comparison without scores, labels or pairs."""
    asked = fields.checked_string(fields.column(row, "prompt"), "prompt")
    given = fields.listed(fields.column(row, "answer"), "answer")
    if not given:
        raise RowError("empty_response", "the list of answers is empty")
    texts = [fields.checked_string(one, "an answer") for one in given]
    prompt, responses = samples.split(asked, texts)
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=tuple(responses),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )
