"""The page of `penchant select`: what the best of n is worth, and how far it is from one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from penchant.pages.axes import Frame, Scale, covering
from penchant.pages.charts import drawing
from penchant.pages.markup import Markup, tag
from penchant.pages.table import Cell, Column, Row, table
from penchant.pages.template import figure, page, section, terms

_WORDS = {
    "score": "the score that chooses",
    "gold": "gold score of the chosen",
    "gold_by_itself": "gold score, chosen by itself",
}
_SHORT = {"score": "score", "gold": "gold", "gold_by_itself": "gold, best possible"}
_SERIES = {"score": 1, "gold": 2, "gold_by_itself": 3}
_LEFT_OUT = {
    "rows_left_out": "rows not drawn by fraction or rows",
    "empty_responses_left_out": "responses without text",
    "candidates_left_out": "candidates beyond the first n",
    "candidates_without_score": "candidates without a finite score",
}
_LINE = 16
"""Height of a name beside a line."""
_MEANINGS = [
    (
        "Best of n",
        "Of n candidates the one with the highest score. Its expected score is estimated from all "
        "candidates of a prompt without bias: the mean over every choice of n of them.",
    ),
    (
        "Interval",
        "95\u00a0%, over the prompts: how far the mean could be off with other prompts.",
    ),
    (
        "KL at most",
        "log n \u2212 (n \u2212 1)/n nats: an upper bound on how far best-of-n sampling is from "
        "taking one sample, however the scores are made.",
    ),
]
_GOLD = (
    "Gold score",
    "A second score of the candidate that the first one chose. Where it falls while the choosing "
    "score still rises, the choosing score is being gamed.",
)


def select_page(summary: Mapping[str, Any]) -> str:
    """The whole document, from what the command's summary holds."""
    curve = summary["curve"]
    kinds = [name for name in _WORDS if name in curve]
    meanings = [*_MEANINGS, _GOLD] if "gold" in curve else _MEANINGS
    return page(
        "Penchant select: best of n",
        tag("p", "Penchant select", class_="eyebrow"),
        tag("h1", "What the best of n is worth"),
        tag("p", _headline(summary), class_="lead"),
        section("Expected score of the best of n", *_charts(curve, kinds)),
        section("In numbers", _table(curve, kinds), terms(meanings)),
        section("What was selected", terms(_facts(summary))),
    )


def _headline(summary: Mapping[str, Any]) -> str:
    curve = summary["curve"]
    last = curve["n"][-1]
    if last == 1:
        return "Every prompt has one candidate, so there is nothing to choose from."
    parts = []
    for name in ("score", "gold"):
        if name in curve:
            ends = f"{_number(curve, name, 0)} to {_number(curve, name, -1)}"
            parts.append(
                f"the {_SHORT[name]} goes from {ends}{_clear(curve[name]['gain_interval'])}"
            )
    return (
        f"With the best of {last} in place of one sample {' and '.join(parts)}; "
        f"mean over {curve['prompts']:,} prompts."
    )


def _clear(interval: Sequence[float] | None) -> str:
    """Whether the change could be chance."""
    if interval is None or interval[0] > 0 or interval[1] < 0:
        return ""
    return " (within the noise)"


def _charts(curve: Mapping[str, Any], kinds: Sequence[str]) -> list[Markup]:
    """One figure for the choosing score and one for gold: their scales have nothing in common."""
    groups = [["score"], [name for name in kinds if name != "score"]]
    return [_chart(curve, group) for group in groups if group]


def _chart(curve: Mapping[str, Any], kinds: Sequence[str]) -> Markup:
    """Lines with their intervals as bands."""
    shown = " and ".join(_WORDS[name] for name in kinds)
    last = curve["n"][-1]
    alternative = f"Mean of {shown} for the best of 1 to {last}: " + "; ".join(
        f"{_SHORT[name]} from {_number(curve, name, 0)} to {_number(curve, name, -1)}"
        for name in kinds
    )

    def draw(width: float, height: float) -> Markup:
        longest = max(len(_SHORT[name]) for name in kinds)
        frame = Frame(
            width=width, height=height, right=longest * 8.2 + 12, x_label="n candidates",
            y_label="mean score", num_x_ticks=6 if width > 500 else 3,
        )  # fmt: skip
        x, y = frame.scales((1, max(last, 2)), covering(_drawn(curve, kinds)))
        marks = [_line(curve, name, x, y) for name in kinds]
        marks += _names(curve, kinds, y, frame)
        return drawing(frame, alternative, frame.draw(x, y), marks)

    caption = f"{shown[0].upper()}{shown[1:]}, by n; shaded: 95\u00a0% intervals over the prompts."
    return figure(draw, (860, 380), (380, 320), caption)


