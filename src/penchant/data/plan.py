"""The pairs of every row, before there is any text: what is drawn, filtered, capped, needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from penchant.data.comparisons import prompt_key
from penchant.data.content import words
from penchant.data.data_report import DataReport
from penchant.data.formats import max_pairs_per_prompt
from penchant.data.pairing import PairPlan, PairSettings, cap_pairs, even_gaps, plan_pairs
from penchant.data.rows import RowError, SetAside, excerpt
from penchant.data.scores import Transform, transform_scores
from penchant.errors import DataError
from penchant.types import Comparison

Use = Literal["pairs", "chosen"]


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What is made of the comparisons as a whole."""

    use: Use = "pairs"
    """pairs: trees with pairs. chosen: one response per tree, the chosen or only one (SFT)."""
    score_transform: Transform = "raw"
    max_pairs_per_prompt: int | None = None
    """None: the format's own cap, where it has one (SHP: 5)."""
    gap_bins: int | None = None
    """Draw pairs evenly over so many equal ranges of the score gap."""
    strict: bool = False
    max_cut_fraction: float | None = None
    """More cut responses than this fraction are an error."""
    bt_beta: float | None = None
    """Of an objective that makes soft labels of score gaps; only the report looks at it."""
    seed: int = 42

    def __post_init__(self) -> None:
        for name, hint in (("use", Use), ("score_transform", Transform)):
            if getattr(self, name) not in get_args(hint):
                allowed = ", ".join(get_args(hint))
                raise DataError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")
        if self.gap_bins is not None and self.gap_bins < 2:
            raise DataError(f"gap_bins is {self.gap_bins}; allowed: 2 or more")


@dataclass(slots=True)
class Planned:
    """A comparison on its way."""

    row: Comparison
    plan: PairPlan


def plan_rows(
    rows: Sequence[Comparison],
    build: BuildSettings,
    pair: PairSettings,
    report: DataReport,
    every_response: bool = False,
) -> list[Planned]:
    """Pairs of each row; rows without any are set aside."""
    if build.gap_bins is not None:
        pair = replace(pair, needs_scores=True)
    if pair.needs_scores and build.use == "pairs":
        _require_scores(rows)
    planned = []
    for row, scores in zip(rows, _transformed(rows, build.score_transform), strict=True):
        try:
            # Gaps, ties and signs are those of the source's own scores.
            plan = plan_pairs(row, pair) if build.use == "pairs" else _chosen_plan(row, pair)
        except RowError as error:
            report.add_set_aside(set_aside(row, error))
            continue
        if row.pairs is None and row.scores is not None:
            report.drawn_ties += sum(row.scores[c] == row.scores[r] for c, r in plan.pairs)
        # A copy of every row would be half of what is held of a stream.
        planned.append(Planned(row if scores == row.scores else replace(row, scores=scores), plan))
    if build.use == "pairs":
        planned = _capped(planned, build.max_pairs_per_prompt, build.seed, report)
        if build.gap_bins is not None:
            planned = _evened(planned, build.gap_bins, build.seed, report)
    return planned if every_response else [drop_unused(one, build.use) for one in planned]


def _chosen_plan(row: Comparison, pair: PairSettings) -> PairPlan:
    """For SFT the pair only says which response is the good one."""
    if row.labels is not None and len(row.responses) == 1 and not row.labels[0]:
        raise RowError("thumb_down", "nobody should learn this response")
    if len(row.responses) == 1:
        return PairPlan((), None, ())
    return plan_pairs(row, replace(pair, needs_scores=False))


def drop_unused(one: Planned, use: Use) -> Planned:
    """Without the responses that no pair uses, which are not even rendered."""
    used = sorted({index for pair in one.plan.pairs for index in pair})
    if use == "chosen" and one.plan.pairs:
        used = [one.plan.pairs[0][0]]
    elif not used or len(used) == len(one.row.responses):
        return one
    place = {index: position for position, index in enumerate(used)}
    scores = one.row.scores
    row = replace(
        one.row,
        responses=tuple(one.row.responses[index] for index in used),
        scores=None if scores is None else tuple(scores[index] for index in used),
        pairs=None,
    )
    pairs = () if use == "chosen" else tuple((place[c], place[r]) for c, r in one.plan.pairs)
    labels = one.plan.soft_labels if pairs else None
    return Planned(row, replace(one.plan, pairs=pairs, soft_labels=labels))


