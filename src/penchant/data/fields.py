"""Single fields of a row: text, messages and scores, checked; shared by all formats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from penchant.data.rows import RowError
from penchant.types import Comparison, Message, Text

Messages = tuple[Message, ...]

_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}
"""Who speaks in a ShareGPT turn, in the words of chat templates."""

_SCORE_NAMES = {
    "chosen": ("score_chosen", "chosen_rating", "chosen-rating", "chosen_score"),
    "rejected": ("score_rejected", "rejected_rating", "rejected-rating", "rejected_score"),
}


def column(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that the row has; raises RowError `missing_column`."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise RowError("missing_column", f"no {' or '.join(names)}")


def checked_string(value: Any, name: str) -> str:
    """A string that UTF-8 can hold; raises RowError `wrong_type` or `bad_text`."""
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("bad_text", f"{name} holds half of a surrogate pair") from None
    return value


def text(value: Any, name: str) -> Text:
    """A string, or a list of messages; raises RowError for anything else."""
    if isinstance(value, Mapping):
        value = [value]
    return (
        messages(value, name) if isinstance(value, (list, tuple)) else checked_string(value, name)
    )


def messages(value: Any, name: str) -> Messages:
    """Turns with `role` and `content`; keys that hold None (Parquet's padding) are left out."""
    if not isinstance(value, (list, tuple)):
        raise RowError("wrong_type", f"{name} is {type(value).__name__}, not a list of messages")
    return tuple(_message(turn, name) for turn in value)


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong_type", f"{name} holds {type(turn).__name__}, not messages")
    if turn.get("role") is None and turn.get("from") is not None:
        turn = _from_sharegpt(turn, name)
    role = checked_string(turn.get("role"), f"a role of {name}")
    kept = {str(key): value for key, value in turn.items() if value is not None}
    content = kept.get("content")
    if "tool_calls" in kept:
        kept["tool_calls"] = listed(kept["tool_calls"], f"tool_calls of {name}")
    if isinstance(content, (list, tuple)):
        content = _joined_parts(content, name)
    if content is None and not kept.get("tool_calls"):
        raise RowError("wrong_type", f"a turn of {name} has no content")
    kept["content"] = "" if content is None else checked_string(content, f"content of {name}")
    return {**kept, "role": role}


def _from_sharegpt(turn: Mapping[str, Any], name: str) -> dict[str, Any]:
    """{from, value} as {role, content}; a function call that is JSON as a tool call."""
    speaker = checked_string(turn["from"], f"a speaker of {name}")
    role = _SHAREGPT_ROLES.get(speaker.lower())
    if role is None:
        raise RowError("unknown_role", f"{name} has a turn from {speaker[:40]!r}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value", "role")}
    made = {**rest, "role": role, "content": turn.get("value")}
    if speaker.lower() == "function_call":
        calls = _tool_calls(turn.get("value"))
        return {**made, "content": None, "tool_calls": calls} if calls else made
    return made


def _tool_calls(value: Any) -> list[dict[str, Any]]:
    """Calls in JSON text, {name, arguments} each; empty where it is something else."""
    try:
        given = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return []
    calls = given if isinstance(given, list) else [given]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def listed(value: Any, name: str) -> list[Any]:
    """A list, or the JSON text of one (a CSV cell, say); raises RowError `wrong_type`."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError("wrong_type", f"{name} is text but not a JSON list") from None
    if not isinstance(value, (list, tuple)):
        raise RowError("wrong_type", f"{name} is {type(value).__name__}, not a list")
    return list(value)


def _joined_parts(parts: Sequence[Any], name: str) -> str:
    """Text of a content given in parts, as vision templates write it."""
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    if len(texts) != len(parts) or not all(isinstance(part, str) for part in texts):
        raise RowError("wrong_type", f"content of {name} has parts that are not text")
    return "".join(texts)  # type: ignore[arg-type]


def is_empty(response: Text) -> bool:
    """Nothing but whitespace, and no tool call."""
    if isinstance(response, str):
        return not response.strip()
    return not any(turn["content"].strip() or turn.get("tool_calls") for turn in response)


def as_turn(response: Text) -> Text:
    """A string as the assistant's message."""
    if isinstance(response, str):
        return ({"role": "assistant", "content": response},)
    return response


