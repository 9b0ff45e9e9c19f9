"""Charts: values lie where the axis says, labels do not cover each other."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from penchant.pages.axes import Frame, Scale, covering, tick_labels, ticks
from penchant.pages.charts import Curve, Point, curve_chart, interval_bar, point_chart, smoothed

FRAME = Frame(width=400, height=300, left=50, right=10, top=20, bottom=40, x_label="KL [nats]")


def _parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


def test_a_scale_maps_its_ends_and_its_middle() -> None:
    scale = Scale(2, 4, 100, 0)
    assert (scale(2), scale(3), scale(4)) == (100, 50, 0)


@pytest.mark.parametrize(
    ("low", "high", "count", "labels"),
    [
        (0, 1, 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.03, 0.03, 3, ["\u22120.02", "0.00", "0.02"]),
        (0, 190, 4, ["0", "50", "100", "150"]),
        (0, 120_000, 3, ["0", "50000", "100000"]),
        (0.41, 0.43, 4, ["0.410", "0.415", "0.420", "0.425", "0.430"]),
    ],
)
def test_ticks_are_round_and_labels_tell_them_apart(
    low: float, high: float, count: int, labels: list[str]
) -> None:
    assert tick_labels(ticks(Scale(low, high, 0, 1), count)) == labels


def test_a_range_is_never_empty() -> None:
    for value in (0.0, 3.0, -2.0):
        low, high = covering([value])
        assert low < value < high


def test_points_lie_where_the_axes_say() -> None:
    points = [Point(label="a", x=0, y=1), Point(label="b", x=10, y=2, y_interval=(1.5, 2.5))]
    root = _parsed(point_chart(points, FRAME, alternative="two points"))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    labels = {t.text: (float(t.get("x")), float(t.get("y"))) for t in root.iter("text")}
    zero, ten = labels["0"][0], labels["10"][0]
    assert circles[0][0] == pytest.approx(zero, abs=0.1)
    assert circles[1][0] == pytest.approx(ten, abs=0.1)
    one, two = labels["1.0"][1] - 4, labels["2.0"][1] - 4
    assert circles[0][1] == pytest.approx(one, abs=0.1)
    assert circles[1][1] == pytest.approx(two, abs=0.1)
    assert root.get("aria-label") == "two points"
    assert "KL [nats]" in labels


def test_labels_of_close_points_do_not_overlap() -> None:
    points = [
        Point(label=name, x=3 + 0.05 * i, y=0.5 + 0.002 * i)
        for i, name in enumerate(["dpo", "mmpo", "dpo-gamma", "slic-dpo", "dpo-bmc"])
    ]
    points.append(Point(label="sft", x=0, y=0.4))
    root = _parsed(point_chart(points, Frame(width=900, height=400), alternative=""))
    boxes = []
    for text in root.iter("text"):
        if text.get("class") == "name":
            left, base = float(text.get("x")), float(text.get("y"))
            boxes.append((left, base - 11, left + 7 * len(text.text), base + 2))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_curves_keep_every_value_and_label_their_ends() -> None:
    curves = [
        Curve(label="<one>", x=[1, 2, 3], y=[0.5, 0.6, 0.7], series=1),
        Curve(label="two", x=[1, 2, 3], y=[0.5, 0.65, 0.7], series=2),
        Curve(label="never logged", x=[], y=[]),
        Curve(label="once", x=[2], y=[0.55], series=3),
    ]
    markup = curve_chart(curves, FRAME, alternative="curves")
    root = _parsed(markup)
    lines = [line.get("points").split() for line in root.iter("polyline")]
    assert [len(line) for line in lines] == [3, 3]
    assert len(list(root.iter("circle"))) == 1
    names = {t.text: float(t.get("y")) for t in root.iter("text") if "name" in t.get("class")}
    assert set(names) == {"<one>", "two", "once"}
    heights = sorted(names.values())
    assert min(b - a for a, b in pairwise(heights)) >= 16
    assert "<one>" not in markup


def test_a_chart_without_rows_says_so() -> None:
    assert "No rows" in curve_chart([Curve(label="a", x=[], y=[])], FRAME, alternative="")


def test_smoothing_is_a_mean_of_neighbours() -> None:
    assert smoothed([1, 2, 6, 2, 1], 3) == pytest.approx([1.5, 3, 10 / 3, 3, 1.5])
    assert smoothed([1, 5, 3], 1) == [1, 5, 3]
    assert smoothed([], 5) == []


def test_an_interval_bar_spans_its_interval() -> None:
    root = _parsed(interval_bar(0.75, (0.5, 1.0)))
    bar = next(line for line in root.iter("line") if "bar" in line.get("class"))
    assert (float(bar.get("x1")), float(bar.get("x2"))) == (50, 98)
