"""Score transforms, and tables of soft labels. Pure but for reading the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from penchant.data.rows import Row
from penchant.data.source import parse_sources, read_source
from penchant.errors import DataError

Transform = Literal["raw", "clip", "log", "rank", "zscore"]

CLIP_PERCENTILES = (5.0, 95.0)


def transform_scores(scores: Sequence[float], how: Transform) -> list[float]:
    """Scores of one data set on another scale; NaN and infinities stay as they are.

    raw: unchanged. clip: to the data set's 5th and 95th percentile. log: sign(s) log(1 + |s|).
    rank: average rank in (0, 1), ties alike. zscore: less the mean, by the standard deviation
    (all 0 where that is 0).
    Raises DataError for another name.
    """
    values = np.asarray(scores, dtype=np.float64)
    known = np.isfinite(values)
    if how == "raw" or not known.any():
        return values.tolist()
    finite = values[known]
    if how == "clip":
        low, high = np.percentile(finite, CLIP_PERCENTILES)
        values[known] = np.clip(finite, low, high)
    elif how == "log":
        values[known] = np.sign(finite) * np.log1p(np.abs(finite))
    elif how == "rank":
        values[known] = (rankdata(finite) - 0.5) / len(finite)
    elif how == "zscore":
        deviation = finite.std()
        values[known] = (finite - finite.mean()) / deviation if deviation > 0 else 0.0
    else:
        raise DataError(f"score_transform is {how!r}; allowed: raw, clip, log, rank, zscore")
    return values.tolist()


def read_soft_labels(path: str) -> dict[str, float]:
    """Soft labels by prompt id, from rows with `prompt_id` and `p_chosen`, or {id: p}.

    Raises DataError: other rows, a p outside [0, 1], two values for one prompt.
    """
    table: dict[str, float] = {}
    (source,) = parse_sources(path)
    for row in read_source(source, seed=0).rows:
        if not isinstance(row, Row):
            raise DataError(f"soft labels {path}: line {row.line}: {row.detail}")
        for key, value in _entries(row.value).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise DataError(
                    f"soft labels {path}: line {row.line}: p of {key!r} is {value!r}, "
                    "not a probability; rows hold prompt_id and p_chosen"
                )
            if not math.isclose(table.setdefault(key, float(value)), value):
                raise DataError(f"soft labels {path}: two values for prompt_id {key!r}")
    return table


def _entries(row: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt_id" in row or "p_chosen" in row:
        return {str(row.get("prompt_id")): row.get("p_chosen")}
    return {str(key): value for key, value in row.items()}