def user_turn(content: str) -> Messages:
    """A lone message of the user."""
    return ({"role": "user", "content": content},)


def check_sides(chosen: Text, rejected: Text) -> None:
    """Raises RowError `empty_response` or `chosen_equals_rejected`."""
    if is_empty(chosen) or is_empty(rejected):
        raise RowError("empty_response", "chosen or rejected holds no text")
    if chosen == rejected:
        raise RowError("chosen_equals_rejected", "the two responses are the same")


def not_empty(responses: Sequence[Text]) -> list[int]:
    """Which responses hold text; raises RowError where fewer than two of several do."""
    kept = [index for index, response in enumerate(responses) if not is_empty(response)]
    if len(kept) < min(2, len(responses)) or not kept:
        raise RowError("empty_response", f"{len(kept)} of {len(responses)} responses hold text")
    return kept


def plain_text(value: Text) -> str:
    """The words of a text, for excerpts and comparisons; not what a model sees."""
    return value if isinstance(value, str) else "\n".join(turn["content"] for turn in value)


def score(value: Any, name: str) -> float:
    """A number; several ratings become their mean; None becomes NaN.

    Raises RowError `wrong_type`.
    """
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple)):
        if any(isinstance(rating, (list, tuple)) for rating in value):
            raise RowError("wrong_type", f"{name} holds lists within a list, not numbers")
        ratings = [score(rating, name) for rating in value]
        return sum(ratings) / len(ratings) if ratings else math.nan
    if isinstance(value, str) and not value.strip():
        return math.nan
    try:
        if isinstance(value, (bool, int, float, str)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise RowError("wrong_type", f"{name} is {str(value)[:40]!r}, not a number")


def pair_scores(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Scores of chosen and rejected under any of their names; None where the row has neither."""
    present = {
        side: next((name for name in names if row.get(name) is not None), None)
        for side, names in _SCORE_NAMES.items()
    }
    if not any(present.values()):
        return None
    chosen, rejected = (
        score(row[name], name) if name is not None else math.nan for name in present.values()
    )
    return chosen, rejected


def label(value: Any, name: str) -> bool:
    """Thumbs up or down: a boolean, 0 or 1, or one of those as text; raises RowError."""
    if value is None:
        raise RowError("missing_column", f"no {name}")
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    if value in (0, 1) and isinstance(value, (bool, int, float)):
        return bool(value)
    raise RowError("wrong_type", f"{name} is neither true nor false")


def or_none(score: float) -> float | None:
    """A score as JSON can hold it."""
    return score if math.isfinite(score) else None


def known(comparison: Comparison) -> dict[str, Any]:
    """Columns of a written row that every format may have."""
    made: dict[str, Any] = dict(comparison.template_kwargs)
    tools = made.pop("tools", None)
    columns = {"prompt_id": comparison.prompt_id, "tools": tools, "chat_template_kwargs": made}
    return {name: value for name, value in columns.items() if value}


def prompt_id(row: Mapping[str, Any]) -> str | None:
    """`prompt_id` as a string."""
    value = row.get("prompt_id")
    return None if value is None else str(value)


def template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets besides messages: `tools` and `chat_template_kwargs`."""
    tools = _decoded(row.get("tools"), "tools")
    extra = _decoded(row.get("chat_template_kwargs"), "chat_template_kwargs")
    if tools and not isinstance(tools, list):
        raise RowError("wrong_type", f"tools is {type(tools).__name__}, not a list")
    if extra and not isinstance(extra, Mapping):
        raise RowError("wrong_type", "chat_template_kwargs is not a mapping")
    kwargs = {str(key): value for key, value in (extra or {}).items() if value is not None}
    return {**kwargs, "tools": tools} if tools else kwargs


def _decoded(value: Any, name: str) -> Any:
    """The value, or what its JSON text holds."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise RowError("wrong_type", f"{name} is text but not JSON") from None
