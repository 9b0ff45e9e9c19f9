"""What the demo's page is told: plain numbers and texts, no models and no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Interval = tuple[float, float]
Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the page says of one policy; the first entry is the start of all others."""

    name: str
    gold: float
    gold_interval: Interval
    win_rate: float | None = None
    win_interval: Interval = (0.0, 1.0)
    kl: float | None = None
    kl_interval: Interval = (0.0, 0.0)
    mean_length: float = 0.0
    accuracy: float | None = None
    curves: Mapping[str, Series] = field(default_factory=dict)
    """Metric name -> steps and values."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one policy said."""

    name: str
    text: str
    reward: float
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with the answers of all policies."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows."""

    num_prompts: int
    entries: Sequence[Entry]
    examples: Sequence[Example]
    facts: Sequence[tuple[str, str]] = ()
    """How it was made: term and text."""
    per_seed: Mapping[str, Sequence[tuple[float, Interval]]] = field(default_factory=dict)
    """Policy -> win rate and interval of each seed, where there are several."""
    seeds: Sequence[int] = (0,)
