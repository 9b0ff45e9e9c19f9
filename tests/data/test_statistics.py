"""The figures of the data report: by hand, and against counting one by one."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.data import statistics

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


def test_length_bias_by_hand() -> None:
    """Lengths 4:2, 6:6, 2:4 and 8:4: two longer, one equal, one shorter."""
    bias = statistics.length_bias(np.array([4, 6, 2, 8]), np.array([2, 6, 4, 4]))
    assert (bias.chosen_longer, bias.equal, bias.rejected_longer) == (2, 1, 1)
    assert bias.share_chosen_longer == 2.5 / 4
    assert bias.longer_by == pytest.approx(5 / 4 - 1)
    assert bias.mean_ratio == pytest.approx((2 * 1 * 0.5 * 2) ** 0.25)
    assert bias.length_only_accuracy == 2.5 / 4
    labels, both = [1] * 4 + [0] * 4, [4, 6, 2, 8, 2, 6, 4, 4]
    assert bias.correlation == pytest.approx(np.corrcoef(labels, both)[0, 1])
    assert not bias.is_significant


def test_a_length_only_rule_may_also_take_the_shorter_one() -> None:
    bias = statistics.length_bias(np.full(100, 2), np.full(100, 3))
    assert bias.length_only_accuracy == 1.0 and bias.share_chosen_longer == 0.0
    assert bias.is_significant and bias.longer_by == pytest.approx(-1 / 3)
    same = statistics.length_bias(np.full(100, 2), np.full(100, 2))
    assert (same.correlation, same.length_only_accuracy) == (0.0, 0.5)
    assert not same.is_significant


def test_score_gaps_and_soft_labels_by_hand() -> None:
    gaps = statistics.score_gaps(np.array([2.0, 0.0, -1.0, math.nan, 4.0]), bt_beta=2.0)
    assert gaps is not None and gaps.soft_labels is not None
    assert (gaps.pairs, gaps.ties, gaps.negative) == (4, 1, 1)
    assert (gaps.smallest, gaps.median, gaps.largest) == (-1, 1, 4)
    assert sum(gaps.histogram.counts) == 4
    p = [1 / (1 + math.exp(-2 * gap)) for gap in (2, 0, -1, 4)]
    labels = gaps.soft_labels
    assert labels.mean == pytest.approx(sum(p) / 4)
    # 0.982, 0.5, 0.119 and 0.9997.
    assert (labels.saturated, labels.even, labels.below_half) == (1, 1, 1)
    # The median of 1, 2 and 4 is 2: sigmoid(ln(9) / 2 * 2) is 0.9.
    assert labels.suggested_bt_beta == pytest.approx(math.log(9) / 2)
    assert statistics.score_gaps(np.array([math.nan]), 1.0) is None


def test_huge_gaps_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        gaps = statistics.score_gaps(np.array([5000.0, -5000.0]), bt_beta=10.0)
    assert gaps is not None and gaps.soft_labels is not None
    assert gaps.soft_labels.saturated == 2 and gaps.soft_labels.mean == 0.5


@given(LENGTHS, st.floats(0, 0.99))
def test_the_suggested_limit_is_the_smallest_that_cuts_so_little(
    lengths: list[int], fraction: float
) -> None:
    limit = statistics.limit_for(np.array(lengths), fraction)
    assert sum(one > limit for one in lengths) <= fraction * len(lengths) + 1e-9
    assert sum(one > limit - 1 for one in lengths) > fraction * len(lengths) - 1e-9
    assert statistics.cut_by_limit(np.array(lengths), limit) == sum(x > limit for x in lengths)


@given(LENGTHS, LENGTHS)
def test_every_length_is_in_one_bar(one: list[int], two: list[int]) -> None:
    edges, is_open = statistics.length_edges(np.array(one), np.array(two))
    assert edges[0] == 0 and edges == sorted(set(edges))
    for lengths in (one, two):
        found = statistics.lengths(np.array(lengths), edges, is_open)
        counts = [sum(a <= x < b for x in lengths) for a, b in pairwise(edges)]
        assert found.histogram.counts == counts and sum(counts) == found.count
        assert found.longest == max(lengths)


@given(LENGTHS, st.integers(2, 6000))
def test_what_is_longer_than_the_limit_is_drawn_beyond_it(lengths: list[int], limit: int) -> None:
    edges, is_open = statistics.length_edges(np.array(lengths), limit=limit)
    if is_open and max(lengths) > limit:
        assert edges[-2] > limit
    assert edges[-1] > max(lengths)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_every_gap_is_in_one_bar(gaps: list[float]) -> None:
    found = statistics.score_gaps(np.array(gaps))
    assert found is not None
    assert sum(found.histogram.counts) == len(gaps)
    assert found.histogram.edges == sorted(set(found.histogram.edges))


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [(0, 5, "0 %"), (1, 5000, "< 0.1 %"), (26, 100, "26 %"), (1, 80, "1.2 %"),
     (9999, 10000, "> 99 %"), (7, 7, "100 %"), (999, 10000, "10 %")],
)  # fmt: skip
def test_a_share_hides_nothing(count: int, of: int, shown: str) -> None:
    assert statistics.share(count, of) == shown
