"""RewardBench's averages: by hand, then against published lines of its leaderboard."""

from __future__ import annotations

import pytest

from penchant.evaluate.rewardbench import CORE_SUBSETS, PRIOR_SETS, SECTIONS, scores

PART = {
    "alpacaeval-easy": (1.0, 10),
    "mt-bench-med": (0.5, 30),
    "llmbar-natural": (0.3, 7),
    "donotanswer": (0.7, 1),
    "math-prm": (0.4, 5),
    "hep-cpp": (0.8, 10),
    "hep-go": (0.6, 10),
}


def test_a_part_by_hand() -> None:
    found = scores(PART | {"my own subset": (0.0, 1000)})
    by_name = {one.name: one for one in found.sections}
    # Chat: (10 * 1 + 30 * 0.5) / 40. Reasoning: mathematics weighs as much as all 20 code pairs.
    assert by_name["Chat"].score == pytest.approx(0.625)
    assert by_name["Reasoning"].score == pytest.approx((20 * 0.4 + 10 * 0.8 + 10 * 0.6) / 40)
    assert by_name["Reasoning"].weights["math-prm"] == 0.5
    assert by_name["Reasoning"].num_pairs == 25
    assert found.score == pytest.approx((0.625 + 0.3 + 0.7 + 0.55) / 4)
    assert not found.is_complete
    assert by_name["Safety"].missing == (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond",
    )  # fmt: skip


def test_intervals_of_a_part_by_hand() -> None:
    known = {
        "alpacaeval-easy": (0.7, 1.0), "mt-bench-med": (0.3, 0.8), "llmbar-natural": (0.1, 0.6),
        "donotanswer": (0.5, 0.9), "math-prm": (0.2, 0.6), "hep-cpp": (0.6, 0.9),
        "hep-go": (0.4, 0.7),
    }  # fmt: skip
    found = scores(PART, known)
    by_name = {one.name: one for one in found.sections}
    # Chat, a quarter and three quarters: 0.625 - sqrt((0.25 * 0.3)^2 + (0.75 * 0.2)^2), and
    # 0.625 + sqrt(0 + (0.75 * 0.3)^2); of a section with one subset it is that subset's.
    assert by_name["Chat"].interval == (pytest.approx(0.457295, abs=1e-6), pytest.approx(0.85))
    assert by_name["Chat Hard"].interval == (pytest.approx(0.1), pytest.approx(0.6))
    assert found.interval is not None and found.score is not None
    below = [one.score - one.interval[0] for one in found.sections if one.score and one.interval]
    assert len(below) == 4
    assert found.score - found.interval[0] == pytest.approx(sum(b * b for b in below) ** 0.5 / 4)
    del known["donotanswer"]
    found = scores(PART, known)
    assert found.sections[2].interval is None and found.interval is None
    assert found.sections[0].interval == by_name["Chat"].interval


def test_prior_sets_count_half_and_each_of_them_alike() -> None:
    found = scores(PART | {"shp": (0.6, 1000), "summarize": (0.8, 10)})
    prior = found.sections[-1]
    assert (prior.name, prior.score) == ("Prior Sets", pytest.approx(0.7))
    assert prior.missing == ("anthropic_helpful", "anthropic_hhh")
    assert found.score == pytest.approx((0.625 + 0.3 + 0.7 + 0.55 + 0.5 * 0.7) / 4.5)


@pytest.mark.parametrize(
    ("sections", "published"),
    [
        ((95.0, 45.6, 51.9, 49.6, 50.1), 59.4),
        ((96.6, 59.9, 73.7, 69.0, 58.3), 73.0),
        ((97.5, 62.9, 71.1, 75.0, 67.7), 75.6),
    ],
)
def test_published_averages_come_out(sections: tuple[float, ...], published: float) -> None:
    """Rows of the MMPO paper: Chat, Chat Hard, Safety, Reasoning, Prior Sets, and the average."""
    *core, prior = sections
    given = {
        subset: (value / 100, 3)
        for value, subsets in zip(core, SECTIONS.values(), strict=True)
        for subset in subsets
    }
    given |= dict.fromkeys(PRIOR_SETS, (prior / 100, 5))
    found = scores(given)
    assert found.is_complete
    assert round(100 * found.score, 1) == published


def test_whole_file_has_the_published_weights() -> None:
    code = {name: (0.5, 164) for name in SECTIONS["Reasoning"] if name.startswith("hep-")}
    reasoning = scores(code | {"math-prm": (1.0, 447)}).sections[3]
    assert reasoning.score == pytest.approx((984 * 1.0 + 984 * 0.5) / (2 * 984))
    assert len(CORE_SUBSETS) == 23


def test_a_section_without_anything_leaves_no_score() -> None:
    found = scores({"alpacaeval-easy": (1.0, 2)})
    assert found.score is None
    assert [one.score for one in found.sections] == [1.0, None, None, None]


def test_mathematics_alone_keeps_its_own_weight() -> None:
    assert scores({"math-prm": (0.25, 4)}).sections[3].weights == {"math-prm": 1.0}
