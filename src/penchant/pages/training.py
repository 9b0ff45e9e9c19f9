"""Training curves: accuracy of all objectives together, loss and margin of each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.pages import charts
from penchant.pages.axes import Frame
from penchant.pages.markup import Markup, join, tag
from penchant.pages.report import Entry
from penchant.pages.template import NUM_SERIES, figure


def training_curves(trained: Sequence[Entry]) -> Markup:
    """Accuracy of all objectives together, then loss and margin of each on its own scale."""
    curves = [
        _curve(entry, "rewards/accuracies", number) for number, entry in enumerate(trained, start=1)
    ]

    def draw(width: float, height: float) -> Markup:
        frame = Frame(
            width=width,
            height=height,
            top=34,
            x_label="Training step",
            y_label="Pairs ranked right, of those in the step",
            num_x_ticks=int(width / 90),
        )
        return charts.curve_chart(
            curves, frame, alternative="Accuracy on training pairs over the steps, by objective."
        )

    caption = (
        "A pair is ranked right when the policy has moved towards the chosen answer more than "
        "towards the rejected one. All curves are smoothed over a twelfth of the steps."
    )
    panels = [_panel(entry, number) for number, entry in enumerate(trained, start=1)]
    note = tag(
        "p",
        "Loss and reward margin (how much more the chosen answer has gained than the rejected "
        "one, in the objective's own units). Scales differ from objective to objective: compare "
        "shapes, not heights.",
        class_="note",
        style="margin-top:2rem",
    )
    return join(
        figure(draw, (900, 330), (368, 300), caption),
        note,
        tag("div", panels, class_="grid-of-panels"),
    )


def _panel(entry: Entry, number: int) -> Markup:
    """Loss and margin of one objective, side by side."""
    drawn = []
    for metric, label in (("loss", "Loss"), ("rewards/margins", "Reward margin")):
        frame = Frame(
            width=240,
            height=170,
            left=44,
            top=28,
            right=8,
            bottom=26,
            y_label=label,
            num_x_ticks=3,
            num_y_ticks=4,
        )
        words = f"{label} of {entry.name} over the training steps."
        curve = _curve(entry, metric, number)
        drawn.append(charts.curve_chart([curve], frame, alternative=words, is_labelled=False))
    heading = tag("h3", entry.name, class_=f"s{number % NUM_SERIES}")
    return tag("div", heading, tag("div", drawn, class_="pair"), class_="panel")


def _curve(entry: Entry, metric: str, number: int) -> charts.Curve:
    steps, values = entry.curves.get(metric, ((), ()))
    smooth = charts.smoothed(values, max(1, len(values) // 12))
    return charts.Curve(label=entry.name, x=steps, y=smooth, series=number % NUM_SERIES)
