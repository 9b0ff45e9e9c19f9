"""Training rows that contain an evaluation prompt: lower-cased, whitespace-normalised substring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.data import fields
from penchant.data.rows import Row, RowError
from penchant.data.source import parse_sources, read_source
from penchant.errors import DataError
from penchant.types import Comparison

_COLUMNS = ("prompt", "question", "instruction", "problem", "text", "turns")
_KEY_LENGTH = 20
"""A prompt with fewer characters counts only where it is the whole prompt of a row: "Hi" occurs
in everything. It is also the length by which longer ones are found."""


@dataclass(frozen=True)
class Contamination:
    """Evaluation prompts, ready to be looked for."""

    by_start: Mapping[str, Sequence[str]]
    """Prompts by their first characters."""
    short: frozenset[str]

    @classmethod
    def read(cls, files: Sequence[Any]) -> Contamination:
        """From files with a column prompt, question, instruction, problem, text or turns.

        Raises DataError where a file has no such column.
        """
        texts: set[str] = set()
        for source in parse_sources(list(files)):
            found = set()
            for row in read_source(source, seed=0).rows:
                found |= _prompts(row.value) if isinstance(row, Row) else set()
            if not found:
                raise DataError(f"{source.path}: no column with prompts ({', '.join(_COLUMNS)})")
            texts |= found
        by_start = defaultdict(list)
        for text in texts:
            if len(text) >= _KEY_LENGTH:
                by_start[text[:_KEY_LENGTH]].append(text)
        short = frozenset(text for text in texts if len(text) < _KEY_LENGTH)
        return cls(dict(by_start), short)

    def check(self, comparison: Comparison) -> None:
        """Raises RowError `contaminated` where an evaluation prompt occurs in the row."""
        prompt = _normalised(fields.plain_text(comparison.prompt))
        found = prompt if prompt in self.short else None
        for part in (prompt, *(_normalised(fields.plain_text(r)) for r in comparison.responses)):
            found = found or self._within(part)
        if found is not None:
            raise RowError("contaminated", f"contains the evaluation prompt {found[:80]!r}")

    def _within(self, text: str) -> str | None:
        for start in range(len(text) - _KEY_LENGTH + 1):
            for prompt in self.by_start.get(text[start : start + _KEY_LENGTH], ()):
                if text.startswith(prompt, start):
                    return prompt
        return None


def _prompts(row: Mapping[str, Any]) -> set[str]:
    """The prompts in a row of an evaluation file: of each turn that the user says."""
    value = next((row[name] for name in _COLUMNS if row.get(name) is not None), None)
    parts = value if isinstance(value, (list, tuple)) else [value]
    texts = {
        part.get("content") if isinstance(part, Mapping) and part.get("role") == "user" else part
        for part in parts
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("role") == "user")
    }
    return {_normalised(text) for text in texts if isinstance(text, str) and text.strip()}


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
