"""Is one model better than another, and by how much: paired tests and 95 % intervals.

Method
    Differences of means and single means: a bootstrap over the prompts (NUM_RESAMPLES resamples),
    bias-corrected and accelerated (BCa), its level widened for small samples so that for symmetric
    data it agrees with Student's t. `p` is the same interval turned round: the level at which
    its end reaches zero, so `p < 0.05` says the same as "the interval leaves zero out". It is never
    below 2 ** (1 - N), the least that N signs alone could ever show.
    Win rates: Wilson's score interval on wins + ties / 2. Ties make it a little too wide, never
    too narrow, and it stays honest where every prompt is won.
Papers
    Efron 1987, "Better Bootstrap Confidence Intervals"; the widening: Hesterberg 2015,
    https://arxiv.org/abs/1411.5279, section 4.2; Wilson 1927.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from penchant.errors import DataError

LEVEL = 0.95
NUM_RESAMPLES = 10_000
_CHUNK_ENTRIES = 2**22

Numbers = Sequence[float] | NDArray[Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """How much higher `a` is than `b` on the same prompts."""

    difference: float
    """mean(a) - mean(b)."""
    interval: Interval
    """95 % interval of the difference."""
    p: float
    """Two-sided: how easily this difference would arise if there were none."""


@dataclass(frozen=True)
class WinRate:
    """How often `a` beats `b` on the same prompts; a tie counts half."""

    rate: float
    interval: Interval
    """95 % interval of the rate."""
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Mean:
    """A mean over prompts."""

    mean: float
    interval: Interval
    """95 % interval of the mean."""


def paired_bootstrap(a_N: Numbers, b_N: Numbers, seed: int = 0) -> PairedDifference:
    """Holds two models' values on the same N prompts against each other.

    Args: `a_N`, `b_N`: one number per prompt, in the same order; `seed`: of the resampling.
    Raises DataError: lengths differ, fewer than two prompts, a NaN or an infinity.
    """
    a_N, b_N = _pair(a_N, b_N)
    mean, interval, p = _bca(a_N - b_N, seed)
    return PairedDifference(mean, interval, p)


def mean_interval(values_N: Numbers, seed: int = 0) -> Mean:
    """The mean of one number per prompt, with its interval by the same bootstrap.

    Raises DataError: fewer than two prompts, a NaN or an infinity.
    """
    mean, interval, _ = _bca(_vector("values", values_N), seed)
    return Mean(mean, interval)


def win_rate(a_N: Numbers, b_N: Numbers) -> WinRate:
    """The share of N prompts on which `a` is higher than `b`; a tie counts half.

    Raises DataError: lengths differ, no prompt, a NaN or an infinity.
    """
    a_N, b_N = _pair(a_N, b_N)
    if len(a_N) == 0:
        raise DataError("a win rate needs at least 1 prompt, got 0")
    wins, losses = int((a_N > b_N).sum()), int((a_N < b_N).sum())
    ties = len(a_N) - wins - losses
    rate = (wins + ties / 2) / len(a_N)
    return WinRate(rate, _wilson(rate, len(a_N)), wins, ties, losses)


def _wilson(rate: float, count: int) -> Interval:
    """All rates from which `rate` over `count` trials is within z standard errors."""
    z = special.ndtri((1 + LEVEL) / 2)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _bca(values_N: NDArray[Any], seed: int) -> tuple[float, Interval, float]:
    """Mean, its BCa interval, and the p at which the interval's end is zero."""
    count = len(values_N)
    if count < 2:
        raise DataError(f"an interval needs at least 2 prompts, got {count}")
    mean, least_p = float(values_N.mean()), max(2.0 ** (1 - count), 1 / NUM_RESAMPLES)
    residual_N = values_N - mean
    if np.ptp(values_N) <= 1e-12 * np.abs(values_N).max():
        return mean, (mean, mean), 1.0 if mean == 0 else least_p
    resampled_B = np.sort(_resampled_means(values_N, seed))
    bias = special.ndtri(_share_below(resampled_B, mean))
    acceleration = (residual_N**3).sum() / (6 * (residual_N**2).sum() ** 1.5)

    # Hesterberg's widening: t instead of z, and the variance over N - 1 instead of N.
    widening = np.sqrt(count / (count - 1))
    z_2 = widening * special.stdtrit(count - 1, np.array([1 - LEVEL, 1 + LEVEL]) / 2)
    shifted_2 = bias + z_2
    share_2 = special.ndtr(bias + shifted_2 / (1 - acceleration * shifted_2))
    low, high = np.quantile(resampled_B, share_2)

    shift = special.ndtri(_share_below(resampled_B, 0.0)) - bias
    t = (shift / (1 + acceleration * shift) - bias) / widening
    p = float(2 * special.stdtr(count - 1, -abs(t)))
    return mean, (float(low), float(high)), max(p, least_p)


def _resampled_means(values_N: NDArray[Any], seed: int) -> NDArray[Any]:
    """Means of NUM_RESAMPLES draws of N values with replacement, a bounded chunk at a time."""
    generator, count = np.random.default_rng(seed), len(values_N)
    step = max(1, _CHUNK_ENTRIES // count)
    chunks = []
    for start in range(0, NUM_RESAMPLES, step):
        rows = min(step, NUM_RESAMPLES - start)
        drawn = generator.integers(0, count, size=(rows, count), dtype=np.int32)
        chunks.append(values_N[drawn].mean(axis=1))
    return np.concatenate(chunks)


def _share_below(resampled_B: NDArray[Any], value: float) -> float:
    """Share of resamples below `value`, ties half; never quite 0 or 1."""
    below = (resampled_B < value).sum() + (resampled_B == value).sum() / 2
    return float((below + 0.5) / (len(resampled_B) + 1))


def _pair(a_N: Numbers, b_N: Numbers) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as float64 vectors of one length."""
    a, b = _vector("a", a_N), _vector("b", b_N)
    if len(a) != len(b):
        raise DataError(f"a and b must hold the same prompts, got {len(a)} and {len(b)} values")
    return a, b


def _vector(name: str, values_N: Numbers) -> NDArray[Any]:
    """As a finite float64 vector."""
    vector = np.asarray(values_N, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"{name} must hold one number per prompt, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        bad = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise DataError(
            f"{name} must be finite, got {vector[bad]} at position {bad}; "
            "leave prompts without a value out of both sides"
        )
    return vector
