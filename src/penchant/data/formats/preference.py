"""prompt, chosen, rejected: strings or messages; the usual layout of preference data.

The prompt may be missing, or repeated at the start of chosen and rejected: the branch starts at
the first message in which the two differ. Without a prompt two strings are split at the last
whitespace before their first difference; the whitespace stays with the responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.data.transcripts import is_transcript
from penchant.types import Comparison, Text

NAME = "preference"
DRAWS_PAIRS = True

_ELSEWHERE = {"question", "instruction", "input", "query", "history", "context", "system"}


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """chosen and rejected, and either a prompt or nowhere else that it could be.

    Strings beside a `question` are orca's; beside an `input`, say, they would lose their prompt.
    Transcripts, conversations and benchmarks with subsets have formats of their own.
    """
    if not {"chosen", "rejected"} <= columns:
        return False
    chosen = row.get("chosen")
    if "prompt" not in columns and "conversations" in columns:
        return False
    if _is_text(chosen) and {"prompt", "subset", "id"} <= columns:
        return False
    if isinstance(chosen, str) and is_transcript(row.get("prompt", chosen)):
        return False
    return "prompt" in columns or isinstance(chosen, list) or not columns & _ELSEWHERE


def _is_text(side: Any) -> bool:
    return isinstance(side[0] if isinstance(side, list) and side else side, str)


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One pair; its scores, where the row has any, in any of their spellings."""
    chosen = fields.text(fields.column(row, "chosen"), "chosen")
    rejected = fields.text(fields.column(row, "rejected"), "rejected")
    given = row.get("prompt")
    prompt = None if given is None else fields.text(given, "prompt")
    if prompt is not None and not isinstance(prompt, str):
        # Beside messages, a bare response is the assistant's turn.
        chosen, rejected = fields.as_turn(chosen), fields.as_turn(rejected)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong_type", "one of chosen and rejected is text, the other messages")
    fields.check_sides(chosen, rejected)
    prompt, chosen, rejected = split(prompt, chosen, rejected)
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=(chosen, rejected),
        scores=fields.pair_scores(row),
        pairs=((0, 1),),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
        template_kwargs=fields.template_kwargs(row),
    )


def split(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt and responses, with what both responses start with moved to the prompt."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return prompt, chosen, rejected
        return split_strings(chosen, rejected)
    trunk: tuple = ()
    if isinstance(prompt, str):
        # The prompt as a string beside whole conversations repeats what they start with.
        if chosen[0]["role"] == "assistant" or rejected[0]["role"] == "assistant":  # type: ignore[index]
            trunk = ({"role": "user", "content": prompt},)
    elif prompt is not None:
        trunk = prompt
        if _starts_with(chosen, trunk) and _starts_with(rejected, trunk):
            chosen, rejected = chosen[len(trunk) :], rejected[len(trunk) :]
    shared = 0
    # Each side keeps at least one message.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return (*trunk, *chosen[:shared]), chosen[shared:], rejected[shared:]


def _starts_with(conversation: Text, trunk: tuple) -> bool:
    return len(conversation) > len(trunk) and conversation[: len(trunk)] == trunk


def split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two strings without a prompt: their common start, back to the last whitespace."""
    cut = 0
    while cut < min(len(chosen), len(rejected)) and chosen[cut] == rejected[cut]:
        cut += 1
    cut = word_border(chosen, cut)
    if fields.is_empty(chosen[cut:]) or fields.is_empty(rejected[cut:]):
        raise RowError("empty_response", "one response is the start of the other")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def word_border(text: str, place: int) -> int:
    """Where the last word before a place ended; the whitespace after it is not counted."""
    while place and not text[place - 1].isspace():
        place -= 1
    return len(text[:place].rstrip())


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per pair; nothing where there are no pairs."""
    scores = comparison.scores
    rows = []
    for pair in comparison.pairs or ():
        chosen, rejected = (comparison.responses[index] for index in pair)
        row: dict[str, Any] = {
            "prompt": comparison.prompt, "chosen": chosen, "rejected": rejected,
        }  # fmt: skip
        if scores is not None:
            row["score_chosen"], row["score_rejected"] = (
                fields.or_none(scores[index]) for index in pair
            )
        rows.append(row | fields.known(comparison))
    return rows
