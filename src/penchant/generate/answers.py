"""What back ends share: what they are asked, what they answer, and the row that comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from penchant.generate.questions import Question


@dataclass(frozen=True)
class Answer:
    """One sample."""

    text: str
    finish: str
    """`stop` (a token or text that ends it), `length` (max_tokens), or what a server says else."""
    num_tokens: int | None
    """New tokens, the one that ended it among them; None where a server did not count them."""


@dataclass(frozen=True)
class Task:
    """A prompt and which of its samples are still to be drawn."""

    question: Question
    samples: tuple[int, ...]
    """Their numbers, from 0."""
    known: Mapping[int, Answer] = field(default_factory=dict)
    """Samples that an earlier run of the command got."""


@dataclass(frozen=True)
class Answered:
    """All that came of a task."""

    question: Question
    answers: Mapping[int, Answer]
    """By number of the sample."""
    prompt_tokens: int | None = None
    error: str | None = None
    """Why some samples are not there."""
    reason: str | None = None
    """The same in a word, to be counted: a status, `timeout`, `malformed`, ..."""


@dataclass(frozen=True)
class Watch:
    """Who is told while a back end works."""

    finished: Callable[[Answered], None]
    """Called once per task, in whatever order they end."""
    tokens: Callable[[int], None]
    """Called with the number of new tokens, as they come."""
    check: Callable[[], None]
    """Called several times a second; raises where the work is to end."""
    num_before: int = 0
    """Prompts that an earlier run of the command answered."""


class Backend(Protocol):
    """Whatever answers prompts."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Attempts that failed and were made again, by kind."""
        ...

    def answer(self, tasks: Sequence[Task], watch: Watch) -> None:
        """Draws the samples of all tasks."""
        ...


def to_row(answered: Answered, about: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the output.

    Args:
        about: model, settings and seed, the same for all rows.
    """
    numbers = sorted(answered.answers)
    answers = [answered.answers[number] for number in numbers]
    generation = {
        **about,
        "key": answered.question.key,
        "finish": [one.finish for one in answers],
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": [one.num_tokens for one in answers],
    }
    row = answered.question.to_row() | {"responses": [one.text for one in answers]}
    if answered.error is not None:
        row["error"] = answered.error
        generation |= {"samples": numbers, "reason": answered.reason}
    return row | {"generation": generation} | dict(answered.question.carried)


def refreshed(row: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """A row of the output as it would stand there now: its answers, and the input's columns."""
    kept = {name: row[name] for name in ("responses", "error", "generation") if name in row}
    return question.to_row() | kept | dict(question.carried)


def known_answers(row: Mapping[str, Any]) -> dict[int, Answer]:
    """The samples in a row of the output, by number."""
    about = row["generation"]
    numbers = about.get("samples", range(len(row["responses"])))
    each = zip(row["responses"], about["finish"], about["completion_tokens"], strict=True)
    return {number: Answer(*one) for number, one in zip(numbers, each, strict=True)}


_COUNTED = ("finish", "failed_reasons")


@final
class Tally:
    """Counts over rows, which can be added up over processes."""

    def __init__(self) -> None:
        self.prompts = self.failed = self.responses = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.finish: Counter[str] = Counter()
        self.failed_reasons: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one row of the output."""
        about = row["generation"]
        self.prompts += 1
        if "error" in row:
            self.failed += 1
            self.failed_reasons[about.get("reason") or "unknown"] += 1
        self.responses += len(row["responses"])
        self.prompt_tokens += about["prompt_tokens"] or 0
        self.completion_tokens += sum(filter(None, about["completion_tokens"]))
        self.finish.update(about["finish"])

    def merge(self, other: Tally) -> None:
        """Counts what another process counted."""
        for name in ("prompts", "failed", "responses", "prompt_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.finish.update(other.finish)
        self.failed_reasons.update(other.failed_reasons)

    def to_dict(self) -> dict[str, Any]:
        """As the summary holds it."""
        counted = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTED}
        return {**vars(self), **counted}
