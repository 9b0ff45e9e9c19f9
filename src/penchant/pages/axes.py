"""Axes of a chart: round ticks, their labels, and where a value lies on the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.pages.markup import Markup, join, tag


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to paper units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where `value` lies on the paper."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plotting area of a chart [paper units] and what stands along it."""

    width: float
    height: float
    left: float = 52
    right: float = 16
    top: float = 14
    bottom: float = 46
    x_label: str = ""
    y_label: str = ""
    num_x_ticks: int = 6
    num_y_ticks: int = 5

    def scales(
        self, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> tuple[Scale, Scale]:
        """Scales of both axes; y grows upwards."""
        return (
            Scale(*x_range, self.left, self.width - self.right),
            Scale(*y_range, self.height - self.bottom, self.top),
        )

    def draw(self, x: Scale, y: Scale) -> Markup:
        """Grid, tick labels and axis labels."""
        parts: list[Markup] = []
        x_ticks, y_ticks = ticks(x, self.num_x_ticks), ticks(y, self.num_y_ticks)
        for value, text in zip(y_ticks, tick_labels(y_ticks), strict=True):
            at = y(value)
            parts.append(_line(self.left, at, self.width - self.right, at, "grid"))
            parts.append(_text(self.left - 7, at + 4, text, "tick", "end"))
        floor = self.height - self.bottom
        for value, text in zip(x_ticks, tick_labels(x_ticks), strict=True):
            parts.append(_line(x(value), floor, x(value), floor + 4, "axis"))
            parts.append(_text(x(value), floor + 17, text, "tick", "middle"))
        parts.append(_line(self.left, floor, self.width - self.right, floor, "axis"))
        if self.x_label:
            middle = (self.left + self.width - self.right) / 2
            parts.append(_text(middle, self.height - 8, self.x_label, "label", "middle"))
        if self.y_label:
            parts.append(_text(0, 11, self.y_label, "label", "start"))
        return join(parts)


def covering(values: Sequence[float], *, margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with some air; never empty."""
    low, high = min(values), max(values)
    air = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - air, high + air


def ticks(scale: Scale, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within the scale."""
    rough = (scale.high - scale.low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.7)
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as their distance needs."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0
    if step >= 10_000 or 0 < step < 1e-4:
        return [f"{value:g}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return [f"{value:.{decimals}f}".replace("-", "\u2212") for value in values]


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _text(x: float, y: float, text: str, class_: str, anchor: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=class_, text_anchor=anchor)
