"""Charts as inline SVG: points with intervals, and curves. Pure: values in, markup out.

Colours and type come from the page's style sheet (classes `s0`, `s1`, ... are series), so that a
chart follows light, dark and print. Hovering a mark names it with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from penchant.pages.axes import Frame, Scale, covering
from penchant.pages.markup import Markup, escape, tag

_LETTER = 8.2
"""Width of a letter of a label at 13 units, a little more than the average."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One labelled point; intervals are (low, high)."""

    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    series: int = 0
    """Which colour of the page's palette."""
    note: str = ""
    """What hovering shows."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int = 0


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def point_chart(points: Sequence[Point], frame: Frame, *, alternative: str) -> Markup:
    """Points with interval bars and a label each; `alternative` says it in words."""
    x_values = [v for p in points for v in (p.x, *(p.x_interval or ()))]
    y_values = [v for p in points for v in (p.y, *(p.y_interval or ()))]
    x, y = frame.scales(_from_zero(x_values), covering(y_values, margin=0.1))
    boxes = [_Box(x(p.x) - 7, y(p.y) - 7, x(p.x) + 7, y(p.y) + 7) for p in points]
    boxes += [
        _Box(x(p.x) - 2, y(high), x(p.x) + 2, y(low))
        for p in points
        for low, high in [p.y_interval or (p.y, p.y)]
    ]
    marks = []
    for point in points:
        place = _label_place(point, x, y, frame, boxes)
        boxes.append(place)
        marks.append(_point(point, x, y, place))
    return drawing(frame, alternative, frame.draw(x, y), marks)


def curve_chart(
    curves: Sequence[Curve],
    frame: Frame,
    *,
    alternative: str,
    y_range: tuple[float, float] | None = None,
    is_labelled: bool = True,
) -> Markup:
    """Lines, each with its name at its end unless `is_labelled` is false; `alternative` in words.

    Curves without points are left out; without any curve the chart says so.
    """
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return tag("p", "No rows were logged.", class_="note")
    if is_labelled:
        room = max(len(curve.label) for curve in curves) * _LETTER + 12
        frame = replace(frame, right=max(frame.right, room))
    x_values = [v for curve in curves for v in curve.x]
    x_range = (min(x_values), max(x_values) if max(x_values) > min(x_values) else min(x_values) + 1)
    y_range = y_range or covering([v for curve in curves for v in curve.y])
    x, y = frame.scales(x_range, y_range)
    marks = [_curve(curve, x, y) for curve in curves]
    if is_labelled:
        heights = _spread([y(curve.y[-1]) + 4 for curve in curves], frame)
        for curve, height in zip(curves, heights, strict=True):
            left = frame.width - frame.right + 8
            marks.append(tag("text", curve.label, x=left, y=height, class_=f"name s{curve.series}"))
    return drawing(frame, alternative, frame.draw(x, y), marks)


def interval_bar(value: float, interval: tuple[float, float], *, middle: float = 0.5) -> Markup:
    """A share from 0 to 1 with its interval on a line, and a mark at `middle`; decoration only."""
    x = Scale(0, 1, 2, 98)
    low, high = x(interval[0]), x(interval[1])
    body = [
        tag("line", x1=2, x2=98, y1=6, y2=6, class_="grid"),
        tag("line", x1=x(middle), x2=x(middle), y1=1, y2=11, class_="axis"),
        tag("line", x1=low, x2=high, y1=6, y2=6, class_="bar wide-bar"),
        tag("circle", cx=x(value), cy=6, r=3.5, class_="dot"),
    ]
    return tag("svg", body, viewBox="0 0 100 12", class_="interval", aria_hidden="true")


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value with its neighbours, up to `window` together; ends use what they have."""
    half = max(window, 1) // 2
    parts = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def drawing(frame: Frame, alternative: str, *content: Markup | list[Markup]) -> Markup:
    """A chart, read out as one picture with `alternative`."""
    return tag(
        "svg",
        content,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_label=alternative,
        class_="chart",
    )


def _from_zero(values: Sequence[float]) -> tuple[float, float]:
    """A range with some air that shows zero, where distances start."""
    low, high = covering(values)
    air = (high - min(low, 0.0)) * 0.04
    return (min(low, -air), max(high, air))


def _point(point: Point, x: Scale, y: Scale, label: _Box) -> Markup:
    """Interval bars, the point and its label."""
    parts = [tag("title", point.note or point.label)]
    if point.x_interval:
        low, high = map(x, point.x_interval)
        parts.append(tag("line", x1=low, x2=high, y1=y(point.y), y2=y(point.y), class_="bar"))
    if point.y_interval:
        low, high = map(y, point.y_interval)
        parts.append(tag("line", x1=x(point.x), x2=x(point.x), y1=low, y2=high, class_="bar"))
    parts.append(tag("circle", cx=x(point.x), cy=y(point.y), r=5.5, class_="dot"))
    parts.append(tag("text", point.label, x=label.left + 2, y=label.bottom - 5, class_="name"))
    return tag("g", parts, class_=f"s{point.series}")


def _label_place(point: Point, x: Scale, y: Scale, frame: Frame, taken: Sequence[_Box]) -> _Box:
    """The place beside, above or below a point that covers least of what is there already."""
    across, down = x(point.x), y(point.y)
    width, height = len(point.label) * _LETTER + 4, 18.0
    lefts = {"right": across + 9, "left": across - 9 - width, "middle": across - width / 2}
    candidates = [
        _Box(lefts[side], top, lefts[side] + width, top + height)
        for side, top in (
            ("right", down - height - 1),
            ("left", down - height - 1),
            ("right", down + 2),
            ("left", down + 2),
            ("right", down - height / 2),
            ("left", down - height / 2),
            ("middle", down - height - 12),
            ("middle", down + 12),
            ("right", down - height - 16),
            ("right", down + 18),
            ("left", down - height - 16),
            ("left", down + 18),
        )
    ]
    paper = _Box(frame.left, frame.top, frame.width, frame.height - frame.bottom)

    def cost(box: _Box) -> float:
        outside = width * height - box.overlap(paper)
        return 10 * outside + sum(box.overlap(other) for other in taken)

    return min(candidates, key=cost)


def _curve(curve: Curve, x: Scale, y: Scale) -> Markup:
    """The line, or a dot where there is only one value."""
    name = escape(f"{curve.label}: {curve.y[-1]:.3g} at the end")
    if len(curve.x) == 1:
        mark = tag("circle", cx=x(curve.x[0]), cy=y(curve.y[0]), r=3.5, class_="dot")
    else:
        path = " ".join(f"{x(a):g},{y(b):g}" for a, b in zip(curve.x, curve.y, strict=True))
        mark = tag("polyline", points=path, class_="curve")
    return tag("g", tag("title", name), mark, class_=f"s{curve.series}")


def _spread(heights: Sequence[float], frame: Frame, gap: float = 16) -> list[float]:
    """Heights moved apart until no two labels touch, in the same order, within the chart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    lowest = frame.height - frame.bottom + 4
    for i in range(len(placed) - 1, -1, -1):
        limit = lowest if i == len(placed) - 1 else placed[i + 1] - gap
        placed[i] = min(placed[i], limit)
    return [placed[order.index(i)] for i in range(len(heights))]
