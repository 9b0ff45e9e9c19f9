"""From source rows to token trees: formats, token rules, pairing, planning, the report.

`load(path)` reads comparisons, `build_trees(comparisons, tokenizer)` makes what an engine runs.
No module here may have the name of a public function: importing it would put it in its place.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "load": "comparisons",
    "Comparisons": "comparisons",
    "split": "comparisons",
    "read_comparisons": "reading",
    "ComparisonStream": "reading",
    "write": "conversion",
    "best_format": "conversion",
    "same_rows": "comparisons",
    "overlap": "content",
    "tree": "build",
    "build_trees": "build",
    "report": "build",
    "text_report": "untokenised",
    "DataReport": "data_report",
    "chat_template": "render",
    "plan_steps": "pack",
    "plan_micro_batches": "pack",
}


def __getattr__(name: str) -> Any:
    """Loads the file behind a name on first use: `data.config` alone must not import torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'penchant.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
