"""DSP's domain rows: a query and one response per domain; `data.format=dsp:academy` prefers one.

The preferred domain's response is chosen against each other one. Written, the domains are called
`chosen`, `rejected`, `rejected_2` and so on: `data.format=dsp:chosen` reads them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "dsp"
DRAWS_PAIRS = True


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
    """The preferred response, the first where none is named, against each other one."""
    query = fields.checked_string(fields.column(row, "query"), "query")
    given = fields.column(row, "responses")
    if not isinstance(given, Mapping):
        raise RowError("wrong_type", "responses are not named by domain")
    choice = choice or next(iter(given), "")
    if given.get(choice) is None:
        raise RowError("missing_column", f"no response for {choice!r}")
    texts = [
        fields.checked_string(given[name], f"the response for {name}")
        for name in _domains(given, choice)
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


def more_columns(row: Mapping[str, Any], choice: str | None) -> dict[str, Any]:
    """`domains`: of which each response is, in the order in which they are read."""
    given = row["responses"]
    return {"domains": _domains(given, choice or next(iter(given)))}


def _domains(given: Mapping[str, Any], choice: str) -> list[str]:
    """Those that answer, the preferred one first."""
    others = (name for name in given if name != choice)
    return [name for name in (choice, *others) if given[name] is not None]


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row; nothing where no one response is chosen over others, or a text is not one turn."""
    pairs = comparison.pairs or ()
    wholes = [comparison.prompt, *comparison.responses]
    lone = [whole[0] for whole in wholes if len(whole) == 1 and not isinstance(whole, str)]
    if len({chosen for chosen, _ in pairs}) != 1 or len(lone) != len(wholes):
        return []
    if any({*turn} != {"role", "content"} for turn in lone) or lone[0]["role"] != "user":
        return []
    texts = [turn["content"] for turn in lone[1:]]
    names = ("rejected" if n == 1 else f"rejected_{n}" for n in range(1, len(pairs) + 1))
    responses = {"chosen": texts[pairs[0][0]]}
    responses |= {name: texts[rejected] for name, (_, rejected) in zip(names, pairs, strict=True)}
    prompt_id = {"prompt_id": comparison.prompt_id} if comparison.prompt_id else {}
    return [{"query": lone[0]["content"], "responses": responses, **prompt_id}]
