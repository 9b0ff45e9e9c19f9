"""Alpaca rows: instruction, input, output; with chosen and rejected LLaMA-Factory's ranking rows.

The input goes below the instruction in the user's turn. `system` and `history` (earlier questions
and answers) may be there. Read as messages, so that the model's chat template applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison, Message

NAME = "alpaca"

_OTHERS = {"prompt", "messages", "conversations", "completions", "responses", "label", "kto_tag"}


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """An instruction, and an output or two sides that are text."""
    ranked = {"chosen", "rejected"} <= columns and not isinstance(row.get("chosen"), list)
    return (
        "instruction" in columns and bool(ranked or "output" in columns) and not columns & _OTHERS
    )


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One response, or a pair; an output that is a list of two is a pair as well."""
    sides = [row.get("chosen"), row.get("rejected")]
    if sides == [None, None]:
        output = fields.column(row, "output")
        sides = output if isinstance(output, list) and len(output) == 2 else [output]
    names = ("chosen", "rejected") if len(sides) == 2 else ("output",)
    texts = []
    for name, side in zip(names, sides, strict=True):
        if side is None:
            raise RowError("missing_column", f"no {name}")
        texts.append(fields.checked_string(side, name))
    if len(texts) == 2:
        fields.check_sides(*texts)
    elif fields.is_empty(texts[0]):
        raise RowError("empty_response", "the output holds no text")
    return Comparison(
        row_id=row_id,
        prompt=_prompt(row),
        responses=tuple(fields.as_turn(text) for text in texts),
        scores=fields.pair_scores(row) if len(texts) == 2 else None,
        pairs=((0, 1),) if len(texts) == 2 else None,
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
        template_kwargs=fields.template_kwargs(row),
    )


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    asked = fields.checked_string(fields.column(row, "instruction"), "instruction")
    more = fields.checked_string(row.get("input") or "", "input")
    system = fields.checked_string(row.get("system") or "", "system")
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for earlier in fields.listed(row.get("history") or [], "history"):
        if not isinstance(earlier, (list, tuple)) or len(earlier) != 2:
            raise RowError("wrong_type", "history is not a list of questions with answers")
        for role, said in zip(("user", "assistant"), earlier, strict=True):
            turns.append({"role": role, "content": fields.checked_string(said, "history")})
    content = "\n".join(part for part in (asked, more) if part.strip())
    if not content:
        raise RowError("empty_prompt", "instruction and input hold no text")
    return (*turns, {"role": "user", "content": content})
