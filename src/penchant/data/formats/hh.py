"""HH transcripts: chosen and rejected are whole dialogues of "Human:" and "Assistant:".

Read as messages: the prompt is what the two have in common, the branch starts at the first turn
in which they differ. A prompt in a column of its own (and answers without "Human:") is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.fields import Messages
from penchant.data.formats import preference
from penchant.data.rows import RowError
from penchant.data.transcripts import is_transcript, require_answer, turns
from penchant.types import Comparison

NAME = "hh"
DRAWS_PAIRS = True

_MARKS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """chosen and rejected, and the dialogue begins with a turn of the human."""
    if not {"chosen", "rejected"} <= columns or not isinstance(row.get("chosen"), str):
        return False
    return is_transcript(row["prompt"] if "prompt" in columns else row["chosen"])


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One pair; both sides end with a turn of the assistant."""
    given = row.get("prompt")
    head = "" if given is None else fields.checked_string(given, "prompt")
    sides = []
    for name in ("chosen", "rejected"):
        text = fields.checked_string(fields.column(row, name), name)
        whole = text if is_transcript(text) else head + text
        side = turns(whole, name)
        require_answer(side, name)
        sides.append(side)
    fields.check_sides(*sides)
    prompt, chosen, rejected = preference.split(None, *sides)
    if not prompt:
        raise RowError("empty_prompt", "chosen and rejected have no first turn in common")
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=(chosen, rejected),
        scores=fields.pair_scores(row),
        pairs=((0, 1),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per pair of messages."""
    if isinstance(comparison.prompt, str):
        return []
    rows = []
    for row in preference.to_rows(comparison):
        prompt = row.pop("prompt")
        sides = {side: transcript((*prompt, *row[side])) for side in ("chosen", "rejected")}
        rows.append({**row, **sides})
    return rows


def transcript(turns: Messages) -> str:
    """A dialogue as one text; only turns of user and assistant can be said in it."""
    return "".join(_MARKS.get(turn["role"], "") + turn["content"] for turn in turns)
