"""Conversations without a comparison, for SFT: `messages`, or `prompt` and `completion`.

The prompt ends before the first assistant turn; which of the turns after it are trained on is the
tree's business (`train_on`). Turns after the last assistant turn predict nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.types import Comparison, Text

NAME = "messages"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """messages, or prompt and completion, and nothing that compares."""
    compared = {"chosen", "rejected", "label", "kto_tag", "labels", "scores", "ratings"} & columns
    return not compared and ("messages" in columns or {"prompt", "completion"} <= columns)


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One prompt with one response."""
    if row.get("messages") is not None:
        prompt, response = split(fields.messages(row["messages"], "messages"))
    else:
        prompt = fields.text(fields.column(row, "prompt", "messages"), "prompt")
        response = fields.text(fields.column(row, "completion"), "completion")
        if isinstance(prompt, str) != isinstance(response, str):
            raise RowError("wrong_type", "one of prompt and completion is text, the other messages")
    if fields.is_empty(response):
        raise RowError("empty_response", "the response holds no text")
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=(response,),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
        template_kwargs=fields.template_kwargs(row),
    )


def split(turns: fields.Messages) -> tuple[Text, Text]:
    """Prompt and response of a conversation; raises RowError `no_assistant_turn`."""
    spoken = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not spoken:
        raise RowError("no_assistant_turn", "no message has the role assistant")
    return turns[: spoken[0]], turns[spoken[0] : spoken[-1] + 1]


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each response that is worth learning: chosen, thumb up, best, or the only one."""
    return [row(comparison, comparison.responses[index]) for index in good_responses(comparison)]


def good_responses(comparison: Comparison) -> list[int]:
    """Which responses somebody prefers; all of one response without a label."""
    if comparison.pairs:
        return sorted({chosen for chosen, _ in comparison.pairs})
    if comparison.labels is not None:
        return [index for index, up in enumerate(comparison.labels) if up]
    if comparison.scores is not None and len(comparison.responses) > 1:
        known = [index for index, score in enumerate(comparison.scores) if score == score]
        return [max(known, key=lambda index: comparison.scores[index])] if known else []  # type: ignore[index]
    return [0] if len(comparison.responses) == 1 else []


def row(comparison: Comparison, response: Text) -> dict[str, Any]:
    """A prompt with one response, as messages or, where they are strings, apart."""
    if isinstance(comparison.prompt, str):
        made: dict[str, Any] = {"prompt": comparison.prompt, "completion": response}
    else:
        made = {"messages": [*comparison.prompt, *response]}
    return made | fields.known(comparison)
