"""ShareGPT: conversations of {from, value}; with chosen and rejected LLaMA-Factory's ranking rows.

`system` and `tools` may be columns of their own. Function calls become the assistant's tool calls,
observations the tool's turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.formats import messages, preference
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "sharegpt"
DRAWS_PAIRS = True

TURNS = ("conversations", "conversation")
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """conversations, not labelled, and nowhere else that the turns could be."""
    elsewhere = {"messages", "prompt", "label", "kto_tag"} & columns
    return bool(columns.intersection(TURNS)) and not elsewhere


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """A conversation, or a pair of answers to it."""
    turns = fields.messages(fields.column(row, *TURNS), "conversations")
    given = row.get("system")
    if given is not None and fields.checked_string(given, "system").strip():
        turns = ({"role": "system", "content": given}, *turns)
    if row.get("chosen") is None and row.get("rejected") is None:
        prompt, response = messages.split(turns)
        responses: tuple[Any, ...] = (response,)
    else:
        sides = (fields.text(fields.column(row, side), side) for side in ("chosen", "rejected"))
        chosen, rejected = (fields.as_turn(side) for side in sides)
        fields.check_sides(chosen, rejected)
        if not turns:
            raise RowError("empty_prompt", "conversations hold no turn")
        prompt, *responses = preference.split(turns, chosen, rejected)  # type: ignore[assignment]
    if fields.is_empty(responses[0]):
        raise RowError("empty_response", "the response holds no text")
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=tuple(responses),
        scores=fields.pair_scores(row) if len(responses) == 2 else None,
        pairs=((0, 1),) if len(responses) == 2 else None,
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
        template_kwargs=fields.template_kwargs(row),
    )


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A ranking row per pair, else one conversation."""
    if isinstance(comparison.prompt, str):
        return []
    rows = preference.to_rows(comparison) if comparison.pairs else messages.to_rows(comparison)
    made = []
    for row in rows:
        turns = row.pop("prompt" if comparison.pairs else "messages")
        row = {"conversations": _speakers(turns), **row}
        for side in ("chosen", "rejected"):
            if side in row:
                row[side] = _speakers(row[side])
        made.append(row)
    return made


def _speakers(turns: Any) -> list[dict[str, Any]]:
    return [_turn(turn) for turn in turns]


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """One turn; calls of tools become the JSON text of their functions."""
    calls = turn.get("tool_calls")
    if calls and not turn["content"]:
        functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
        value = functions[0] if len(functions) == 1 else functions
        return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}
    return {"from": _SPEAKERS.get(turn["role"], turn["role"]), "value": turn["content"]}
