"""Scored candidates of one prompt made ready for choosing: what takes part, and what is chosen.

Pure but for the reading of rows that somebody else hands in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.data import fields
from penchant.data.carried import CarriedRow
from penchant.data.pairing import Pair, PairSettings, plan_pairs
from penchant.data.rows import RowError
from penchant.generate.select import best_index
from penchant.types import Comparison


@dataclass(frozen=True)
class Scored:
    """A row whose candidates have scores."""

    row_id: str
    comparison: Comparison
    """With the candidates that take part, and the scores that choose; no pairs."""
    gold: tuple[float, ...] | None
    """A second score of each."""
    num_left_out: int = 0
    """Candidates beyond the first n."""
    num_without_score: int = 0
    """Candidates whose score, or gold score, is missing or not finite."""
    domains: tuple[str, ...] | None = None
    """DSP's domain of each."""


def read_scored(row: CarriedRow, by: str, gold: str | None, n: int | None) -> Scored:
    """The candidates of a row that have all scores.

    Args:
        by: column of the scores that choose; `scores` is what the row's format reads.
        gold: column of a second score.
        n: only the first so many.
    Raises:
        RowError: no such column, another number of scores than of responses, no score at all.
    """
    comparison = row.comparison
    if comparison is None:
        assert row.set_aside is not None, "a row is used or set aside"
        raise RowError(row.set_aside.reason, row.set_aside.detail)
    num = len(comparison.responses)
    chooses = _column(row, comparison, by)
    worth = None if gold is None else _column(row, comparison, gold)
    first = range(num if n is None else min(n, num))
    kept = [
        place
        for place in first
        if math.isfinite(chooses[place]) and (worth is None or math.isfinite(worth[place]))
    ]
    if not kept:
        raise RowError("no_score", f"none of {len(first)} candidates has a score")
    return Scored(
        row.row_id,
        replace(
            comparison,
            responses=tuple(comparison.responses[place] for place in kept),
            scores=tuple(chooses[place] for place in kept),
            pairs=None,
            labels=None,
            soft_labels=None,
        ),
        None if worth is None else tuple(worth[place] for place in kept),
        num - len(first),
        len(first) - len(kept),
        _domains(row.columns.get("domains"), num, kept),
    )


def best_of(scored: Scored) -> int:
    """Which candidate is kept: the first of the highest. Raises RowError where it says nothing."""
    best = best_index(scored.comparison.scores or ())
    assert best is not None, "every candidate has a score"
    if fields.is_empty(scored.comparison.responses[best]):
        raise RowError("empty_response", "the best candidate is empty; nothing to learn from it")
    return best


def has_tied_best(scores: Sequence[float]) -> bool:
    """Whether another candidate is as good as the one that is kept."""
    return sum(score == max(scores) for score in scores) > 1


def draw(scored: Scored, settings: PairSettings) -> tuple[Comparison, list[str]]:
    """The comparison with its pairs, and why each other pair of that drawing is left out.

    Raises RowError where no pair is left.
    """
    if len(scored.comparison.responses) < 2:
        raise RowError("no_pair", "one candidate, and nothing to compare it with")
    plan = plan_pairs(scored.comparison, settings)
    kept: list[Pair] = []
    dropped = list(plan.dropped)
    for chosen, rejected in plan.pairs:
        try:
            sides = scored.comparison.responses[chosen], scored.comparison.responses[rejected]
            fields.check_sides(*sides)
            kept.append((chosen, rejected))
        except RowError as error:
            dropped.append(error.reason)
    if not kept:
        raise RowError(dropped[0], "no pair of this row is used")
    return replace(scored.comparison, pairs=tuple(kept)), dropped


def _domains(given: Any, num: int, kept: Sequence[int]) -> tuple[str, ...] | None:
    """Of the candidates that take part; None where the column is none, or another one."""
    if not isinstance(given, list) or len(given) != num:
        return None
    return tuple(str(given[place]) for place in kept)


def _column(row: CarriedRow, comparison: Comparison, name: str) -> tuple[float, ...]:
    """A score per response; NaN where one is missing."""
    if name == "scores" and comparison.scores is not None:
        return comparison.scores
    given: Any = row.columns.get(name)
    if isinstance(given, Mapping):
        given = list(given.values())
    if given is None:
        raise RowError("missing_column", f"no {name}")
    found = tuple(fields.score(one, f"a value of {name}") for one in fields.listed(given, name))
    if len(found) != len(comparison.responses):
        raise RowError(
            "scores_do_not_fit", f"{len(comparison.responses)} responses, {len(found)} in {name}"
        )
    return found
