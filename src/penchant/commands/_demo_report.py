"""The demo's figures: from measured policies to one table, one JSON file and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant import compare
from penchant.commands._demo_measure import Measured
from penchant.commands._demo_plan import START, Place
from penchant.pages import Answer, Entry, Example, Report

NUM_EXAMPLES = 8
_CURVES = ("loss", "rewards/margins", "rewards/accuracies")
Figures = dict[str, dict[str, Any]]


def figures(place: Place, measured: Mapping[str, Measured]) -> Figures:
    """Every number of the table, by policy; intervals are 95 %, over the prompts."""
    start = measured[START]
    found: Figures = {}
    for name, one in measured.items():
        gold = compare.mean_interval(one.reward_N)
        row: dict[str, Any] = {
            "gold_reward": {"mean": gold.mean, "interval": gold.interval},
            "mean_length": sum(one.length_N) / len(one.length_N),
            "share_cut": sum(one.cut_N) / len(one.cut_N),
        }
        if name != START:
            row |= _against(start, one)
            summary = compare.read_run(place.run(name)).summary
            row["held_out_accuracy"] = summary["eval"]["eval_rewards/accuracies"]
        found[name] = row
    return found


def _against(start: Measured, one: Measured) -> dict[str, Any]:
    """What a policy gained over the start, and how far it went for that."""
    wins = compare.win_rate(one.reward_N, start.reward_N)
    gain = compare.paired_bootstrap(one.reward_N, start.reward_N)
    kl = compare.mean_interval(one.kl_N)
    return {
        "win_rate": vars(wins),
        "gold_gain": vars(gain),
        "kl_from_start": {"mean": kl.mean, "interval": kl.interval},
    }


def print_table(found: Figures, num_prompts: int, title: str, console: Console) -> None:
    """The table on the terminal."""
    caption = escape(
        f"{num_prompts} held-out prompts; [95 % interval]; KL from SFT in nats per answer; "
        "accuracy on held-out pairs"
    )
    table = Table(title=title, caption=caption)
    table.add_column("policy", no_wrap=True)
    for heading in ("gold reward", "win rate vs SFT", "KL", "length", "accuracy"):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for name, row in found.items():
        gold, win, kl = row["gold_reward"], row.get("win_rate"), row.get("kl_from_start")
        table.add_row(
            name,
            f"{gold['mean']:.3f}",
            _with_interval(win) if win else "-",
            f"{kl['mean']:.2f}" if kl else "-",
            f"{row['mean_length']:.1f}",
            f"{100 * row['held_out_accuracy']:.1f} %" if win else "-",
        )
    console.print(table)


def _with_interval(win: Mapping[str, Any]) -> str:
    """64.1 % [61.0, 67.1]"""
    low, high = (f"{100 * value:.1f}" for value in win["interval"])
    return escape(f"{100 * win['rate']:.1f} % [{low}, {high}]")


def report(
    place: Place,
    prompts: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Measured],
    by_seed: Mapping[int, Figures],
    facts: Sequence[tuple[str, str]],
) -> Report:
    """What the page shows: all of one seed, and the win rates of every seed."""
    found = by_seed[place.seed]
    return Report(
        num_prompts=len(prompts),
        entries=[_entry(place, name, found[name]) for name in found],
        examples=[_example(number, row, measured) for number, row in _first(prompts)],
        facts=facts,
        per_seed={
            name: [
                (seed[name]["win_rate"]["rate"], tuple(seed[name]["win_rate"]["interval"]))
                for seed in by_seed.values()
            ]
            for name in found
            if name != START
        },
        seeds=list(by_seed),
    )


def _entry(place: Place, name: str, row: Mapping[str, Any]) -> Entry:
    run = compare.read_run(place.run(name))
    win, kl = row.get("win_rate"), row.get("kl_from_start")
    return Entry(
        name=name,
        gold=row["gold_reward"]["mean"],
        gold_interval=row["gold_reward"]["interval"],
        win_rate=win["rate"] if win else None,
        win_interval=win["interval"] if win else (0.0, 1.0),
        kl=kl["mean"] if kl else None,
        kl_interval=kl["interval"] if kl else (0.0, 0.0),
        mean_length=row["mean_length"],
        accuracy=row.get("held_out_accuracy"),
        curves={metric: run.curve(metric) for metric in _CURVES},
    )


def _first(prompts: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    return list(enumerate(prompts))[:NUM_EXAMPLES]


def _example(number: int, row: Mapping[str, Any], measured: Mapping[str, Measured]) -> Example:
    prompt = row["prompt"]
    said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    answers = [
        Answer(
            name=name,
            text=one.text_N[number].strip(),
            reward=one.reward_N[number],
            is_cut=one.cut_N[number],
        )
        for name, one in measured.items()
    ]
    return Example(prompt=said, answers=answers)
