"""Figures of the demo's second half: from what its commands wrote to one table and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant import compare
from penchant.commands import _demo_chain as chain
from penchant.commands._demo_measure import Measured, read_rows
from penchant.commands._demo_plan import START, Place
from penchant.generate import select
from penchant.miniature.folder import AXES
from penchant.pages.chain import BestOfN, ChainReport, PolicyEntry, RewardEntry
from penchant.recipe import DemoRecipe

_NUM_BINS = 10
_CALIBRATION = (_NUM_BINS, "uniform")


def chain_figures(place: Place, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Every number of the second half, of one seed.

    Args:
        measured: answers of the start and of the fine-tuned policy to the held-out prompts.
    """
    return {
        "rewards": {name: _reward(place, name) for name in chain.WEIGHTED},
        "selector": _selector(place),
        "best_of_n": _best_of_n(place),
        "policies": {name: _policy(measured[START], one) for name, one in measured.items()},
    }


def _reward(place: Place, name: str) -> dict[str, Any]:
    """Accuracy and calibration of a reward model on each rater's held-out pairs."""
    text = (chain.evaluation(place, name) / "evaluation.json").read_text(encoding="utf-8")
    found = {}
    sets = json.loads(text)["preferences"]["sets"]
    for axis, one in zip(AXES, sets, strict=True):
        measure = next(iter(one["measures"].values()))
        errors = {(c["num_bins"], c["strategy"]): c for c in measure["calibration"]}
        found[axis] = {
            "accuracy": measure["accuracy"],
            "interval": measure["accuracy_interval"],
            "ece": errors[_CALIBRATION]["ece"],
            "nll": measure["nll"],
        }
    return found


def _selector(place: Place) -> dict[str, Any]:
    """Of the reward model that selects: how often it is right on held-out overall pairs."""
    summary = compare.read_run(place.run(chain.SELECTOR)).summary
    return {"accuracy": summary["eval"]["eval_accuracy"]}


def _best_of_n(place: Place) -> dict[str, Any]:
    """Gold reward of the best of n, chosen by the reward model and by the gold reward."""
    rows = read_rows(chain.scored(place, "held_out"))
    # No answer at all, as a sample of nothing but its end, has no score: worth nothing.
    kept = [row for row in rows if not any(score is None for score in row["scores"])]
    most = min(len(row["scores"]) for row in kept)
    chosen_NM = np.array([select.best_of_n(row["scores"], row["gold"], most) for row in kept])
    exact_NM = np.array([select.best_of_n(row["gold"], None, most) for row in kept])
    return {
        "num_prompts": len(kept),
        "left_out": len(rows) - len(kept),
        "chosen": [_mean(chosen_NM[:, m]) for m in range(most)],
        "exact": [_mean(exact_NM[:, m]) for m in range(most)],
        "kl_bound": select.kl_bound(list(range(1, most + 1))).tolist(),
    }


def _policy(start: Measured, one: Measured) -> dict[str, Any]:
    row: dict[str, Any] = {
        "gold_reward": _mean(one.reward_N),
        "mean_length": sum(one.length_N) / len(one.length_N),
    }
    if one is not start:
        row["win_rate"] = vars(compare.win_rate(one.reward_N, start.reward_N))
        row["gold_gain"] = vars(compare.paired_bootstrap(one.reward_N, start.reward_N))
    return row


def _mean(values_N: Any) -> dict[str, Any]:
    found = compare.mean_interval(values_N)
    return {"mean": float(found.mean), "interval": [float(bound) for bound in found.interval]}


