"""Sets, subsets, and what a policy keeps and mends: by hand on real files with tiny tokens."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from penchant.commands._evaluate_measure import intervals as ways
from penchant.commands._evaluate_screen import print_evaluation
from penchant.errors import DataError
from penchant.evaluate.measures import Intervals
from penchant.evaluate.policy import ResponseTotals
from penchant.evaluate.preferences import (
    figures,
    judged_by_policy,
    judged_by_scores,
    pair_rows,
    rewardbench_scores,
)
from penchant.evaluate.sets import PreferenceSet, read_sets
from penchant.pages.reward_tables import rewardbench_section
from tests.commands.world import pair, write_rows
from tests.tiny import tiny_tokenizer

NONE = Intervals(share=lambda v: (0.0, 1.0), mean=lambda v: None)


def read(
    folder: Path, rows: list[dict[str, Any]], subset_by: str | None = None, **settings: Any
) -> PreferenceSet:
    write_rows(folder / "rows.jsonl", rows)
    return read_all([{"path": str(folder / "rows.jsonl")}], subset_by, **settings)[0]


def read_all(
    sources: list[dict[str, Any]], subset_by: str | None = None, **settings: Any
) -> list[PreferenceSet]:
    return read_sets(
        sources, tiny_tokenizer(), format="auto", seed=0, subset_by=subset_by,
        settings={"max_length": 128} | settings,
    )  # fmt: skip


def bench_row(subset: str, number: int) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "chosen": f"good {number}", "rejected": f"bad {number}",
            "subset": subset, "id": number}  # fmt: skip


def test_four_pairs_of_a_policy_by_hand(tmp_path: Path) -> None:
    data = read(tmp_path, [pair(n) for n in range(4)])
    # Chosen and rejected of each pair in turn [nats], and their lengths.
    reference = [-10, -11, -12, -10, -9, -9, -7, -8]
    policy = [-9, -12, -9, -11, -10, -9, -9, -10]
    length = np.array([3, 6, 3, 2, 5, 3, 9, 5])
    judged = judged_by_policy(
        data,
        ResponseTotals(np.array(policy, dtype=float), length),
        ResponseTotals(np.array(reference, dtype=float), length),
        beta=0.5,
    )
    margins = {name: one.tolist() for name, one in judged.margins.items()}
    assert margins["logp"] == [3, 2, -1, 1]
    assert margins["implicit_reward"] == [1, 2, -0.5, 0]  # half of 2, 4, -1, 0
    assert margins["logp_per_token"] == [-1, 2.5, 1, 1]
    assert margins["reference_logp"] == [1, -2, 0, 1]
    found = figures(judged, NONE)
    accuracy = {name: one["accuracy"] for name, one in found["measures"].items()}
    assert accuracy == {
        "implicit_reward": 0.625, "logp": 0.75, "logp_per_token": 0.75,
        "reference_logp": 0.625, "reference_logp_per_token": accuracy["reference_logp_per_token"],
    }  # fmt: skip
    # Easy: pairs 1 and 4, which the reference orders right; the third is a tie, so it is hard.
    easy, hard = found["split"]["easy"], found["split"]["hard"]
    assert (easy["num_pairs"], hard["num_pairs"]) == (2, 2)
    retention = {name: easy["measures"][name]["accuracy"] for name in ("implicit_reward", "logp")}
    correction = {name: hard["measures"][name]["accuracy"] for name in ("implicit_reward", "logp")}
    assert retention == {"implicit_reward": 0.75, "logp": 1.0}
    assert correction == {"implicit_reward": 0.5, "logp": 0.5}
    assert found["split"]["shift"] == {"chosen": 0.25, "rejected": -1.0, "margin": 1.25}
    assert easy["shift"] == {"chosen": -0.5, "rejected": -1.5, "margin": 1.0}
    # Only the implicit reward is a logit, in units of beta.
    calibrated = [name for name, one in found["measures"].items() if one["calibration"]]
    assert calibrated == ["implicit_reward"]
    nll = sum(math.log1p(math.exp(-m)) for m in (1, 2, -0.5, 0)) / 4
    assert found["measures"]["implicit_reward"]["nll"] == pytest.approx(nll)


def test_beta_changes_no_accuracy_and_without_it_nothing_is_calibrated(tmp_path: Path) -> None:
    data = read(tmp_path, [pair(n) for n in range(6)])
    rng = np.random.default_rng(0)
    policy, reference = (ResponseTotals(rng.normal(-20, 3, 12), np.full(12, 4)) for _ in range(2))
    found = [figures(judged_by_policy(data, policy, reference, b), NONE) for b in (None, 0.1, 7.0)]
    accuracies = {one["measures"]["implicit_reward"]["accuracy"] for one in found}
    assert len(accuracies) == 1
    assert found[0]["measures"]["implicit_reward"]["nll"] is None
    assert (
        found[1]["measures"]["implicit_reward"]["nll"]
        != found[2]["measures"]["implicit_reward"]["nll"]
    )


def test_a_policy_without_reference_is_judged_by_its_log_probabilities(tmp_path: Path) -> None:
    data = read(tmp_path, [pair(n) for n in range(2)])
    totals = ResponseTotals(np.array([-1.0, -2.0, -4.0, -3.0]), np.array([1, 2, 2, 3]))
    found = figures(judged_by_policy(data, totals, None, None), NONE)
    assert set(found["measures"]) == {"logp", "logp_per_token"}
    assert found["measures"]["logp"]["accuracy"] == 0.5
    assert found["measures"]["logp_per_token"]["ties"] == 1  # -1 / 1 and -2 / 2
    assert found["split"] is None


def test_where_one_half_is_empty_it_has_no_figures(tmp_path: Path) -> None:
    data = read(tmp_path, [pair(n) for n in range(2)])
    totals = ResponseTotals(np.array([-1.0, -2.0, -3.0, -4.0]), np.array([1, 1, 1, 1]))
    split = figures(judged_by_policy(data, totals, totals, None), NONE)["split"]
    assert split["hard"] == {"num_pairs": 0, "measures": {}, "shift": None}
    assert split["easy"]["measures"]["logp"]["accuracy"] == 1.0


def test_rows_with_several_pairs_share_a_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "P", "responses": ["a", "b", "c"], "scores": [3.0, 1.0, 1.0]}]
    data = read(tmp_path, rows, pairing="all", ties="drop")
    judged = judged_by_scores(data, [[0.5, 0.7, 0.2]])
    found = figures(judged, NONE)
    assert (found["num_prompts"], found["num_pairs"]) == (1, 2)
    assert found["data"]["pairs_dropped"] == {"tie": 1}
    assert found["measures"]["reward"]["accuracy"] == 0.5
    assert list(pair_rows(judged)) == [
        {"set": "rows", "row_id": "rows:1", "pair": n, "reward_chosen": 0.5, "reward_rejected": r}
        for n, r in enumerate([0.7, 0.2])
    ]


def test_subsets_have_a_row_each_in_their_order(tmp_path: Path) -> None:
    rows = [pair(n) | {"topic": topic} for n, topic in enumerate(["b", "a", "b", None, "b"])]
    del rows[4]["topic"]
    data = read(tmp_path, rows, subset_by="topic")
    judged = judged_by_scores(data, [[1, 0], [0, 1], [0, 2], [3, 1], [1, 1]])
    found = figures(judged, NONE)
    table = {row["subset"]: row for row in found["subsets"]}
    assert list(table) == ["b", "a", "(none)"]
    assert table["b"]["measures"]["reward"]["accuracy"] == 0.5
    assert table["a"]["measures"]["reward"]["accuracy"] == 0.0
    assert table["(none)"]["measures"]["reward"]["accuracy"] == 0.75
    assert sum(row["num_pairs"] for row in found["subsets"]) == found["num_pairs"] == 5
    assert [row["subset"] for row in pair_rows(judged)] == ["b", "a", "b", "(none)", "(none)"]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"subset_by=topik: no row .* prompt, chosen, rejected"):
        read(tmp_path, [pair(n) for n in range(3)], subset_by="topik")


def test_a_column_with_a_value_per_row_is_refused(tmp_path: Path) -> None:
    rows = [pair(n) | {"id": n} for n in range(501)]
    with pytest.raises(DataError, match="501 values"):
        read(tmp_path, rows, subset_by="id")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_names_its_row(tmp_path: Path, bad: float) -> None:
    data = read(tmp_path, [pair(n) for n in range(3)])
    with pytest.raises(DataError, match=r"score of response 2 of rows:2 is (nan|inf)"):
        judged_by_scores(data, [[1, 2], [3, bad], [1, 0]])


def test_ties_of_scores_and_rows_set_aside_are_counted(tmp_path: Path) -> None:
    rows = [pair(0), pair(1) | {"chosen": pair(1)["rejected"]}, {"prompt": "only"}, pair(2)]
    data = read(tmp_path, rows)
    found = figures(judged_by_scores(data, [[1, 1], [2, 1]]), NONE)
    assert found["measures"]["reward"]["ties"] == 1
    assert found["measures"]["reward"]["accuracy"] == 0.75
    counts = found["data"]
    assert (counts["rows_in"], counts["rows_used"]) == (4, 2)
    assert sum(counts["set_aside"].values()) == 2
    assert len(counts["examples"]) == len(counts["set_aside"])
    json.dumps(found)


def test_a_set_without_a_pair_is_refused(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(DataError, match="no usable row of 1"):
        read(tmp_path, rows)


def test_rewardbench_is_recognised_and_averaged(tmp_path: Path) -> None:
    names = ["alpacaeval-easy", "alpacaeval-easy", "mt-bench-med", "llmbar-natural", "donotanswer",
             "math-prm", "hep-go", "hep-rust"]  # fmt: skip
    write_rows(tmp_path / "bench.jsonl", [bench_row(name, n) for n, name in enumerate(names)])
    write_rows(tmp_path / "shp.jsonl", [pair(n) for n in range(2)])
    sets = read_all([{"path": str(tmp_path / f"{name}.jsonl")} for name in ("bench", "shp")])
    assert (sets[0].subset_by, sets[1].subset_by) == ("subset", None)
    right = [[1, 0]] * 8
    right[1], right[5] = [0, 1], [0, 1]
    results = [
        figures(judged_by_scores(sets[0], right), NONE),
        figures(judged_by_scores(sets[1], [[1, 0], [0, 1]]), NONE),
    ]
    found = rewardbench_scores(results)["reward"]
    sections = {one["name"]: one["score"] for one in found["sections"]}
    # Chat: 2 of 3 right; Reasoning: mathematics wrong, code right, each a half.
    assert sections == {
        "Chat": pytest.approx(2 / 3), "Chat Hard": 1.0, "Safety": 1.0, "Reasoning": 0.5,
        "Prior Sets": 0.5,
    }  # fmt: skip
    assert found["score"] == pytest.approx((2 / 3 + 1 + 1 + 0.5 + 0.25) / 4.5)
    assert rewardbench_scores(results[1:]) is None
    with pytest.raises(DataError, match="alpacaeval-easy is in several sets"):
        rewardbench_scores([results[0], results[0]])


def test_a_sections_interval_is_that_of_a_bootstrap_within_its_subsets(tmp_path: Path) -> None:
    sizes = {"alpacaeval-easy": (90, 70), "mt-bench-med": (50, 28)}
    rows, right, number = [], [], 0
    for subset, (size, num_right) in sizes.items():
        for place in range(size):
            rows.append(bench_row(subset, number))
            right.append([1, 0] if place < num_right else [0, 1])
            number += 1
    found = rewardbench_scores([figures(judged_by_scores(read(tmp_path, rows), right), ways(0))])
    chat = found["reward"]["sections"][0]
    rng = np.random.default_rng(0)
    drawn = sum(rng.binomial(size, num / size, 20_000) for size, num in sizes.values()) / 140
    expected = np.quantile(drawn, [0.025, 0.975])
    assert chat["score"] == pytest.approx(98 / 140)
    assert chat["interval"] == pytest.approx(tuple(expected), abs=0.015)
    assert expected[1] - expected[0] > 0.12
    assert found["reward"]["interval"] is None, "other sections have nothing"
    json.dumps(found)
    low, high = (f"{100 * end:.1f}" for end in chat["interval"])
    assert f"{low} \u2013 {high}\u00a0%" in str(rewardbench_section(found))
    console = Console(width=90, record=True, file=io.StringIO())
    sets = {"preferences": {"sets": [], "rewardbench": found}}
    print_evaluation(sets | {"model": "m", "kind": "reward", "reference": None}, console)
    assert f"{low}-{high}" in console.export_text()
