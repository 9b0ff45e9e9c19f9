"""The page of `penchant data`: can this be trained on, what is wrong, and how long it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.pages.histograms import Bars, Marker, histogram, split_bar
from penchant.pages.markup import Markup, tag
from penchant.pages.table import Cell, Column, Row, table
from penchant.pages.template import page, section

Report = Mapping[str, Any]
"""A data report as data_report.json holds it."""


def data_page(report: Report) -> str:
    """The whole document; the report of evaluation data, if there is one, follows the other."""
    names = ", ".join(report["sources"]) or "no data"
    evaluation = report.get("eval")
    after = () if evaluation is None else (tag("h1", "Evaluation data"), _body(evaluation))
    return page(
        f"Data report: {names}",
        tag("p", "Penchant data report", class_="eyebrow"),
        tag("h1", names),
        _body(report),
        *after,
    )


def _body(report: Report) -> list[Markup | None]:
    return [
        tag("p", _verdict(report), class_="lead"),
        _tiles(report),
        _findings(report["problems"]),
        _lengths(report),
        _bias(report),
        _scores(report),
        _rows(report),
        _notes(report["notes"]),
    ]


def _verdict(report: Report) -> str:
    """Two sentences: how much can be used, and how much there is to look at."""
    used, rows_in = report["rows_used"], report["rows_in"]
    if not used:
        return f"None of the {rows_in:,} rows can be used."
    whole = "All" if used == rows_in else f"{used:,} of"
    what = f"{report['pairs']:,} pairs" if report["pairs"] else f"{report['responses']:,} responses"
    warnings = sum(one["level"] == "warning" for one in report["problems"])
    told = {0: "Nothing wrong was found.", 1: "One thing should be looked at first."}
    rest = told.get(warnings, f"{warnings} things should be looked at first.")
    return f"{whole} {rows_in:,} rows can be used, as {what}. {rest}"


def _tiles(report: Report) -> Markup:
    lost = report["rows_in"] - report["rows_used"]
    tiles = [(f"{report['rows_used']:,}", f"rows used; {lost:,} set aside")]
    if report["unit"] == "tokens":
        share = _percent(report["responses_cut"], report["responses"])
        tiles.append((share, f"of the responses cut at max_length {report['max_length']:,}"))
    bias = report["length_bias"]
    if bias is not None:
        by = f"{abs(bias['longer_by']):.0%}".replace("%", "\u00a0%")
        way = "longer" if bias["longer_by"] >= 0 else "shorter"
        tiles.append((by, f"{way}: chosen against rejected, on average"))
        told = f"{bias['length_only_accuracy']:.0%}".replace("%", "\u00a0%")
        tiles.append((told, "of the labels could be told by length alone; 50\u00a0% is chance"))
    gaps = report["score_gaps"]
    if gaps is not None:
        tiles.append((f"{gaps['median']:.3g}", "median score gap, chosen less rejected"))
    items = [
        tag("li", tag("span", shown, class_="figure"), tag("span", what, class_="what"),
            class_="tile")
        for shown, what in tiles
    ]  # fmt: skip
    return tag("ul", items, class_="tiles")


def _percent(count: int, of: int) -> str:
    percent = 100 * count / max(of, 1)
    if 0 < percent < 0.1:
        return "< 0.1\u00a0%"
    shown = f"{percent:.1f}" if 0 < percent < 9.95 else f"{percent:.0f}"
    return f"{shown}\u00a0%"


def _findings(problems: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not problems:
        return None
    return section("What to look at", tag("ul", map(_finding, problems), class_="findings"))


def _finding(problem: Mapping[str, Any]) -> Markup:
    examples = [
        tag(
            "p",
            tag("code", tag("bdi", one["row_id"])),
            f" {one['detail']} " if one["detail"] else " ",
            tag("bdi", one["excerpt"]),
        )
        for one in problem["examples"]
    ]
    shown = None
    if examples:
        word = "example" if len(examples) == 1 else "examples"
        shown = tag("details", tag("summary", f"{len(examples)} {word}"), examples)
    text = problem["text"]
    if "_" not in text.split()[0]:  # The name of a key keeps its spelling.
        text = text[:1].upper() + text[1:]
    return tag(
        "li",
        tag("p", f"{text}."),
        tag("p", f"\u2192 {problem['advice']}.", class_="advice"),
        shown,
        class_=f"finding {problem['level']}-level",
    )


def _bars(label: str, found: Mapping[str, Any], series: int) -> Bars:
    return Bars(label=label, series=series, **found["histogram"])


def _lengths(report: Report) -> Markup | None:
    found, unit = report["lengths"], report["unit"]
    if not found:
        return None
    limit = report["max_length"]
    marker = Marker(limit, f"max_length {limit:,}") if limit else None
    charts = [_whole(found["whole"], unit, marker)]
    if "chosen" in found:
        charts.append(
            histogram(
                [_bars("chosen", found["chosen"], 1), _bars("rejected", found["rejected"], 2)],
                x_label=f"Response [{unit}]",
                y_label="Pairs",
                caption="Chosen and rejected responses. Where the two shapes part, length and "
                "label go together.",
                alternative=f"Lengths of chosen (median {found['chosen']['median']:.0f}) and "
                f"rejected responses (median {found['rejected']['median']:.0f} {unit}).",
            )
        )
    charts.append(
        histogram(
            [_bars("prompt", found["prompt"], 3)],
            x_label=f"Prompt [{unit}]",
            y_label="Rows",
            caption="Prompts.",
            alternative=f"Lengths of prompts, median {found['prompt']['median']:.0f} {unit}.",
        )
    )
    told = tag("p", "Before anything is cut. The pale last bar holds all that is longer.")
    return section("How long it is", told, charts, _limits(report), _length_table(found, unit))


def _whole(found: Mapping[str, Any], unit: str, marker: Marker | None) -> Markup:
    return histogram(
        [_bars("whole", found, 1)],
        x_label=f"Prompt and longest response [{unit}]",
        y_label="Rows",
        caption="Whole rows"
        + ("; what lies right of the line is cut." if marker is not None else "."),
        alternative=f"Lengths of whole rows: median {found['median']:.0f}, longest "
        f"{found['longest']:,} {unit}.",
        marker=marker,
    )


def _limits(report: Report) -> Markup | None:
    if not report["limits"]:
        return None
    rows = []
    for one in report["limits"]:
        name = f"{one['max_length']:,}"
        if one["max_length"] == report["max_length"]:
            name += " (now)"
        cut = Cell(f"{one['rows_cut']:,}"), Cell(_percent(one["rows_cut"], one["of"]))
        rows.append(Row(name, cut))
    columns = [
        Column("data.max_length", "Tokens of prompt and longest response together."),
        Column("Rows too long", "They are cut, or with data.overlong=drop left out."),
        Column("Share", ""),
    ]
    return table("What other limits would cut", columns, rows)


def _length_table(found: Mapping[str, Any], unit: str) -> Markup:
    names = {"whole": "prompt + response"}
    keys = ("mean", "median", "p90", "p99", "longest")
    rows = [
        Row(names.get(name, name), [Cell(f"{one[key]:,.0f}") for key in keys])
        for name, one in found.items()
    ]
    headings = ("", "Mean", "Median", "90\u00a0%", "99\u00a0%", "Longest")
    return table(f"Lengths in {unit}", [Column(one, "") for one in headings], rows)


def _bias(report: Report) -> Markup | None:
    bias = report["length_bias"]
    if bias is None:
        return None
    parts = [
        ("chosen longer", bias["chosen_longer"], 1),
        ("equal", bias["equal"], 0),
        ("rejected longer", bias["rejected_longer"], 2),
    ]
    words = ", ".join(f"{label} in {count:,} pairs" for label, count, _ in parts)
    text = (
        f"Chosen responses have {bias['mean_chosen']:.0f} {report['unit']} on average, rejected "
        f"ones {bias['mean_rejected']:.0f}; pair by pair the ratio is {bias['mean_ratio']:.2f} "
        "(geometric mean). A rule that sees nothing but lengths would get "
        f"{bias['length_only_accuracy']:.0%} of the labels right, ties counted half; the "
        f"correlation of length with the label is {bias['correlation']:+.2f}."
    )
    return section(
        "Does length give the label away?",
        split_bar(parts, alternative=words),
        tag("p", text.replace("-", "\u2212") if bias["correlation"] < 0 else text),
    )


def _scores(report: Report) -> Markup | None:
    gaps = report["score_gaps"]
    if gaps is None:
        return None
    chart = histogram(
        [_bars("gap", gaps, 4)],
        x_label="Score of chosen less score of rejected",
        y_label="Pairs",
        caption=f"{gaps['ties']:,} ties; in {gaps['negative']:,} pairs chosen has the lower score.",
        alternative=f"Score gaps from {gaps['smallest']:g} to {gaps['largest']:g}, median "
        f"{gaps['median']:.3g}.",
    )
    labels = gaps["soft_labels"]
    soft = None
    if labels is not None:
        soft = histogram(
            [_bars("p", labels, 5)],
            x_label=f"Soft label p = sigmoid({labels['bt_beta']:g} \u00d7 gap)",
            y_label="Pairs",
            caption=f"Under bt_beta {labels['bt_beta']:g}: "
            f"{_percent(labels['saturated'], gaps['pairs'])} of the labels are hard (beyond 0.99), "
            f"{_percent(labels['even'], gaps['pairs'])} lie near a half and teach little.",
            alternative=f"Soft labels, median {labels['median']:.2f}.",
        )
    return section("How far apart the scores are", chart, soft)


def _rows(report: Report) -> Markup:
    columns = [
        Column("Source", ""),
        Column("Format", "As which its rows were read."),
        Column("Rows", ""),
        Column("Used", ""),
        Column("Pairs", ""),
        Column("Prompt", f"Mean {report['unit']} of the rows used."),
        Column("Chosen", f"Mean {report['unit']} over pairs."),
        Column("Rejected", f"Mean {report['unit']} over pairs."),
    ]
    rows = []
    for name, part in report["sources"].items():
        means = [
            _mean(part["prompt_tokens"], part["rows_used"]),
            _mean(part["chosen_tokens"], part["pairs"]),
            _mean(part["rejected_tokens"], part["pairs"]),
        ]
        counts = [f"{part[key]:,}" for key in ("rows_in", "rows_used", "pairs")]
        rows.append(Row(name, [Cell(one) for one in (part["format"] or "–", *counts, *means)]))
    aside = None
    if report["set_aside"]:
        reasons = sorted(report["set_aside"].items(), key=lambda item: (-item[1], item[0]))
        aside = table(
            "Rows set aside, by reason",
            [Column("Reason", ""), Column("Rows", "")],
            [Row(reason.replace("_", " "), [Cell(f"{count:,}")]) for reason, count in reasons],
        )
    repeats = report["repeats"]
    told = (
        f"{repeats['distinct_prompts']:,} different prompts; at most "
        f"{repeats['most_rows_of_a_prompt']:,} rows share one. "
        f"{repeats['duplicate_rows']:,} rows repeat an earlier one, and "
        f"{repeats['contradictory_pairs']:,} pairs contradict another."
    )
    caption = "Every row, by source"
    return section("Where the rows went", table(caption, columns, rows), aside, tag("p", told))


def _mean(total: int, count: int) -> str:
    return f"{total / count:,.0f}" if count else "–"


def _notes(notes: Sequence[str]) -> Markup | None:
    if not notes:
        return None
    return section("Notes", [tag("p", one, class_="note") for one in notes])
