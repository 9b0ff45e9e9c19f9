"""MORE's file of samples to be scored: `query`, and the answers as `sample_0`, `sample_1`, ...

The original reads query + answer as one text. A query that is a transcript of "Human:" and
"Assistant:" becomes messages; any other stays a string, with the answers as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from penchant.data import fields
from penchant.data.formats import hh
from penchant.data.rows import RowError
from penchant.data.transcripts import is_transcript, turns
from penchant.types import Comparison, Text

NAME = "samples"

_SAMPLE = re.compile(r"sample_(\d+)")


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A query and at least one sample."""
    return "query" in columns and any(_SAMPLE.fullmatch(name) for name in columns)


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One comparison without scores, its responses by number; an absent one is left out."""
    query = fields.checked_string(fields.column(row, "query"), "query")
    found = {name: _SAMPLE.fullmatch(str(name)) for name in row}
    names = sorted((int(one[1]), name) for name, one in found.items() if one)
    given = [(name, row.get(name)) for _, name in names]
    texts = [fields.checked_string(one, name) for name, one in given if one is not None]
    if not texts:
        raise RowError("missing_column", "no sample_0")
    prompt, responses = split(query, texts)
    return Comparison(
        row_id=row_id,
        prompt=prompt,
        responses=tuple(responses),
        prompt_id=fields.prompt_id(row),
        source=source,
        format=NAME,
    )


def split(query: str, texts: list[str]) -> tuple[Text, list[Text]]:
    """Prompt and responses: a transcript as messages, without the last turn's empty "Assistant:".

    Any other query stays text, as the responses do.
    """
    marked = query if is_transcript(query) else f"{query}\n\nAssistant:"
    if not is_transcript(marked):
        return query, list(texts)
    said = turns(marked, "query")
    if said and said[-1]["role"] == "assistant" and not said[-1]["content"].strip():
        said = said[:-1]
    return tuple(said), [fields.as_turn(text.strip()) for text in texts]


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """All responses in one row; nothing where one of them is more than a turn."""
    if isinstance(comparison.prompt, str):
        query, texts = comparison.prompt, list(comparison.responses)
    else:
        query = hh.transcript(comparison.prompt) + "\n\nAssistant:"
        if any(len(response) != 1 for response in comparison.responses):
            return []
        texts = [response[0]["content"] for response in comparison.responses]  # type: ignore[index]
    samples = {f"sample_{place}": text for place, text in enumerate(texts)}
    prompt_id = {"prompt_id": comparison.prompt_id} if comparison.prompt_id else {}
    return [{"query": query, **samples, **prompt_id}]