def _capped(
    planned: list[Planned], limit: int | None, seed: int, report: DataReport
) -> list[Planned]:
    """At most so many pairs of a prompt within a data set: the recipe's cap, or the format's."""
    kept = [tuple(range(len(one.plan.pairs))) for one in planned]
    limits = [limit or max_pairs_per_prompt(one.row.format) for one in planned]
    for cap in sorted({cap for cap in limits if cap is not None}):
        rows = [index for index, its_cap in enumerate(limits) if its_cap == cap]
        keys = [(planned[index].row.source, prompt_key(planned[index].row)) for index in rows]
        counts = [len(planned[index].plan.pairs) for index in rows]
        for index, positions in zip(rows, cap_pairs(keys, counts, cap, seed), strict=True):
            kept[index] = positions
    return _kept(planned, kept, "over_pair_cap", "its prompt has enough pairs already", report)


def _evened(planned: list[Planned], bins: int, seed: int, report: DataReport) -> list[Planned]:
    """Pairs drawn evenly over ranges of the gap between the scores that the objective sees."""
    by_source: dict[str, list[int]] = {}
    for index, one in enumerate(planned):
        by_source.setdefault(one.row.source, []).append(index)
    kept: list[list[int]] = [[] for _ in planned]
    for name, rows in by_source.items():
        places = [
            (row, position) for row in rows for position in range(len(planned[row].plan.pairs))
        ]
        gaps = [_gap(planned[row], position) for row, position in places]
        for place in even_gaps(gaps, bins, f"{seed}:{name}"):
            row, position = places[place]
            kept[row].append(position)
    return _kept(planned, kept, "over_gap_bin", "enough pairs have such a score gap", report)


def _gap(one: Planned, position: int) -> float:
    chosen, rejected = one.plan.pairs[position]
    scores = one.row.scores
    assert scores is not None, "pairs without scores are set aside where gaps are needed"
    return abs(scores[chosen] - scores[rejected])


def _kept(
    planned: list[Planned],
    kept: Sequence[Sequence[int]],
    reason: str,
    detail: str,
    report: DataReport,
) -> list[Planned]:
    """Rows with some of their pairs; those that lose all are set aside."""
    left = []
    for one, positions in zip(planned, kept, strict=True):
        lost = len(one.plan.pairs) - len(positions)
        if not positions:
            report.add_set_aside(set_aside(one.row, RowError(reason, detail)))
            continue
        if lost:
            one.plan = one.plan.keep(positions, [reason] * lost)
        left.append(one)
    return left


def _require_scores(rows: Sequence[Comparison]) -> None:
    """Raises DataError where a whole data set has no column with scores."""
    first: dict[str, Comparison] = {}
    scored: set[str] = set()
    for row in rows:
        first.setdefault(row.source, row)
        if row.scores is not None:
            scored.add(row.source)
    for source, row in first.items():
        if source not in scored:
            raise DataError(
                f"the objective needs scores, but data set {source!r} has none: row {row.row_id} "
                "has no column score_chosen and score_rejected (or chosen_rating and "
                "rejected_rating)"
            )


def _transformed(rows: Sequence[Comparison], how: Transform) -> Iterable[tuple[float, ...] | None]:
    """Scores of each row, on the scale of its own data set."""
    by_source: dict[str, list[float]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).extend(row.scores or ())
    streams = {name: iter(transform_scores(all_, how)) for name, all_ in by_source.items()}
    for row in rows:
        stream = streams[row.source]
        yield None if row.scores is None else tuple(next(stream) for _ in row.scores)


def set_aside(row: Comparison, error: RowError) -> SetAside:
    line = row.row_id.rpartition(":")[2]
    shown = excerpt(words(row))
    number = int(line) if line.isdigit() else 0
    return SetAside(row.source, number, error.reason, error.detail, shown)
