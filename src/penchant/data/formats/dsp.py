"""DSP's domain rows: a query and one response per domain; `data.format=dsp:academy` prefers one.

The preferred domain's response is chosen against each other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "dsp"


def choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The domains that answer."""
    given = row.get("responses")
    return tuple(map(str, given)) if isinstance(given, Mapping) else ()


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """query, and responses by name, without scores."""
    scored = {"scores", "ratings"} & columns
    return (
        {"query", "responses"} <= columns
        and isinstance(row.get("responses"), Mapping)
        and not scored
    )


def read(row: Mapping[str, Any], row_id: str, source: str, choice: str = "") -> Comparison:
    """The preferred response against each other one."""
    query = fields.checked_string(fields.column(row, "query"), "query")
    given = fields.column(row, "responses")
    if not isinstance(given, Mapping):
        raise RowError("wrong_type", "responses are not named by domain")
    if given.get(choice) is None:
        raise RowError("missing_column", f"no response for {choice!r}")
    texts = [
        fields.checked_string(given[name], f"the response for {name}")
        for name in (choice, *(name for name in given if name != choice))
        if given[name] is not None
    ]
    if len(texts) < 2:
        raise RowError("no_pair", "one response, and nothing to compare it with")
    for other in texts[1:]:
        fields.check_sides(texts[0], other)
    return Comparison(
        row_id=row_id,
        prompt=fields.user_turn(query),
        responses=tuple(fields.as_turn(text) for text in texts),
        pairs=tuple((0, index) for index in range(1, len(texts))),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )
