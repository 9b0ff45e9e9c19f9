"""The tables of an evaluation's page: sets, subsets, RewardBench, calibration, lost rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.pages import charts
from penchant.pages.markup import Markup, join, tag
from penchant.pages.table import Cell, Column, Row, table
from penchant.pages.template import section
from penchant.pages.wording import MEASURES, percent, signed

Group = Mapping[str, Any]
"""A set, a subset or a part: num_pairs, and measures by name."""
_NOTHING = Cell("\u2013")


def results_table(evaluation: Mapping[str, Any]) -> Markup:
    """A row per set: accuracies; of policies retention and correction, of others calibration."""
    sets, is_policy = evaluation["preferences"]["sets"], evaluation["kind"] == "policy"
    rows = [
        Row(one["name"], [_pairs(one), *_accuracies(one, sets), *_parts(one, sets),
                          *([] if is_policy else _calibration(one, sets))], 1 + number % 5)
        for number, one in enumerate(sets)
    ]  # fmt: skip
    columns = [Column("Set", ""), Column("Pairs", ""), *_headings(sets)]
    if any(one["split"] for one in sets):
        columns += [Column("Retention", ""), Column("Correction", "")]
    columns += [] if is_policy else _calibration_headings(sets)
    return table("Every set; small print: 95\u00a0% intervals over prompts", columns, rows)


def subset_table(one: Group) -> Markup:
    """A row per subset of a set."""
    groups = one["subsets"]
    rows = [
        Row(group["subset"], [_pairs(group), *_accuracies(group, groups),
                              *_calibration(group, groups)])
        for group in groups
    ]  # fmt: skip
    columns = [Column(one["subset_by"], ""), Column("Pairs", ""), *_headings(groups)]
    return table(
        f"{one['name']}, by {one['subset_by']}", columns + _calibration_headings(groups), rows
    )


def split_table(one: Group) -> Markup:
    """Easy, hard and all pairs of a set: accuracies, and shifts against the reference."""
    split = one["split"]
    groups = {
        "Easy": split["easy"],
        "Hard": split["hard"],
        "All": {"num_pairs": one["num_pairs"], "measures": one["measures"],
                "shift": split["shift"]},
    }  # fmt: skip
    rows = []
    for name, group in groups.items():
        shift = group["shift"]
        moved = [_NOTHING] * 3 if shift is None else [
            Cell(_shift(shift[key])) for key in ("chosen", "rejected", "margin")
        ]  # fmt: skip
        rows.append(
            Row(name, [Cell(f"{group['num_pairs']:,}"), *_accuracies(group, [one]), *moved])
        )
    columns = [Column(one["name"], ""), Column("Pairs", ""), *_headings([one])]
    columns += [Column(f"Shift of {key}", "") for key in ("chosen", "rejected")]
    columns.append(Column("Difference", "Shift of chosen less shift of rejected."))
    return table(f"{one['name']}: easy and hard pairs", columns, rows)


def calibration_table(one: Group, name: str) -> Markup:
    """ECE, ACE and MCE with every number and kind of bins."""
    found = one["measures"][name]
    rows = [
        Row(f"{c['num_bins']} bins, {_KINDS[c['strategy']]}",
            [Cell(f"{c[key]:.4f}") for key in ("ece", "ace", "mce")])
        for c in found["calibration"]
    ]  # fmt: skip
    columns = [
        Column("Bins", ""),
        Column("ECE", "Expected error: weighted by how many probabilities a bin holds."),
        Column("ACE", "Average error: every bin that holds something counts the same."),
        Column("MCE", "Largest error of a bin."),
    ]
    low_high = found["nll_interval"]
    small = f" ({low_high[0]:.3f} \u2013 {low_high[1]:.3f})" if low_high else ""
    return table(f"{one['name']}: NLL {found['nll']:.4f}{small}", columns, rows)


_KINDS = {"uniform": "equal width", "quantile": "equal counts"}


def data_table(sets: Sequence[Group]) -> Markup:
    """Rows used and set aside, pairs dropped, and cuts, set by set; the reasons below."""
    rows, reasons = [], []
    for one in sets:
        data = one["data"]
        dropped = sum(data["pairs_dropped"].values())
        cells = [
            Cell(one["format"] or "\u2013"),
            Cell(f"{data['rows_in']:,}", _not_drawn(data)),
            Cell(f"{data['rows_used']:,}"),
            Cell(f"{data['rows_in'] - data['rows_used']:,}"),
            Cell(f"{one['num_pairs']:,}", f"{dropped:,} dropped" if dropped else ""),
            Cell(f"{data['prompts_cut']:,}"),
            Cell(f"{data['responses_cut']:,}", f"of {data['responses']:,}"),
        ]
        rows.append(Row(one["name"], cells))
        for what, key in (("set aside", "set_aside"), ("pairs dropped", "pairs_dropped")):
            if data[key]:
                reasons.append(f"{one['name']}, {what}: {_reasons(data[key])}.")
    columns = [
        Column("Set", ""),
        Column("Format", "As what its rows were read."),
        Column("Rows", ""),
        Column("Used", ""),
        Column("Set aside", ""),
        Column("Pairs", "Of the rows used."),
        Column("Prompts cut", ""),
        Column("Responses cut", "They lost their end at max_length."),
    ]
    drawn = table("Every row, by set", columns, rows)
    return join(drawn, [tag("p", one, class_="note") for one in reasons])


def rewardbench_section(scores: Mapping[str, Any]) -> Markup:
    """Sections and their average, a column per way of judging."""
    names = [name for name in MEASURES if name in scores]
    first = scores[names[0]]
    rows = []
    for place, one in enumerate(first["sections"]):
        values = [scores[name]["sections"][place] for name in names]
        missing = Cell(f"{len(one['missing'])} missing" if one["missing"] else "all",
                       _list(one["missing"]))  # fmt: skip
        cells = [Cell(f"{one['num_pairs']:,}"), *map(_share, values), missing]
        rows.append(Row(one["name"], cells))
    whole = [_share(scores[name]) for name in names]
    rows.append(Row("Score", [Cell(""), *whole, Cell("")]))
    columns = [Column("Section", ""), Column("Pairs", "")]
    columns += [Column(MEASURES[name].heading, "") for name in names]
    columns.append(Column("Subsets", ""))
    note = None if first["is_complete"] else tag(
        "p", "Not all subsets are there, so these figures are not comparable with published ones.",
        class_="warning",
    )  # fmt: skip
    told = (
        "Within a section every prompt counts the same, but in Reasoning mathematics counts as "
        "much as all code together. The score is the plain mean of the sections; prior sets, "
        "where they are there, count half. Small print: 95\u00a0% intervals, from those of the "
        "subsets by the delta method, which takes the subsets as drawn apart from each other."
    )
    return section("RewardBench", note, table("RewardBench's sections", columns, rows),
                   tag("p", told, class_="note"))  # fmt: skip


def _headings(groups: Sequence[Group]) -> list[Column]:
    return [Column(MEASURES[name].heading, MEASURES[name].meaning) for name in _names(groups)]


def _names(groups: Sequence[Group]) -> list[str]:
    return [name for name in MEASURES if any(name in one["measures"] for one in groups)]


def _pairs(group: Group) -> Cell:
    """Pairs, and of how many prompts where these are fewer."""
    prompts = next(iter(group["measures"].values()))["num_prompts"]
    fewer = f"{prompts:,} prompts" if prompts != group["num_pairs"] else ""
    return Cell(f"{group['num_pairs']:,}", fewer)


def _accuracies(group: Group, groups: Sequence[Group]) -> list[Cell]:
    return [_accuracy(group["measures"].get(name)) for name in _names(groups)]


def _accuracy(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return _NOTHING
    ties = f"{one['ties']:,} {'tie' if one['ties'] == 1 else 'ties'}" if one["ties"] else ""
    return _with_interval(one["accuracy"], one["accuracy_interval"], ties)


def _with_interval(share: float, interval: tuple[float, float] | None, told: str = "") -> Cell:
    if interval is None:
        return Cell(percent(share), told)
    small = f"{100 * interval[0]:.1f} \u2013 {percent(interval[1])}"
    bar = tag("span", charts.interval_bar(share, interval))
    return Cell(percent(share), f"{small}, {told}" if told else small, extra=bar)


def _parts(one: Group, sets: Sequence[Group]) -> list[Cell]:
    """Retention and correction, by log-probability as the split itself."""
    if not any(each["split"] for each in sets):
        return []
    split = one["split"] or {}
    return [_accuracy(split.get(part, {"measures": {}})["measures"].get("logp"))
            for part in ("easy", "hard")]  # fmt: skip


def _calibrated(group: Group) -> Mapping[str, Any] | None:
    found = (one for one in group["measures"].values() if one["calibration"])
    return next(found, None)


def _calibration_headings(groups: Sequence[Group]) -> list[Column]:
    if not any(map(_calibrated, groups)):
        return []
    return [
        Column("NLL", "Mean negative log-likelihood of the labels [nats]."),
        Column("ECE", "Expected calibration error, 10 bins of equal width."),
        Column("Margin", "Mean of chosen less rejected; small print: standard deviation."),
    ]


def _calibration(group: Group, groups: Sequence[Group]) -> list[Cell]:
    if not any(map(_calibrated, groups)):
        return []
    found = _calibrated(group)
    if found is None:
        return [_NOTHING] * 3
    ece = next(c["ece"] for c in found["calibration"]
               if (c["num_bins"], c["strategy"]) == (10, "uniform"))  # fmt: skip
    spread = f"\u00b1 {found['margins']['variance'] ** 0.5:.3g}"
    mean = Cell(signed(found["margins"]["mean"]), spread)
    return [Cell(f"{found['nll']:.3f}"), Cell(f"{ece:.3f}"), mean]


def _shift(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _share(one: Mapping[str, Any]) -> Cell:
    """Of a section, or of all: its score with the interval."""
    return _NOTHING if one["score"] is None else _with_interval(one["score"], one["interval"])


def _not_drawn(data: Mapping[str, Any]) -> str:
    return f"{data['rows_not_drawn']:,} not drawn" if data["rows_not_drawn"] else ""


def _reasons(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in ordered)


def _list(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", \u2026" if len(names) > most else "")
