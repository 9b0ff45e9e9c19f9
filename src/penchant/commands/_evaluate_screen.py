"""What `penchant evaluate` shows on the terminal: sets, subsets, sections, what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Group = Mapping[str, Any]
"""A set, a subset or a part: num_pairs and measures by name."""
_LEGENDS = {
    "reward": "Accuracy, below it its 95 % interval over prompts; NLL [nats]; ECE with 10 bins of "
    "equal width; mean margin.",
    "policy": "Accuracy by implicit reward, by log-probability and by its mean per token, below it "
    "its 95 % interval over prompts; retention and correction: accuracy by log-probability on "
    "pairs whose sides the reference orders right by it, and on the others.",
}
NAMES = {
    "reward": "accuracy",
    "implicit_reward": "implicit",
    "logp": "log-prob",
    "logp_per_token": "per token",
}
_MOST_REASONS = 4


def print_evaluation(evaluation: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables of everything but the bins and histograms, which the page draws."""
    console = console or Console(highlight=False)
    found = evaluation["preferences"]
    kind = "reward model" if evaluation["kind"] == "reward" else "policy"
    against = f", against {evaluation['reference']}" if evaluation["reference"] else ""
    console.print(
        Text(f"\n{evaluation['model']} ({kind}{against})", style="bold green"), soft_wrap=True
    )
    console.print(_table("Set", [(one["name"], one) for one in found["sets"]], evaluation))
    console.print(Text(_LEGENDS[evaluation["kind"]], style="dim"))
    for one in found["sets"]:
        if one["subsets"]:
            title = f"{one['name']}, by {one['subset_by']}"
            rows = [(row["subset"], row) for row in one["subsets"]]
            console.print(Text(f"\n{title}", style="bold"))
            console.print(_table("Subset", rows, evaluation))
    if found["rewardbench"]:
        console.print(Text("\nRewardBench's sections", style="bold"))
        console.print(_sections(found["rewardbench"]))
    for line in lost(found["sets"]):
        console.print(Text(line), soft_wrap=True)
    if evaluation["kind"] == "policy" and not evaluation["reference"]:
        console.print(Text("No reference is known, so there is no implicit reward and no easy and "
                           "hard pairs; name one with reference=DIR"), soft_wrap=True)  # fmt: skip
    elif evaluation["reference"]:
        counts = (evaluation[f"reference_rows_{done}"] for done in ("computed", "reused"))
        line = "Reference: {:,} rows computed, {:,} read from the store".format(*counts)
        console.print(Text(line), soft_wrap=True)


def lost(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each set that lost something: rows set aside with reasons, pairs dropped, cuts."""
    lines = []
    for one in sets:
        data, parts = one["data"], []
        aside = data["rows_in"] - data["rows_used"]
        if aside:
            parts.append(f"{aside:,} of {data['rows_in']:,} rows set aside "
                         f"({_reasons(data['set_aside'])})")  # fmt: skip
        if data["pairs_dropped"]:
            parts.append(f"pairs dropped: {_reasons(data['pairs_dropped'])}")
        if data["prompts_cut"] or data["responses_cut"]:
            parts.append(
                f"cut at {data['max_length']:,} tokens: {data['prompts_cut']:,} prompts, "
                f"{data['responses_cut']:,} of {data['responses']:,} responses"
            )
        if data["rows_not_drawn"]:
            parts.append(f"{data['rows_not_drawn']:,} rows not drawn")
        if parts:
            lines.append(f"{one['name']}: {'; '.join(parts)}")
    return lines


def _reasons(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:_MOST_REASONS])
    return shown + (", ..." if len(ordered) > _MOST_REASONS else "")


def _table(heading: str, rows: Sequence[tuple[str, Group]], evaluation: Mapping[str, Any]) -> Table:
    names = [name for name in NAMES if any(name in group["measures"] for _, group in rows)]
    has_split = any(group.get("split") for _, group in rows)
    calibrated = evaluation["kind"] == "reward"  # of a policy the page has it; here is no room
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column(heading, overflow="fold")
    table.add_column("pairs", justify="right")
    for name in names:
        table.add_column(NAMES[name], justify="right")
    extra = (["retention", "correction"] if has_split else []) + (
        ["NLL", "ECE (10)", "margin"] if calibrated else []
    )
    for name in extra:
        table.add_column(name, justify="right")
    for label, group in rows:
        cells = [label, f"{group['num_pairs']:,}"]
        cells += [_accuracy(group["measures"].get(name)) for name in names]
        if has_split:
            cells += [_part(group, part, "logp") for part in ("easy", "hard")]
        if calibrated:
            cells += _calibration(group["measures"]["reward"])
        table.add_row(*map(Text, cells))
    return table


def _accuracy(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "-"
    return _with_interval(one["accuracy"], one["accuracy_interval"])


def _score(one: Mapping[str, Any]) -> str:
    """Of a section of RewardBench, or of all."""
    return "-" if one["score"] is None else _with_interval(one["score"], one["interval"])


def _with_interval(share: float, interval: Sequence[float] | None) -> str:
    told = f"{100 * share:.1f} %"
    if interval is None:
        return told
    low, high = interval
    return f"{told}\n{100 * low:.1f}-{100 * high:.1f}"


def _part(group: Group, part: str, measure: str) -> str:
    found = (group.get("split") or {}).get(part)
    return "-" if not found else _accuracy(found["measures"].get(measure))


def _calibration(one: Mapping[str, Any]) -> list[str]:
    ece = next(
        c["ece"] for c in one["calibration"] if (c["num_bins"], c["strategy"]) == (10, "uniform")
    )
    return [f"{one['nll']:.3f}", f"{ece:.3f}", f"{one['margins']['mean']:.3f}"]


def _sections(scores: Mapping[str, Any]) -> Table:
    names = [name for name in NAMES if name in scores]
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("Section")
    table.add_column("pairs", justify="right")
    for name in names:
        table.add_column(NAMES[name], justify="right")
    table.add_column("missing", overflow="fold")
    for place, section in enumerate(scores[names[0]]["sections"]):
        found = [_score(scores[name]["sections"][place]) for name in names]
        missing = ", ".join(section["missing"])
        shown = [section["name"], f"{section['num_pairs']:,}", *found, missing]
        table.add_row(*map(Text, shown))
    whole = [_score(scores[name]) for name in names]
    note = "" if scores[names[0]]["is_complete"] else "of a part: not comparable with published"
    table.add_row(*(Text(one, style="bold") for one in ("Score", "", *whole, note)))
    return table
