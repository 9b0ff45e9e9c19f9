"""DSP's and MORE's lists: `text` holds whole dialogues or answers, `score` one number for each.

Columns text (or texts) and score (or scores). What comes before `<sep>` is the prompt; transcripts
of "Human:" and "Assistant:" become messages, with what all have in common as the prompt; other
texts are split at the last whitespace before their first difference. Empty texts, with which the
original fills up short rows, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.data import fields
from penchant.data.formats import hh, preference
from penchant.data.rows import RowError
from penchant.data.transcripts import is_transcript, require_answer, turns
from penchant.types import Comparison, Text

NAME = "text-score"

TEXTS = ("text", "texts")
SCORES = ("score", "scores")
_SEPARATOR = "<sep>"


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """One column of each kind; the texts are a list."""
    given = next((row[name] for name in TEXTS if row.get(name) is not None), None)
    has_each = columns.intersection(TEXTS) and columns.intersection(SCORES)
    listed = isinstance(given, list) or (isinstance(given, str) and given.startswith('["'))
    return bool(has_each) and listed


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One comparison; which of the responses become pairs is decided later, by score."""
    texts = fields.listed(fields.column(row, *TEXTS), "text")
    scores = fields.listed(fields.column(row, *SCORES), "score")
    if len(texts) != len(scores):
        raise RowError("scores_do_not_fit", f"{len(texts)} texts but {len(scores)} scores")
    checked = [fields.checked_string(text, "a text") for text in texts]
    kept = fields.not_empty(checked)
    prompt, responses = _split([checked[index] for index in kept])
    fields.not_empty(responses)
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=tuple(responses),
        scores=tuple(fields.score(scores[index], "a score") for index in kept),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )


def num_given(row: Mapping[str, Any]) -> int:
    """Texts, the empty ones too."""
    return len(fields.listed(fields.column(row, *TEXTS), "text"))


def _split(texts: Sequence[str]) -> tuple[Text, list[Text]]:
    if all(_SEPARATOR in text for text in texts):
        prompts, _, answers = zip(*(text.partition(_SEPARATOR) for text in texts), strict=True)
        if len(set(prompts)) > 1:
            raise RowError("prompt_per_response", "the texts differ before <sep>")
        if is_transcript(prompts[0]):
            return _dialogues([prompts[0] + answer for answer in answers])
        return prompts[0], list(answers)
    if all(map(is_transcript, texts)):
        return _dialogues(texts)
    start, cut = min(texts), 0
    other = max(texts)
    while cut < min(len(start), len(other)) and start[cut] == other[cut]:
        cut += 1
    cut = preference.word_border(start, cut)
    return start[:cut], [text[cut:] for text in texts]


def _dialogues(texts: Sequence[str]) -> tuple[Text, list[Text]]:
    """What all dialogues begin with, and how each goes on: at least its last turn."""
    said = [turns(text, "a text") for text in texts]
    for one in said:
        require_answer(one, "a text")
    shared = 0
    while shared < min(map(len, said)) - 1 and all(one[shared] == said[0][shared] for one in said):
        shared += 1
    if not shared:
        raise RowError("empty_prompt", "the texts have no first turn in common")
    return said[0][:shared], [one[shared:] for one in said]


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """All responses in one row; a row without scores holds nothing that this format says."""
    if comparison.scores is None:
        return []
    prompt = comparison.prompt
    if isinstance(prompt, str):
        texts = [f"{prompt}{_SEPARATOR}{response}" for response in comparison.responses]
    else:
        texts = [hh.transcript((*prompt, *response)) for response in comparison.responses]
    return [{"text": texts, "score": [fields.or_none(score) for score in comparison.scores]}]
