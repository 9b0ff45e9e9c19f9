"""Dialogues written as one text: turns behind "Human:" and "Assistant:"."""

from __future__ import annotations

import re
from typing import Any

from penchant.data.fields import Messages
from penchant.data.rows import RowError

_TURN = re.compile(r"(?:\A|\n\n)(?:## )?(Human|Assistant):")
"""As in HH ("\\n\\nHuman: ") and in DSP's WebGPT ("\\n\\n## Human:\\n")."""
_START = re.compile(r"\s*(?:## )?Human:")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: Any) -> bool:
    """Does a text begin with a turn of the human, and does the assistant answer it?"""
    if not isinstance(text, str) or _START.match(text) is None:
        return False
    return any(found[1] == "Assistant" for found in _TURN.finditer(text))


def turns(text: str, name: str) -> Messages:
    """The turns of a transcript, without the whitespace around what is said.

    Raises RowError `not_a_transcript`.
    """
    found = list(_TURN.finditer(text))
    if not found or text[: found[0].start()].strip():
        raise RowError("not_a_transcript", f"{name} does not begin with Human: or Assistant:")
    ends = [match.start() for match in found[1:]] + [len(text)]
    return tuple(
        {"role": _ROLES[match[1]], "content": text[match.end() : end].strip()}
        for match, end in zip(found, ends, strict=True)
    )


def require_answer(response: Messages, name: str) -> None:
    """Raises RowError where a conversation does not end with words of the assistant."""
    if not response or response[-1]["role"] != "assistant":
        raise RowError("no_assistant_turn", f"{name} does not end with a turn of the assistant")
    if not response[-1]["content"].strip():
        raise RowError("empty_response", f"the last turn of {name} holds no text")