def _drawn(curve: Mapping[str, Any], kinds: Sequence[str]) -> list[float]:
    """Every value that a chart has to hold."""
    values = [value for name in kinds for value in curve[name]["mean"]]
    return values + [
        end
        for name in kinds
        if name != "gold_by_itself"
        for interval in curve[name]["interval"]
        for end in interval or ()
    ]


def _line(curve: Mapping[str, Any], name: str, x: Scale, y: Scale) -> Markup:
    """One score: the band of its interval, and the line, of one value a dot."""
    means, intervals = curve[name]["mean"], curve[name]["interval"]
    places = [f"{x(n):g},{y(mean):g}" for n, mean in zip(curve["n"], means, strict=True)]
    parts = [tag("title", f"{_WORDS[name]}: {_number(curve, name, -1)} at n={curve['n'][-1]}")]
    if name != "gold_by_itself" and all(one is not None for one in intervals):
        there = [f"{x(n):g},{y(one[1]):g}" for n, one in zip(curve["n"], intervals, strict=True)]
        back = [f"{x(n):g},{y(one[0]):g}" for n, one in zip(curve["n"], intervals, strict=True)]
        ring = " ".join([*there, *reversed(back)])
        parts.append(
            tag("polygon", points=ring, class_="band", fill="currentColor", fill_opacity=0.18)
        )
    if len(places) == 1:
        parts.append(tag("circle", cx=x(curve["n"][0]), cy=y(means[0]), r=3.5, class_="dot"))
    else:
        parts.append(tag("polyline", points=" ".join(places), class_="curve"))
    return tag("g", parts, class_=f"s{_SERIES[name]}")


def _names(curve: Mapping[str, Any], kinds: Sequence[str], y: Scale, frame: Frame) -> list[Markup]:
    """What each line is called, at its end; moved up where they would touch."""
    left, lowest, drawn = frame.width - frame.right + 8, math.inf, []
    for name in sorted(kinds, key=lambda name: curve[name]["mean"][-1]):
        lowest = min(y(curve[name]["mean"][-1]) + 4, lowest - _LINE)
        drawn.append(tag("text", _SHORT[name], x=left, y=lowest, class_=f"name s{_SERIES[name]}"))
    return drawn


def _table(curve: Mapping[str, Any], kinds: Sequence[str]) -> Markup:
    columns = [Column("n", "How many candidates are chosen from.")]
    columns += [Column(_SHORT[name].capitalize(), f"Mean of {_WORDS[name]}.") for name in kinds]
    columns.append(Column("KL at most [nats]", _MEANINGS[2][1]))
    rows = []
    last = len(curve["n"]) - 1
    for place, n in enumerate(curve["n"]):
        if n & (n - 1) and place != last:
            continue
        cells = []
        for name in kinds:
            mean, interval = curve[name]["mean"], curve[name]["interval"][place]
            ends = [_rounded(curve, name, end) for end in interval or ()]
            cells.append(Cell(_rounded(curve, name, mean[place]), " to ".join(ends)))
        rows.append(Row(f"{n:,}", [*cells, Cell(f"{curve['kl_bound'][place]:.2f}")]))
    return table("The best of 1, 2, 4, ...; small print: 95\u00a0% intervals", columns, rows)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    curve = summary["curve"]
    facts = [
        ("How", f"{summary['how']} by {summary['by']}"),
        ("Written", f"{summary['written']:,} rows to {summary['output']} ({summary['format']})"),
        ("Rows", f"{summary['rows']:,} read, {summary['rows_used']:,} used"),
        ("Candidates", f"{summary['candidates']:,} with a score"),
    ]
    for name, words in _LEFT_OUT.items():
        if summary[name]:
            facts.append(("Left out", f"{summary[name]:,} {words}"))
    for reason, count in summary["set_aside"].items():
        facts.append(("Set aside", f"{count:,} rows: {reason}"))
    for reason, count in summary["pairs_dropped"].items():
        facts.append(("Pairs left out", f"{count:,}: {reason}"))
    if summary["tied_best"]:
        facts.append(("Ties", f"{summary['tied_best']:,} rows with several best; the first taken"))
    if curve["prompts_left_out"]:
        facts.append(
            ("Curve", f"{curve['prompts_left_out']:,} prompts left out: fewer candidates than "
                      f"{curve['n'][-1]}")
        )  # fmt: skip
    return facts


def _number(curve: Mapping[str, Any], name: str, place: int) -> str:
    return _rounded(curve, name, curve[name]["mean"][place])


def _rounded(curve: Mapping[str, Any], name: str, value: float) -> str:
    """With as many decimals as the whole curve needs: hundredths of its range, or of its size."""
    values = curve[name]["mean"]
    span = max(values) - min(values) or max(map(abs, values)) or 1.0
    decimals = min(8, max(0, 2 - math.floor(math.log10(span))))
    return f"{value:,.{decimals}f}".replace("-", "\u2212")
