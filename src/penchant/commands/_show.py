"""What the terminal shows when a command ends, and what a dry run shows of its plan."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

Rows = list[tuple[str, str]]
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def print_result(command: str, result: Mapping[str, Any], output_dir: str) -> None:
    """What came out, where it lies, what to do next; nothing for commands that say it themselves.

    Args:
        result: what the command returned.
        output_dir: the folder it wrote to.
    """
    if command not in _BLOCKS:
        return
    title, rows, advice, line = _BLOCKS[command](result, output_dir)
    console = Console(highlight=False)
    console.print()
    console.print(Text(title, style="bold green"), soft_wrap=True)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        # Soft wrap: a path is never broken, and a file gets no trailing blanks.
        line_of_row = Text.assemble((f"  {name:<{width}}  ", "dim"), value)
        console.print(line_of_row, soft_wrap=True)
    console.print(Text(f"Next: {advice}"), soft_wrap=True)
    console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)


def plan_lines(plan: Mapping[str, Any], said: str) -> Iterator[str]:
    """The plan of a dry run as YAML comments, in units for people.

    Args:
        said: what the command printed while it planned.
    """
    yield "#"
    yield "# The plan; nothing was run and nothing was written (tokens may be kept in the cache)."
    for line in said.splitlines():
        yield f"# {line}"
    for key, value in plan.items():
        name = key.removesuffix("_bytes").replace("_seconds", "_time")
        if isinstance(value, list):
            yield f"# {name}:"
            yield from (f"#   {one}" for one in value)
        else:
            yield f"# {name}: {_readable(key, value)}"


def _readable(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return size(value)
    if key.endswith("_seconds"):
        return f"about {duration(value)}"
    counts = isinstance(value, int) and not isinstance(value, bool) and key != "seed"
    return f"{value:,}" if counts else str(value)


def size(number: float) -> str:
    """Bytes in the unit that leaves few digits: 1.2 GiB."""
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 20 s, 5 h 7 min, 2 days 4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} days {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _trained(result: Mapping[str, Any], folder: str) -> tuple[str, Rows, str, str]:
    objective, seconds = result.get("objective", ""), result.get("seconds", 0.0)
    title = f"Done: {objective}, {counted(result.get('num_steps', 0), 'step')}"
    kind = "adapter and tokenizer" if result.get("adapter") else "model and tokenizer"
    rows = [("rows", _rows(result, folder)), *_figures(result), ("time", duration(seconds))]
    rows += [("written", f"{Path(folder)}  ({kind}; README.md says how they were made)")]
    if result.get("adapter") and result.get("kind") != "reward":
        merged = _quoted(f"{Path(folder)}-merged")
        line = f"penchant merge {_quoted(folder)} output_dir={merged}"
        return title, rows, "add the adapter into its base model", line
    if objective == "sft":
        line = f"penchant train model={_quoted(folder)} data=PAIRS.jsonl output_dir=DIR"
        return title, rows, "train it on preference pairs", line
    if result.get("kind") == "reward":
        line = f"penchant evaluate model={_quoted(folder)} data=PAIRS.jsonl output_dir=DIR"
        return title, rows, "see how well and how surely it ranks other pairs", line
    other = "slic-dpo" if objective == "dpo" else "dpo"
    recipe, beside = Path(folder) / "recipe.yaml", f"{Path(folder)}-{other}"
    line = f"penchant train {_quoted(recipe)} objective={other} output_dir={_quoted(beside)}"
    return title, rows, "the same with another objective, to compare", line


def _rows(result: Mapping[str, Any], folder: str) -> str:
    aside = result.get("rows_set_aside", 0)
    told = f"{result.get('rows_used', 0):,} used, {aside:,} set aside"
    return f"{told}  (why: {Path(folder) / 'data_report.json'})" if aside else told


def _figures(result: Mapping[str, Any]) -> Rows:
    """Loss and accuracy, of the last step and of the last evaluation."""
    train, held_out = result.get("train", {}), result.get("eval", {})
    rows: Rows = []
    if "loss" in train:
        rows.append(("loss", f"{train['loss']:.4f} in the last step"))
    if "rewards/accuracies" in train:
        rows.append(("accuracy", f"{train['rewards/accuracies']:.0%} of that step's pairs"))
    if "eval_loss" in held_out:
        rows.append(("eval loss", f"{held_out['eval_loss']:.4f}"))
    if "eval_rewards/accuracies" in held_out:
        rows.append(
            ("eval accuracy", f"{held_out['eval_rewards/accuracies']:.1%} of held-out pairs")
        )
    if result.get("best_step") is not None:
        rows.append(("best", f"eval loss was lowest after step {result['best_step']:,}"))
    return rows


def _initialised(result: Mapping[str, Any], folder: str) -> tuple[str, Rows, str, str]:
    title = f"Done: a new {result['architecture']} with random weights"
    rows = [*_sizes(result), ("written", str(Path(folder)))]
    line = f"penchant sft model={_quoted(folder)} data=CHATS.jsonl output_dir=DIR"
    return title, rows, "teach it to answer", line


def _merged(result: Mapping[str, Any], folder: str) -> tuple[str, Rows, str, str]:
    rows = [("adapter", str(result["adapter"])), ("base", str(result["base"]))]
    rows += [*_sizes(result), ("written", str(Path(folder)))]
    line = f"penchant train model={_quoted(folder)} data=PAIRS.jsonl output_dir=DIR"
    return "Done: one ordinary model of adapter and base", rows, "train it further", line


def _drawn(result: Mapping[str, Any], folder: str) -> tuple[str, Rows, str, str]:
    files = [(name, f"{count:,} rows") for name, count in result["rows"].items()]
    rows = [*files, *_sizes(result), ("written", f"{Path(folder)}  (README.md says what is what)")]
    line = f"cd {_quoted(folder)} && penchant sft sft.yaml && penchant train train.yaml"
    return f"Done: the miniature of seed {result['seed']}", rows, "train in it", line


def _sizes(result: Mapping[str, Any]) -> Rows:
    return [(name, f"{result[name]:,}") for name in ("parameters", "vocabulary") if name in result]


def counted(number: int, what: str) -> str:
    """So many of something: 1 row, 2 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _quoted(path: str | Path) -> str:
    """As a shell reads it back."""
    return shlex.quote(str(Path(path)))


_BLOCKS: dict[str, Callable[[Mapping[str, Any], str], tuple[str, Rows, str, str]]] = {
    "train": _trained,
    "sft": _trained,
    "reward": _trained,
    "init": _initialised,
    "merge": _merged,
    "miniature": _drawn,
}
