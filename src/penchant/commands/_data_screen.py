"""The data report on a terminal: one page, verdict first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from penchant.data import DataReport
    from penchant.data.reasons import Problem
    from penchant.data.statistics import Histogram

Fact = tuple[Text, Text]
"""What is said, and its value."""
_BARS = " ▁▂▃▄▅▆▇█"
_WIDEST = 100
_NUM_EXAMPLES = 1
"""Examples on the screen; the files hold all."""


def print_report(report: DataReport, name: str = "", console: Console | None = None) -> None:
    """Prints the page; `name` says which of several data sets it is of."""
    console = console or Console(highlight=False)
    console.width = min(console.width, _WIDEST)
    if name:
        console.rule(Text(name, style="bold"), align="left", characters="─")
    console.print(_headline(report))
    console.print()
    if len(report.sources) > 1:
        console.print(_sources(report))
        console.print()
    if report.lengths:
        console.print(_lengths(report))
        console.print()
    facts = Table.grid(padding=(0, 2))
    for fact in (*_limits(report), *_bias(report), *_scores(report), *_others(report)):
        facts.add_row(*fact)
    console.print(facts)
    console.print()
    _print_problems(report, console)
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def _headline(report: DataReport) -> Text:
    lost = report.rows_in - report.rows_used
    text = Text()
    read = ", ".join(f"{name} as {part.format}" for name, part in list(report.sources.items())[:3])
    more = f" and {len(report.sources) - 3} more" if len(report.sources) > 3 else ""
    text.append(f"read {read}{more}\n")
    text.append(f"{report.rows_in:,} rows", style="bold")
    text.append(f" = {report.rows_used:,} used")
    text.append(f" + {lost:,} set aside", style="yellow" if lost else "")
    what = f"{report.pairs:,} pairs" if report.pairs else f"{report.responses:,} responses"
    text.append(f";  {what}")
    if report.left_out:
        text.append(f";  {report.left_out:,} not drawn")
    return text


def _plain_table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if place == 0 or not heading else "right", no_wrap=place > 0
        )
    return table


def _sources(report: DataReport) -> Table:
    table = _plain_table("source", "format", "rows", "used", "pairs", "prompt", "chosen", "rej.")
    for name, part in report.sources.items():
        pairs = max(part.pairs, 1)
        shown = f"{part.chosen_tokens / pairs:.0f}", f"{part.rejected_tokens / pairs:.0f}"
        table.add_row(
            Text(name),
            part.format,
            f"{part.rows_in:,}",
            f"{part.rows_used:,}",
            f"{part.pairs:,}",
            f"{part.prompt_tokens / max(part.rows_used, 1):.0f}",
            *(shown if part.pairs else ("–", "–")),
        )
    return table


def _lengths(report: DataReport) -> Table:
    table = _plain_table(report.unit, "", "mean", "median", "90 %", "99 %", "longest")
    names = {"whole": "prompt + response"}
    for name, found in report.lengths.items():
        table.add_row(
            names.get(name, name),
            Text(_bars(found.histogram), style="cyan"),
            *(
                f"{value:,.0f}"
                for value in (found.mean, found.median, found.p90, found.p99, found.longest)
            ),
        )
    return table


def _bars(histogram: Histogram, width: int = 22) -> str:
    """The counts as blocks, two bars or more of the histogram to a block where needed."""
    per = max(1, -(-len(histogram.counts) // width))
    counts = [sum(histogram.counts[i : i + per]) for i in range(0, len(histogram.counts), per)]
    highest = max(counts)
    # One row of a thousand is still to be seen.
    return "".join(_BARS[-(-8 * count // highest)] for count in counts)


def _limits(report: DataReport) -> list[Fact]:
    from penchant.data.statistics import share

    if not report.limits:
        return []
    parts = [f"{one.max_length:,}: {share(one.rows_cut, one.of)}" for one in report.limits]
    return [_fact("cut at max_length", "  ".join(parts))]


def _fact(name: str, value: str) -> Fact:
    return Text(name, style="dim"), Text(value)


def _bias(report: DataReport) -> list[Fact]:
    bias = report.length_bias
    if bias is None:
        return []
    by = f"{abs(bias.longer_by):.0%} {'longer' if bias.longer_by >= 0 else 'shorter'}"
    sides = (
        f"chosen is longer in {bias.chosen_longer / bias.pairs:.0%}, equal in "
        f"{bias.equal / bias.pairs:.0%}, shorter in {bias.rejected_longer / bias.pairs:.0%}"
    )
    rule = (
        f"length alone tells {bias.length_only_accuracy:.0%} of the labels; "
        f"correlation {bias.correlation:+.2f}"
    )
    cut = " after cuts" if report.responses_cut else ""
    means = (
        f"chosen {bias.mean_chosen:.0f}, rejected {bias.mean_rejected:.0f} on average{cut}: {by}"
    )
    return [_fact("length bias", means), _fact("", sides), _fact("", rule)]


def _scores(report: DataReport) -> list[Fact]:
    from penchant.data.statistics import share

    gaps = report.score_gaps
    if gaps is None:
        return []
    lines = [
        _fact(
            "score gaps",
            f"median {gaps.median:.3g}, from {gaps.smallest:g} to {gaps.largest:g};  "
            f"{gaps.ties:,} ties, {gaps.negative:,} negative",
        ),
        _fact("", _bars(gaps.histogram, 40)),
    ]
    labels = gaps.soft_labels
    if labels is not None:
        shown = (
            f"bt_beta {labels.bt_beta:g}: median p {labels.median:.2f}, "
            f"{share(labels.saturated, gaps.pairs)} beyond 0.99, "
            f"{share(labels.even, gaps.pairs)} near 0.5"
        )
        lines.append(_fact("soft labels", shown))
    return lines


def _others(report: DataReport) -> list[Fact]:
    repeats = report.repeats
    again = f"{repeats.distinct_prompts:,} distinct"
    if repeats.rows_with_known_prompt:
        again += f"; up to {repeats.most_rows_of_a_prompt:,} rows share one"
    lines = [_fact("prompts", again)]
    unscored = report.response_tokens - report.scored_tokens
    if unscored:
        lines.append(_fact("not scored", f"{unscored:,} of {report.response_tokens:,} tokens"))
    if report.overlap is not None:
        found = report.overlap
        lines.append(
            _fact(
                "also in training",
                f"{found.rows:,} rows, {found.prompts:,} prompts of {found.of:,}",
            )
        )
    return lines


def _print_problems(report: DataReport, console: Console) -> None:
    warnings = sum(one.level == "warning" for one in report.problems)
    if not report.problems:
        console.print(Text("Nothing wrong was found.", style="bold green"))
        return
    heading = f"{warnings} thing{'s' if warnings != 1 else ''} to look at" if warnings else "Notes"
    console.print(Text(heading, style="bold"))
    for one in report.problems:
        _print_problem(one, console)


def _print_problem(one: Problem, console: Console) -> None:
    is_warning = one.level == "warning"
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column()
    sign = Text("!", style="bold yellow") if is_warning else Text("·", style="dim")
    table.add_row(sign, Text(one.text, style="" if is_warning else "dim"))
    table.add_row("", Text(f"→ {one.advice}", style="dim"))
    for example in one.examples[:_NUM_EXAMPLES] if is_warning else []:
        parts = (example["row_id"], example["detail"], example["excerpt"])
        words = "  ".join(filter(None, parts))
        # What a row holds must not steer the terminal.
        safe = "".join(one if one.isprintable() else "\ufffd" for one in words)
        shown = Text(safe, style="dim italic")
        shown.no_wrap, shown.overflow = True, "ellipsis"
        table.add_row("", shown)
    console.print(table)
