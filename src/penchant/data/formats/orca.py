"""orca pairs: system, question, chosen (or chatgpt), rejected (or llama2-13b-chat).

Read as messages, so that the model's chat template applies; `data.chat_template=plain` joins
system and question with nothing between, as Intel's script did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.types import Comparison

NAME = "orca"

CHOSEN = ("chosen", "chatgpt")
REJECTED = ("rejected", "llama2-13b-chat")


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """question in place of a prompt, and one spelling of each side."""
    sides = columns.intersection(CHOSEN) and columns.intersection(REJECTED)
    strings = not isinstance(row.get("chosen"), list)
    return bool(sides) and "question" in columns and "prompt" not in columns and strings


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One pair of assistant turns; an empty system text makes no system turn."""
    given = row.get("system")
    system = "" if given is None else fields.checked_string(given, "system")
    question = fields.checked_string(fields.column(row, "question"), "question")
    chosen = fields.checked_string(fields.column(row, *CHOSEN), "chosen")
    rejected = fields.checked_string(fields.column(row, *REJECTED), "rejected")
    fields.check_sides(chosen, rejected)
    asked = {"role": "user", "content": question}
    first = ({"role": "system", "content": system},) if system.strip() else ()
    return Comparison(
        row_id=row_id,
        prompt=(*first, asked),
        responses=tuple(({"role": "assistant", "content": side},) for side in (chosen, rejected)),
        scores=fields.pair_scores(row),
        pairs=((0, 1),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )
