"""Figures of a data report from plain arrays: lengths, length bias, score gaps. Pure.

Suffixes as in `penchant.types` (P pairs), and N: rows. Lengths are in the report's unit: tokens, or
characters where there is no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = np.ndarray
_NUM_BARS = 28
_SATURATED = 0.99
"""A soft label beyond it, on either side, is a hard one."""
_EVEN = 0.05
"""A soft label nearer to a half says nothing."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values in [edges[i], edges[i + 1]); the last bar holds all that is longer."""

    edges: list[float]
    counts: list[int]
    is_open: bool = False
    """Whether the last bar reaches further than the others."""


@dataclass(frozen=True)
class Lengths:
    """How long the texts of one kind are."""

    count: int
    mean: float
    median: float
    p90: float
    p99: float
    longest: int
    histogram: Histogram


@dataclass(frozen=True, kw_only=True)
class LengthBias:
    """Chosen against rejected: what a rule that sees nothing but lengths would get right."""

    pairs: int
    chosen_longer: int
    equal: int
    rejected_longer: int
    share_chosen_longer: float
    """Ties count half."""
    mean_chosen: float
    mean_rejected: float
    longer_by: float
    """Mean chosen over mean rejected, less 1: 0.4 is "chosen is 40 % longer"."""
    mean_ratio: float
    """Geometric mean of chosen over rejected, pair by pair."""
    correlation: float
    """Of length with the label (chosen 1, rejected 0) over all sides of all pairs."""
    length_only_accuracy: float
    """Of the better of two rules: the longer is the chosen one, or the shorter is; ties half."""
    is_significant: bool
    """Whether the share is further from a half than three standard errors."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What the score gaps become under `p = sigmoid(bt_beta * gap)`."""

    bt_beta: float
    mean: float
    median: float
    saturated: int
    """Pairs with p above 0.99 or below 0.01: hard labels."""
    even: int
    """Pairs with p within 0.05 of a half: the loss hardly moves them."""
    below_half: int
    suggested_bt_beta: float | None
    """Puts the median gap that is no tie at p = 0.9."""
    histogram: Histogram


@dataclass(frozen=True, kw_only=True)
class ScoreGaps:
    """Score of chosen less score of rejected, of the pairs that have both."""

    pairs: int
    mean: float
    median: float
    smallest: float
    largest: float
    ties: int
    negative: int
    histogram: Histogram
    soft_labels: SoftLabels | None = None


@dataclass(frozen=True)
class Limit:
    """What a value of max_length would do."""

    max_length: int
    rows_cut: int
    of: int


def nice_width(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def length_edges(*groups: Values, limit: int = 0) -> tuple[list[float], bool]:
    """Round edges from 0 that serve several groups of lengths, and whether the last bar is open.

    The hundredth with the longest texts shares the last bar: drawn to scale, a few long rows would
    squeeze all others into one bar. Where some are longer than a `limit`, that bar begins beyond
    it, so that everything left of the limit is drawn there.
    """
    values = np.concatenate(groups)
    longest = int(values.max(initial=0))
    usual = float(np.quantile(values, 0.99)) if len(values) else 1.0
    usual = max(usual, float(min(limit, longest)))
    width = max(1.0, math.ceil(nice_width(max(usual, 1.0) / _NUM_BARS)))
    num = max(1, math.ceil((usual + 1) / width))
    edges = [width * place for place in range(num + 1)]
    is_open = longest >= edges[-1]
    if is_open:
        edges.append(float(max(longest + 1, edges[-1] + width)))
    return edges, is_open


def count_in(values: Values, edges: Sequence[float], is_open: bool = False) -> Histogram:
    """The histogram over given edges; every value lies within them."""
    counts, _ = np.histogram(values, bins=np.asarray(edges, dtype=np.float64))
    assert counts.sum() == len(values), "a value outside the edges"
    return Histogram(list(map(float, edges)), list(map(int, counts)), is_open)


def lengths(values: Values, edges: Sequence[float], is_open: bool) -> Lengths:
    """Mean, quantiles and histogram; `values` is not empty."""
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return Lengths(
        count=len(values),
        mean=float(values.mean()),
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        longest=int(values.max()),
        histogram=count_in(values, edges, is_open),
    )


def length_bias(chosen_P: Values, rejected_P: Values) -> LengthBias:
    """Of the lengths of both sides, pair by pair; at least one pair, and no empty side."""
    pairs = len(chosen_P)
    longer = int((chosen_P > rejected_P).sum())
    equal = int((chosen_P == rejected_P).sum())
    share = (longer + equal / 2) / pairs
    both = np.concatenate([chosen_P, rejected_P]).astype(np.float64)
    spread = float(both.std())
    difference = float(chosen_P.mean() - rejected_P.mean())
    decided = pairs - equal
    error = math.sqrt(max(decided, 1)) / 2 / pairs
    return LengthBias(
        pairs=pairs,
        chosen_longer=longer,
        equal=equal,
        rejected_longer=pairs - longer - equal,
        share_chosen_longer=share,
        mean_chosen=float(chosen_P.mean()),
        mean_rejected=float(rejected_P.mean()),
        longer_by=float(chosen_P.mean() / rejected_P.mean()) - 1,
        mean_ratio=float(np.exp(np.mean(np.log(chosen_P) - np.log(rejected_P)))),
        # Half of both sides are chosen, so the label's standard deviation is a half.
        correlation=difference / 2 / spread if spread else 0.0,
        length_only_accuracy=max(share, 1 - share),
        is_significant=abs(share - 0.5) > 3 * error,
    )


def score_gaps(gaps_P: Values, bt_beta: float | None = None) -> ScoreGaps | None:
    """Of the finite gaps; None where there are none.

    Args:
        bt_beta: of an objective that turns gaps into soft labels; these are described too.
    """
    known = gaps_P[np.isfinite(gaps_P)]
    if not len(known):
        return None
    return ScoreGaps(
        pairs=len(known),
        mean=float(known.mean()),
        median=float(np.median(known)),
        smallest=float(known.min()),
        largest=float(known.max()),
        ties=int((known == 0).sum()),
        negative=int((known < 0).sum()),
        histogram=count_in(known, _gap_edges(known)),
        soft_labels=None if bt_beta is None else soft_labels(known, bt_beta),
    )


def soft_labels(gaps_P: Values, bt_beta: float) -> SoftLabels:
    """What finite gaps become; at least one."""
    # As a tanh the sigmoid overflows at neither end.
    p_P = 0.5 * (1 + np.tanh(bt_beta * gaps_P / 2))
    sizes = np.abs(gaps_P[gaps_P != 0])
    return SoftLabels(
        bt_beta=bt_beta,
        mean=float(p_P.mean()),
        median=float(np.median(p_P)),
        saturated=int(((p_P > _SATURATED) | (p_P < 1 - _SATURATED)).sum()),
        even=int((np.abs(p_P - 0.5) < _EVEN).sum()),
        below_half=int((p_P < 0.5).sum()),
        suggested_bt_beta=math.log(9) / float(np.median(sizes)) if len(sizes) else None,
        histogram=count_in(p_P, [place / 20 for place in range(21)]),
    )


def _gap_edges(gaps_P: Values) -> list[float]:
    """Round edges; zero is one of them."""
    low, high = float(gaps_P.min()), float(gaps_P.max())
    if high - low == 0:
        return [low - 0.5, low + 0.5]
    width = nice_width((high - low) / _NUM_BARS)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = [place * width for place in range(first, last + 1)]
    # Rounding must not leave an extreme outside.
    return [min(edges[0], low), *edges[1:-1], max(edges[-1], float(np.nextafter(high, np.inf)))]


def share(count: int, of: int) -> str:
    """A percentage that never rounds something to nothing, or part to all."""
    percent = 100 * count / max(of, 1)
    if 0 < percent < 0.1:
        return "< 0.1 %"
    shown = f"{percent:.1f}" if percent < 9.95 and percent != round(percent) else f"{percent:.0f}"
    return "> 99 %" if shown == "100" and count < of else f"{shown} %"


def cut_by_limit(whole_N: Values, limit: int) -> int:
    """Rows that are longer than a limit."""
    return int((whole_N > limit).sum())


def limit_for(whole_N: Values, fraction: float) -> int:
    """The smallest max_length that cuts at most this fraction of the rows."""
    ordered = np.sort(whole_N)
    allowed = math.floor(fraction * len(ordered) + 1e-9)
    return int(ordered[len(ordered) - 1 - allowed])


def as_values(given: Sequence[Any], dtype: Any = np.int64) -> Values:
    """An array of the given numbers."""
    return np.asarray(given, dtype=dtype)