def print_chain(found: Mapping[str, Any], title: str, console: Console) -> None:
    """Two tables on the terminal."""
    names = list(next(iter(found["rewards"].values())))
    table = Table(title=f"{title}: reward models", caption="accuracy and ECE on held-out pairs")
    table.add_column("reward model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, sets in found["rewards"].items():
        cells = [f"{100 * one['accuracy']:.1f} %  {one['ece']:.3f}" for one in sets.values()]
        table.add_row(name, *cells)
    console.print(table)
    best, policies = found["best_of_n"], found["policies"]
    number = len(best["chosen"])
    table = Table(title=f"{title}: gold reward", caption=f"{best['num_prompts']} prompts")
    table.add_column("answers", no_wrap=True)
    table.add_column(escape("gold reward [95 %]"), justify="right", no_wrap=True)
    lines = {name: one["gold_reward"] for name, one in policies.items()}
    lines |= {
        f"best of {number} by the reward model": best["chosen"][-1],
        f"best of {number} by gold": best["exact"][-1],
    }
    for name, one in lines.items():
        low, high = one["interval"]
        table.add_row(name, escape(f"{one['mean']:.3f} [{low:.3f}, {high:.3f}]"))
    console.print(table)


def chain_report(
    recipe: DemoRecipe, place: Place, by_seed: Mapping[int, Mapping[str, Any]]
) -> ChainReport:
    """What the page shows: all of one seed, and a line for each."""
    found = by_seed[place.seed]
    best = found["best_of_n"]
    return ChainReport(
        rewards=[_reward_entry(name, sets) for name, sets in found["rewards"].items()],
        weights=_weights(place),
        best_of_n=BestOfN(
            chosen=[(one["mean"], tuple(one["interval"])) for one in best["chosen"]],
            exact=[(one["mean"], tuple(one["interval"])) for one in best["exact"]],
            kl_bound=best["kl_bound"],
            num_prompts=best["num_prompts"],
        ),
        policies=[_policy_entry(name, one) for name, one in found["policies"].items()],
        facts=_facts(recipe, place, found),
        others=[_line(seed, one) for seed, one in by_seed.items()] if len(by_seed) > 1 else [],
    )


def _reward_entry(name: str, sets: Mapping[str, Any]) -> RewardEntry:
    accuracy = {axis: (one["accuracy"], tuple(one["interval"])) for axis, one in sets.items()}
    return RewardEntry(
        name=name, accuracy=accuracy, ece={axis: one["ece"] for axis, one in sets.items()}
    )


def _policy_entry(name: str, one: Mapping[str, Any]) -> PolicyEntry:
    win = one.get("win_rate")
    return PolicyEntry(
        name=name,
        gold=one["gold_reward"]["mean"],
        gold_interval=tuple(one["gold_reward"]["interval"]),
        win_rate=win["rate"] if win else None,
        win_interval=tuple(win["interval"]) if win else (0.0, 1.0),
        mean_length=one["mean_length"],
    )


def _weights(place: Place) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    run = compare.read_run(place.run("reward-more"))
    return {axis: run.curve(f"task/{axis}_pairs/weight") for axis in AXES}


def _line(seed: int, found: Mapping[str, Any]) -> dict[str, str]:
    """One seed in a row: accuracies of both reward models, gold rewards."""
    line = {"Seed": str(seed)}
    for axis in AXES:
        both = [found["rewards"][name][axis] for name in chain.WEIGHTED]
        line[f"{axis}: accuracy"] = " / ".join(f"{100 * one['accuracy']:.1f}" for one in both)
        line[f"{axis}: ECE"] = " / ".join(f"{one['ece']:.3f}" for one in both)
    line["Best of n"] = f"{found['best_of_n']['chosen'][-1]['mean']:.3f}"
    gold = [one["gold_reward"]["mean"] for one in found["policies"].values()]
    line["SFT / tuned"] = " / ".join(f"{one:.3f}" for one in gold)
    return line


def _facts(recipe: DemoRecipe, place: Place, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    runs = {name: compare.read_run(place.run(name)).summary for name in chain.WEIGHTED}
    steps = next(iter(runs.values()))["num_steps"]
    number = chain.candidates(recipe)
    return [
        ("Reward models", f"from SFT, {steps} updates on the three sets, balanced batches"),
        (
            "The one that chooses",
            "trained on the noisy overall pairs; it is right on "
            f"{100 * found['selector']['accuracy']:.1f} % of the held-out ones",
        ),
        ("Candidates", f"{number} per prompt from SFT at temperature 1"),
        (
            "Fine-tuning",
            f"SFT on the best of {number} of {chain.NUM_TUNED_PROMPTS} training prompts; the "
            "prompt is masked",
        ),
        ("Intervals", "95 %, over the prompts (BCa bootstrap; Wilson for win rates)"),
    ]
