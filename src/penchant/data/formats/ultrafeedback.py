"""UltraFeedback as first published: an instruction, four completions, ratings by four aspects.

`data.format=ultrafeedback:overall` (the default) takes `overall_score`, 1 to 10;
`ultrafeedback:ratings` the mean of the ratings by aspect, 1 to 5, which disagrees with it where
the overall score was entered wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "ultrafeedback"
DEFAULT_CHOICE = "overall"


def choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Which score."""
    return ("overall", "ratings")


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """An instruction, and completions that are objects with a response."""
    given = row.get("completions")
    first = given[0] if isinstance(given, list) and given else None
    objects = isinstance(first, Mapping) and "response" in first
    return {"instruction", "completions"} <= columns and objects and "chosen" not in columns


def read(
    row: Mapping[str, Any], row_id: str, source: str, choice: str = DEFAULT_CHOICE
) -> Comparison:
    """One comparison; completions that hold no text are left out, unrated ones have score NaN."""
    given = fields.listed(fields.column(row, "completions"), "completions")
    if not given or not all(isinstance(one, Mapping) for one in given):
        raise RowError("wrong_type", "completions are not a list of objects")
    asked = fields.checked_string(fields.column(row, "instruction"), "instruction")
    texts = [
        fields.checked_string("" if one.get("response") is None else one["response"], "a response")
        for one in given
    ]
    kept = fields.not_empty(texts)
    rate = _overall if choice == "overall" else _mean_rating
    return Comparison(
        row_id=row_id,
        prompt=fields.user_turn(asked),
        responses=tuple(fields.as_turn(texts[index]) for index in kept),
        scores=tuple(rate(given[index]) for index in kept),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )


def num_given(row: Mapping[str, Any]) -> int:
    """Completions, the empty ones too."""
    return len(fields.listed(fields.column(row, "completions"), "completions"))


def _overall(completion: Mapping[str, Any]) -> float:
    return _number(completion.get("overall_score"), "overall_score")


def _mean_rating(completion: Mapping[str, Any]) -> float:
    """Mean over the aspects that have a number; `fine-grained_score` where there are none."""
    aspects = completion.get("annotations")
    if not isinstance(aspects, Mapping):
        return _number(completion.get("fine-grained_score"), "fine-grained_score")
    ratings = [
        _number(aspect.get("Rating"), f"Rating of {name}")
        for name, aspect in aspects.items()
        if isinstance(aspect, Mapping)
    ]
    known = [rating for rating in ratings if math.isfinite(rating)]
    return sum(known) / len(known) if known else math.nan


def _number(value: Any, name: str) -> float:
    """A rating; "N/A" is what the annotator writes where there is none."""
    return math.nan if value in ("N/A", "NA", "") else fields.score(value, name)
