"""Health rules on curves made by hand: each fires at the step it should, and not one before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.errors import RecipeError, UnhealthyRunError
from penchant.train import health
from penchant.train.config import HealthConfig, TrainingConfig
from penchant.train.health import Facts, Health, at_most
from penchant.train.metrics import Totals
from tests.commands.world import pair, read_metrics, recipe, write_rows, write_world


def facts(**changes: Any) -> Facts:
    given = {"batch_size": 64, "warmup_steps": 0, "eval_pairs": 100}
    own = {key: changes.pop(key) for key in tuple(changes) if key in given}
    return Facts(config=HealthConfig(**changes), **(given | own))


def row(step: int, **changes: Any) -> dict[str, Any]:
    """An update of a run in good health: what others are changed from."""
    return {
        "step": step,
        "loss": 0.6,
        "grad_norm": 1.0,
        "lengths/chosen": 50.0,
        "lengths/rejected": 40.0,
        "logps/chosen": -100.0,
        "logps/rejected": -100.0,
        "logratios/chosen": 0.0,
        "logratios/rejected": -5.0,
        "rewards/accuracies": 0.7,
        "rewards/margins": 0.5,
        "rewards/length_correlation": 0.2,
    } | {key.replace("__", "/"): value for key, value in changes.items()}


def fired(rows: list[dict[str, Any]], given: Facts) -> list[tuple[str, int]]:
    watched = Health(given)
    for one in rows:
        watched.see(one)
    return [(alarm.rule, alarm.step) for alarm in watched.found]


def test_a_run_in_good_health_raises_no_alarm() -> None:
    rows = [row(n, logratios__chosen=-0.5 * n) for n in range(1, 101)]  # one nat per token
    assert fired(rows, facts()) == []


def test_a_fall_of_the_chosen_fires_when_the_mean_of_the_window_passes_the_limit() -> None:
    # Falls by 0.1 nats per token and step: the mean of steps n-3..n is 0.1 * (n - 1.5) - 0.1.
    rows = [row(n, logratios__chosen=-5.0 * n) for n in range(1, 40)]
    given = facts(max_chosen_drop=1.0, window=4, kl_budget=None)
    assert fired(rows, given) == [("chosen_collapse", 13)]
    alarm = health.chosen_collapse(rows[:13], given)
    assert alarm is not None
    assert alarm.figures == {"nats_per_token": 1.05, "limit": 1.0}
    assert "1.05 nats per token" in alarm.line() and "training.learning_rate" in alarm.line()
    assert fired(rows, facts(max_chosen_drop=None, window=4)) == []


def test_without_a_reference_the_fall_is_measured_from_the_first_window() -> None:
    def bare(n: int) -> dict[str, Any]:
        made = row(n, logps__chosen=-50.0 if n <= 4 else -150.0)
        return {key: value for key, value in made.items() if not key.startswith("logratios")}

    # From step 8 on there are two windows; the second one is 2 nats per token lower.
    rows = [bare(n) for n in range(1, 12)]
    assert fired(rows, facts(max_chosen_drop=1.9, window=4)) == [("chosen_collapse", 8)]
    assert fired(rows, facts(max_chosen_drop=2.0, window=4)) == []


def test_length_drift_needs_the_lower_bound_of_the_correlation_above_the_limit() -> None:
    rows = [row(n, rewards__length_correlation=0.9) for n in range(1, 30)]
    assert fired(rows, facts()) == [("length_drift", 20)]
    # 20 rows of 5 pairs weigh 40: atanh(0.9) - 2.326 / sqrt(40) is tanh^-1 of 0.802.
    assert math.tanh(math.atanh(0.9) - 2.326 / math.sqrt(40)) == pytest.approx(0.802, abs=1e-3)
    assert fired(rows, facts(batch_size=5)) == [("length_drift", 20)]
    assert fired(rows, facts(batch_size=5, max_length_correlation=0.81)) == []
    assert fired(rows, facts(batch_size=3)) == []  # a correlation of three pairs says nothing
    away = [row(n, rewards__length_correlation=-0.95) for n in range(1, 30)]
    assert fired(away, facts()) == []


def test_the_kl_budget_is_off_unless_given_and_counts_both_sides() -> None:
    rows = [row(n, logratios__chosen=-10.0, logratios__rejected=-30.0) for n in range(1, 30)]
    assert fired(rows, facts()) == []
    assert fired(rows, facts(kl_budget=20.0)) == []
    assert fired(rows, facts(kl_budget=19.9)) == [("kl_budget", 20)]
    alarm = health.kl_budget(rows, facts(kl_budget=19.9))
    assert alarm is not None and alarm.figures == {"kl": 20.0, "budget": 19.9}


def test_a_gradient_spike_is_held_against_the_median() -> None:
    rows = [row(n, grad_norm=0.5 + n % 2) for n in range(1, 25)]  # 1.5 and 0.5: median 1
    assert fired([*rows, row(25, grad_norm=10.0)], facts()) == []
    assert fired([*rows, row(25, grad_norm=10.01)], facts()) == [("grad_spike", 25)]
    assert fired([*rows[:19], row(20, grad_norm=99.0)], facts()) == []  # too few to compare with
    # One earlier spike moves a mean, not the median.
    early = [row(1, grad_norm=1e6), *rows, row(26, grad_norm=15.1)]  # median 1.5
    assert fired(early, facts()) == [("grad_spike", 26)]


def test_the_accuracy_is_tested_after_warm_up_on_enough_pairs() -> None:
    rows = [row(n, rewards__accuracies=0.5) for n in range(1, 60)]
    assert fired(rows, facts()) == [("accuracy_at_chance", 32)]  # 32 * 64 = 2048 pairs
    assert fired(rows, facts(warmup_steps=5)) == [("accuracy_at_chance", 37)]
    assert fired(rows, facts(min_accuracy=None)) == []
    assert fired(rows[:31], facts()) == []
    # 0.53 of 2048 cannot be told from 0.55 at one per cent; 0.52 can.
    assert fired([{**one, "rewards/accuracies": 0.53} for one in rows], facts()) == []
    assert len(fired([{**one, "rewards/accuracies": 0.52} for one in rows], facts())) == 1


def test_an_evaluation_below_chance_is_told_from_ties() -> None:
    def evaluation(step: int, accuracy: float, margin: float) -> dict[str, Any]:
        rates = {"eval_rewards/accuracies": accuracy, "eval_rewards/margins": margin}
        return {"step": step, "eval_loss": 0.7, **rates}

    assert fired([evaluation(0, 0.2, -0.1)], facts()) == []  # nothing was learned yet
    assert fired([evaluation(5, 0.37, -0.1)], facts()) == [("eval_below_chance", 5)]
    assert fired([evaluation(5, 0.39, -0.1)], facts()) == []  # P(X <= 39 | 100, 1/2) = 0.018
    assert fired([evaluation(5, 0.37, 0.1)], facts()) == []
    assert fired([evaluation(5, 0.2, -0.1)], facts(eval_pairs=5)) == []


def test_the_binomial_tail_by_hand() -> None:
    assert at_most(0, 3, 0.5) == pytest.approx(1 / 8)
    assert at_most(1, 3, 0.5) == pytest.approx(4 / 8)
    assert at_most(1, 2, 0.1) == pytest.approx(1 - 0.01)
    assert at_most(3, 3, 0.5) == 1.0 == at_most(0, 0, 0.5)
    # https://en.wikipedia.org/wiki/Binomial_distribution: the median of B(2000, 1/2) is 1000.
    assert at_most(999, 2000, 0.5) < 0.5 < at_most(1000, 2000, 0.5)


def test_each_rule_fires_once_and_off_means_off() -> None:
    rows = [row(n, grad_norm=100.0 if n > 24 else 1.0) for n in range(1, 30)]
    assert fired(rows, facts()) == [("grad_spike", 25)]
    assert fired(rows, facts(action="off")) == []


def test_a_resumed_run_knows_what_it_found() -> None:
    rows = [row(n, grad_norm=100.0 if n > 24 else 1.0) for n in range(1, 30)]
    for action, again in (("warn", 0), ("stop", 1)):
        watched = Health(facts(action=action))
        watched.replay(rows)
        assert [one["step"] for one in watched.to_list()] == [25]
        assert len(watched.take_pending()) == again
        assert watched.take_pending() == []


def test_the_correlation_of_a_row_is_pearsons_over_any_split() -> None:
    import torch

    from penchant.types import ObjectiveOutput, PairLogps

    lengths, margins = [3, 9, 4, 7], [0.1, 1.4, -0.3, 0.2]
    totals = Totals()
    for part in (slice(0, 1), slice(1, 4)):
        number = len(lengths[part])
        zero_P, margin_P = torch.zeros(number), torch.tensor(margins[part]).double()
        policy = PairLogps.from_totals(
            zero_P,
            zero_P,
            chosen_lengths_P=torch.tensor(lengths[part]),
            rejected_lengths_P=torch.full((number,), 5),
        )
        totals.add(policy, ObjectiveOutput(zero_P, margin_P, torch.zeros(number)), ["r"] * number)
    expected = torch.corrcoef(torch.tensor([lengths, margins], dtype=torch.float64))[0, 1]
    assert totals.means()["rewards/length_correlation"] == pytest.approx(float(expected))


@pytest.mark.parametrize("given", ["stop", {"action": "stop"}])
def test_a_plain_value_is_the_action(given: Any) -> None:
    assert TrainingConfig(health=given).health == HealthConfig(action="stop")


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path)
    flipped = [
        {**pair(n), "chosen": pair(n)["rejected"], "rejected": pair(n)["chosen"]}
        for n in range(100, 132)
    ]
    write_rows(tmp_path / "eval.jsonl", flipped)
    return tmp_path


SHORT = {"training.warmup_ratio": 0, "training.learning_rate": 5e-3, "training.eval_steps": 2}


def test_a_warning_is_one_line_and_stands_in_the_summary(world: Path, capsys: Any) -> None:
    given = recipe(world, data__eval=str(world / "eval.jsonl")) | SHORT
    summary = penchant.run("train", None, given)
    (found,) = summary["health"]
    assert (found["rule"], found["step"]) == ("eval_below_chance", 2)
    assert found["figures"]["pairs"] == 32 and found["figures"]["accuracy"] < 0.2
    said = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert len(said) == 1 and "eval_below_chance at step 2" in said[0] and "exchanged" in said[0]


def test_a_stop_saves_first_and_stops_again_until_told_otherwise(world: Path) -> None:
    given = recipe(world, data__eval=str(world / "eval.jsonl"), training__health="stop") | SHORT
    for _ in range(2):
        with pytest.raises(UnhealthyRunError, match=r"eval_below_chance at step 2.*exchanged"):
            penchant.run("train", None, given)
        names = [path.name for path in (world / "run").glob("checkpoint-*")]
        assert names == ["checkpoint-2"]
        assert not (world / "run" / "summary.json").exists()
    assert UnhealthyRunError.exit_code == 1
    summary = penchant.run("train", None, given | {"training.health": "warn"})
    assert summary["num_steps"] == 3
    assert [one["step"] for one in summary["health"]] == [2]
    assert [one["step"] for one in read_metrics(world / "run") if "loss" in one] == [1, 2, 3]


def test_a_limit_out_of_range_names_the_key(world: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.health\.min_accuracy"):
        penchant.run("train", None, recipe(world) | {"training.health.min_accuracy": 0.3})
    with pytest.raises(RecipeError, match=r"training\.health\.action.*warn \| stop \| off"):
        penchant.run("train", None, recipe(world) | {"training.health": "panic"})
