"""One response with a thumb up or down: `label` (or LLaMA-Factory's `kto_tag`) beside an SFT row.

The rest of the row is what another format reads: prompt and completion, messages, conversations,
or instruction and output. Each row is a comparison of its own, also where prompts repeat: which
thumbs belong together is for the objective to say, and rows in stay rows used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penchant.data import fields
from penchant.data.formats import alpaca, messages, sharegpt
from penchant.data.rows import RowError
from penchant.types import Comparison

NAME = "kto"
DRAWS_PAIRS = True

LABELS = ("label", "kto_tag")
_REST = (messages, sharegpt, alpaca)


def matches(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A label, and columns that are an SFT row without it."""
    rest = columns.difference(LABELS)
    return len(rest) < len(columns) and any(module.matches(rest, row) for module in _REST)


def read(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """One response and its label."""
    columns = frozenset(name for name, value in row.items() if value is not None)
    module = next((one for one in _REST if one.matches(columns.difference(LABELS), row)), None)
    if module is None:
        raise RowError("missing_column", "no prompt and completion, and no messages")
    label = fields.label(fields.column(row, *LABELS), "label")
    whole = module.read(row, row_id, source)
    return replace(whole, labels=(label,), pairs=None, format=NAME)


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per response: with its label, or up for chosen and down for rejected."""
    labels: dict[int, bool] = dict(enumerate(comparison.labels or ()))
    for chosen, rejected in comparison.pairs or ():
        labels.setdefault(chosen, True)
        labels.setdefault(rejected, False)
    return [
        messages.row(comparison, comparison.responses[index]) | {"label": label}
        for index, label in sorted(labels.items())
    ]
