"""Intervals and paired tests: numbers by hand, published methods as oracles, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from penchant.compare import mean_interval, paired_bootstrap, win_rate
from penchant.errors import DataError

ZERO_8 = np.zeros(8)


def test_difference_is_mean_of_a_minus_mean_of_b() -> None:
    result = paired_bootstrap([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    assert result.difference == pytest.approx(3.0)
    assert result.interval[0] < 3.0 < result.interval[1]


def test_swapping_the_sides_mirrors_the_result() -> None:
    generator = np.random.default_rng(0)
    a_N, b_N = generator.normal(0.2, 1, 60), generator.normal(0, 1, 60)
    forward, backward = paired_bootstrap(a_N, b_N, seed=3), paired_bootstrap(b_N, a_N, seed=3)
    assert backward.difference == pytest.approx(-forward.difference)
    assert backward.interval == pytest.approx((-forward.interval[1], -forward.interval[0]))
    assert backward.p == pytest.approx(forward.p)


def test_pairing_matters() -> None:
    # Prompts differ by far more than the models do; only the pairing shows the 0.1 between them.
    level_N = np.random.default_rng(1).normal(0, 10, 100)
    noise_N = np.random.default_rng(2).normal(0, 0.01, 100)
    result = paired_bootstrap(level_N + 0.1 + noise_N, level_N)
    assert result.p < 0.001
    assert result.interval[0] > 0.09 and result.interval[1] < 0.11


def test_same_seed_same_result_and_another_seed_nearly() -> None:
    a_N = np.random.default_rng(5).exponential(1, 200)
    b_N = np.ones(200)
    first, again, other = (paired_bootstrap(a_N, b_N, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert other.interval == pytest.approx(first.interval, abs=0.02)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_agrees_with_scipys_bca_on_many_prompts(draw: str) -> None:
    values_N = getattr(np.random.default_rng(7), draw)(size=800)
    ours = mean_interval(values_N).interval
    theirs = scipy.stats.bootstrap(
        (values_N,), np.mean, method="BCa", rng=np.random.default_rng(0), batch=500
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.01)


def test_agrees_with_students_t_on_few_prompts_with_normal_noise() -> None:
    values_N = scipy.stats.norm.ppf((np.arange(12) + 0.5) / 12)
    t = scipy.stats.ttest_1samp(values_N, -0.4)
    ours = paired_bootstrap(values_N, np.full(12, -0.4))
    assert ours.p == pytest.approx(t.pvalue, abs=0.03)
    low, high = t.confidence_interval(0.95)
    assert ours.interval == pytest.approx((low + 0.4, high + 0.4), abs=0.12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_p_below_five_percent_exactly_where_the_interval_leaves_zero_out(shift: float) -> None:
    generator = np.random.default_rng(11)
    for _ in range(10):
        result = paired_bootstrap(generator.exponential(1, 40) - 1 + shift, np.zeros(40))
        # Within the resampling's own grain the two may round apart.
        if abs(result.p - 0.05) > 0.002:
            assert (result.p < 0.05) == (not result.interval[0] <= 0 <= result.interval[1])


@pytest.mark.parametrize(
    ("count", "draw"),
    [(10, "normal"), (30, "normal"), (60, "exponential"), (100, "three values")],
)
def test_95_of_100_intervals_hold_the_truth(count: int, draw: str) -> None:
    generator = np.random.default_rng(count)
    held = 0
    for seed in range(300):
        if draw == "normal":
            values_N = generator.normal(size=count)
        elif draw == "exponential":
            values_N = generator.exponential(size=count) - 1
        else:
            values_N = generator.choice([-1.0, 0.0, 1.0], size=count)
        low, high = mean_interval(values_N, seed=seed).interval
        held += low <= 0 <= high
    # 300 trials: 285 expected, standard deviation 3.8.
    assert 273 <= held <= 297


def test_nothing_but_ties() -> None:
    result = paired_bootstrap(ZERO_8 + 2, ZERO_8 + 2)
    assert (result.difference, result.interval, result.p) == (0.0, (0.0, 0.0), 1.0)


def test_p_is_never_below_what_the_signs_alone_could_show() -> None:
    # Three prompts, all won by one: a coin does that (or the opposite) one time in four.
    assert paired_bootstrap([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]).p == 0.25
    assert paired_bootstrap(np.ones(500), np.zeros(500)).p == pytest.approx(1e-4)


def test_extreme_outliers_stay_finite_and_ordered() -> None:
    for count in (2, 3, 4, 10, 300):
        for outlier in (1e6, -1e6):
            values_N = np.r_[np.zeros(count - 1), outlier]
            result = paired_bootstrap(values_N, np.zeros(count))
            low, high = result.interval
            assert np.isfinite([low, high, result.p]).all()
            assert low <= result.difference <= high
            assert 0 < result.p <= 1


def test_win_rate_counts_a_tie_half() -> None:
    result = win_rate([3, 1, 2, 5], [1, 1, 4, 0])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.rate == 0.625


def test_win_rate_interval_is_wilsons() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half width 1.96 sqrt(0.016 + 0.0096) / 1.38415 = 0.22658.
    low, high = win_rate([1.0] * 8 + [0.0] * 2, [0.5] * 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    oracle = scipy.stats.binomtest(8, 10).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((oracle.low, oracle.high))


def test_win_rate_of_all_wins_is_not_certain() -> None:
    low, high = win_rate(np.ones(10), np.zeros(10)).interval
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert win_rate([1.0], [0.0]).interval[0] < 0.3


def test_win_rate_of_all_ties_is_one_half() -> None:
    result = win_rate(ZERO_8, ZERO_8)
    assert result.rate == 0.5
    assert result.interval[0] + result.interval[1] == pytest.approx(1.0)


@pytest.mark.parametrize("compare", [paired_bootstrap, win_rate])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_one_line_errors(compare, bad: float) -> None:
    with pytest.raises(DataError, match=r"^b must be finite, got (nan|inf) at position 1") as error:
        compare([1.0, 2.0, 3.0], [1.0, bad, 3.0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("compare", [paired_bootstrap, win_rate])
def test_lengths_that_differ_are_an_error(compare) -> None:
    with pytest.raises(DataError, match="got 3 and 2 values"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(DataError, match=r"one number per prompt, got shape \(1, 2\)"):
        compare([[1.0, 2.0]], [1.0])


def test_too_few_prompts_are_an_error() -> None:
    with pytest.raises(DataError, match="at least 2 prompts, got 1"):
        paired_bootstrap([1.0], [0.0])
    with pytest.raises(ValueError, match="at least 1 prompt, got 0"):
        win_rate([], [])
