"""The page of `penchant demo`: which objective helped, at what price, and what it says now."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.pages import charts
from penchant.pages.axes import Frame
from penchant.pages.markup import Markup, tag
from penchant.pages.report import Entry, Example, Interval, Report
from penchant.pages.table import Cell, Column, Row, table
from penchant.pages.template import NUM_SERIES, figure, page, section, terms
from penchant.pages.training import training_curves

COLUMNS = (
    Column("Policy", "The objective that the policy was trained with."),
    Column(
        "Gold reward",
        "Mean true quality of its answers, computed by the world and not judged: 1 is perfect.",
    ),
    Column(
        "Win rate against SFT",
        "On how many prompts its answer is truly better than that of SFT; a tie counts half, "
        "so 50\u00a0% is no better and no worse.",
    ),
    Column(
        "KL from SFT",
        "How far it has moved from the policy it started from: mean of log policy minus log "
        "reference over its own answers [nats per answer].",
    ),
    Column("Length", "Mean length of its answers [tokens]."),
    Column(
        "Held-out accuracy",
        "On how many pairs that it never saw it prefers the chosen answer over the rejected one, "
        "measured against SFT. The labels are noisy, so 100\u00a0% is out of reach.",
    ),
)


def demo_page(report: Report, warning: str = "") -> str:
    """The whole document; `warning` stands at the top, where there is something to say."""
    start, *trained = report.entries
    return page(
        "Penchant demo: from preferences to better answers",
        tag("p", "Penchant demo \u00b7 the miniature world", class_="eyebrow"),
        tag("h1", "From preference pairs to better answers"),
        tag("p", _headline(start, trained, report.num_prompts), class_="lead"),
        tag("p", warning, class_="warning") if warning else None,
        section(
            "Which objective helped, and at what price",
            _results(report),
            terms([(column.heading, column.meaning) for column in COLUMNS[1:]]),
        ),
        _per_seed(report) if len(report.seeds) > 1 else None,
        section("Reward against distance", _trade_off(report.entries)),
        section("Training", training_curves(trained)),
        section(
            "What they say now",
            tag(
                "p",
                "The first held-out prompts, not picked by hand, one answer per policy. "
                "The number is the gold reward of the answer; the best answers are outlined.",
            ),
            [_example(example, report.entries) for example in report.examples],
        ),
        section("How this was made", terms(list(report.facts))) if report.facts else None,
    )


def _headline(start: Entry, trained: Sequence[Entry], num_prompts: int) -> str:
    """The result in two sentences, without a claim that the intervals do not bear."""
    opening = (
        f"A small model was fine-tuned on example answers (SFT), then trained further on "
        f"preference pairs, once per objective, always from the same start. On {num_prompts} "
        f"held-out prompts SFT reaches {_percent(start.gold)} of the best possible reward"
    )
    won = [entry for entry in trained if entry.win_rate is not None]
    if not won:
        return opening + "."
    best = max(won, key=lambda entry: entry.gold)
    above = [entry.name for entry in won if entry.win_interval[0] > 0.5]
    named = (
        "every objective beats it"
        if len(above) == len(won)
        else f"{', '.join(above)} {'beats' if len(above) == 1 else 'beat'} it"
        if above
        else "no objective beats it"
    )
    return (
        f"{opening}; {best.name} reaches {_percent(best.gold)} and wins "
        f"{_percent(best.win_rate or 0)} of the prompts against it. Beyond the 95\u00a0% interval, "
        f"{named}."
    )


def _results(report: Report) -> Markup:
    """The table."""
    caption = (
        f"{report.num_prompts} held-out prompts, one sampled answer each; small print: "
        "95\u00a0% intervals over the prompts"
    )
    entries = report.entries
    best_gold = max(entry.gold for entry in entries)
    best_win = max((e.win_rate for e in entries if e.win_rate is not None), default=None)
    best_accuracy = max((e.accuracy for e in entries if e.accuracy is not None), default=None)
    rows = []
    for number, entry in enumerate(entries):
        series = number % NUM_SERIES
        cells = [
            Cell(f"{entry.gold:.3f}", _range(entry.gold_interval), entry.gold == best_gold),
            _win_cell(entry.win_rate, entry.win_interval, series, best_win),
            Cell("\u2013", "the start")
            if entry.kl is None
            else Cell(f"{entry.kl:.2f}", _range(entry.kl_interval, "{:.2f}")),
            Cell(f"{entry.mean_length:.1f}"),
            Cell("\u2013")
            if entry.accuracy is None
            else Cell(_percent(entry.accuracy, 1), is_best=entry.accuracy == best_accuracy),
        ]
        rows.append(Row(entry.name, cells, series))
    return table(caption, COLUMNS, rows)


def _win_cell(
    rate: float | None, interval: Interval, series: int, best: float | None = None
) -> Cell:
    if rate is None:
        return Cell("\u2013")
    bar = tag("span", charts.interval_bar(rate, interval), class_=f"s{series}")
    low, high = (f"{100 * value:.1f}" for value in interval)
    return Cell(_percent(rate, 1), f"{low} \u2013 {high}\u00a0%", rate == best, bar)


def _per_seed(report: Report) -> Markup:
    """Win rates of every seed: what the intervals over prompts cannot show."""
    columns = [COLUMNS[0], *(Column(f"Seed {seed}", "") for seed in report.seeds)]
    numbers = {entry.name: number % NUM_SERIES for number, entry in enumerate(report.entries)}
    rows = [
        Row(name, [_win_cell(*win, numbers.get(name, 0)) for win in wins], numbers.get(name))
        for name, wins in report.per_seed.items()
    ]
    return section(
        "Every seed",
        tag(
            "p",
            "Another seed is another world, another start and other noise. All else on this "
            f"page is seed {report.seeds[0]}.",
        ),
        table("Win rate against SFT with 95\u00a0% interval, seed by seed", columns, rows),
    )


def _trade_off(entries: Sequence[Entry]) -> Markup:
    """Gold reward against KL, a point per policy."""
    points = [
        charts.Point(
            label=entry.name,
            x=entry.kl or 0.0,
            y=entry.gold,
            x_interval=None if entry.kl is None else entry.kl_interval,
            y_interval=entry.gold_interval,
            series=number % NUM_SERIES,
            note=f"{entry.name}: gold reward {entry.gold:.3f} "
            f"({_range(entry.gold_interval, '{:.3f}')}), KL {entry.kl or 0:.2f} nats",
        )
        for number, entry in enumerate(entries)
    ]
    words = "Gold reward against KL from SFT. " + "; ".join(point.note for point in points) + "."

    def draw(width: float, height: float) -> Markup:
        frame = Frame(
            width=width,
            height=height,
            top=34,
            x_label="KL from SFT [nats per answer]",
            y_label="Gold reward (1 is perfect)",
            num_x_ticks=int(width / 90),
        )
        return charts.point_chart(points, frame, alternative=words)

    caption = (
        "Up is better, left is closer to the start. Bars are 95\u00a0% intervals. Of two policies "
        "at the same height the left one paid less for it."
    )
    return figure(draw, (900, 400), (368, 340), caption)


def _example(example: Example, entries: Sequence[Entry]) -> Markup:
    """A prompt and what each policy answers."""
    numbers = {entry.name: number % NUM_SERIES for number, entry in enumerate(entries)}
    best = max((answer.reward for answer in example.answers), default=0.0)
    items = []
    for answer in example.answers:
        header = tag(
            "header",
            tag("span", answer.name, class_=f"s{numbers.get(answer.name, 0)}"),
            tag("span", f"{answer.reward:.2f}", class_="reward"),
        )
        text = answer.text if answer.text.strip() else tag("span", "(nothing)", class_="cut")
        cut = (
            tag("span", " \u2026 cut at the length limit", class_="cut") if answer.is_cut else None
        )
        is_top = answer.reward == best and best > 0
        items.append(
            tag(
                "li",
                header,
                tag("p", text, cut if answer.is_cut else None),
                class_="answer top" if is_top else "answer",
            )
        )
    return tag(
        "article",
        tag("p", example.prompt, class_="prompt"),
        tag("ul", items, class_="answers"),
        class_="example",
    )


def _percent(share: float, decimals: int = 0) -> str:
    return f"{100 * share:.{decimals}f}\u00a0%"


def _range(interval: Interval, style: str = "{:.3f}") -> str:
    return " \u2013 ".join(style.format(value) for value in interval)
