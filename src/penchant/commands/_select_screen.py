"""What `penchant select` prints."""

from __future__ import annotations

from typing import Any

from penchant.recipe.selection import SelectRecipe


def tell(recipe: SelectRecipe, summary: dict[str, Any]) -> None:
    """Prints what was selected, what was left out and why, and the curve."""
    unit = "responses" if recipe.how == "best-of-n" else "pairs"
    print(
        f"wrote {summary['written']:,} {unit} of {summary['rows_used']:,} rows to {recipe.output}"
    )
    for reason, count in summary["set_aside"].items():
        print(f"{count:,} rows set aside: {reason}")
    for reason, count in summary["pairs_dropped"].items():
        print(f"{count:,} pairs left out: {reason}")
    for name, what in (
        ("rows_left_out", "rows left out: not drawn by fraction or rows"),
        ("empty_responses_left_out", "responses left out: no text, in a format without a place"),
        ("candidates_left_out", f"candidates left out: beyond the first {recipe.n}"),
        ("candidates_without_score", "candidates left out: no finite score"),
        ("tied_best", "rows with several best candidates; the first is taken"),
    ):
        if summary[name]:
            print(f"{summary[name]:,} {what}")
    _tell_curve(summary["curve"])


def _tell_curve(curve: dict[str, Any]) -> None:
    """A line for one, the double of it, and so on."""
    print(f"best of n, mean over {curve['prompts']:,} prompts (95 % interval):")
    last = len(curve["n"]) - 1
    for place, n in enumerate(curve["n"]):
        if n & (n - 1) and place != last:
            continue
        parts = [f"  n={n:<5} score {_value(curve['score'], place)}"]
        if "gold" in curve:
            parts.append(f"gold {_value(curve['gold'], place)}")
        print("  ".join([*parts, f"KL at most {curve['kl_bound'][place]:.2f} nats"]))
    if curve["prompts_left_out"]:
        few = f"fewer than {curve['n'][-1]} candidates"
        print(f"{curve['prompts_left_out']:,} prompts are not in it: {few}")


def _value(of: dict[str, Any], place: int) -> str:
    interval = of["interval"][place]
    shown = "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    return f"{of['mean'][place]:.4g}{shown}"
