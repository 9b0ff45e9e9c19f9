"""What a data report finds wrong: each with its count, examples, and one thing to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from penchant.data.reasons import ADVICE, ASKED_FOR, NEEDS_LENGTH, Problem
from penchant.data.statistics import share

if TYPE_CHECKING:
    from penchant.data.data_report import DataReport

_BIASED = 0.6
"""From here on a length-only rule is worth a warning."""
_HARD = 0.5
"""Share of saturated soft labels that is worth one."""


def find_problems(report: DataReport) -> list[Problem]:
    """All that apply: warnings before notes, each in the order of the finders below."""
    found = [problem for find in _FINDERS for problem in find(report)]
    return sorted(found, key=lambda problem: problem.level != "warning")


def _longer(report: DataReport) -> str:
    """Which max_length would cut little or nothing."""
    current = report.max_length or 0
    above = [one for one in report.limits if one.max_length > current]
    if not above:
        return "raise data.max_length"
    last = above[-1]
    gentle = next((one for one in above if one.rows_cut <= 0.01 * one.of), last)
    now = next((one for one in report.limits if one.max_length == current), None)
    figure = ""
    if now is not None:
        figure = f"; {current} cuts {share(now.rows_cut, now.of)} ({now.rows_cut:,} rows)"
    part = f"{share(gentle.rows_cut, gentle.of)} of the rows" if gentle.rows_cut else "nothing"
    return f"data.max_length={gentle.max_length} would cut {part}{figure}"


def _set_aside(report: DataReport) -> Iterator[Problem]:
    for reason, count in sorted(report.set_aside.items(), key=lambda item: (-item[1], item[0])):
        advice = ADVICE.get(reason, "see the examples")
        if reason in NEEDS_LENGTH:
            advice = f"{advice}; {_longer(report)}"
        shown = [
            {
                "row_id": f"{one['source']}:{one['line']}",
                "detail": one["detail"],
                "excerpt": one["excerpt"],
            }
            for one in report.examples.get(reason, [])
        ]
        yield Problem(
            name=reason,
            level="note" if reason in ASKED_FOR else "warning",
            count=count,
            of=report.rows_in,
            what="rows",
            text=f"{count:,} of {report.rows_in:,} rows set aside: {reason.replace('_', ' ')}",
            advice=advice,
            examples=shown,
        )


def _cuts(report: DataReport) -> Iterator[Problem]:
    seen = report.gathered.seen
    lost, of = report.responses_cut, report.responses
    if lost:
        yield Problem(
            name="responses_cut",
            level="warning",
            count=lost,
            of=of,
            what="responses",
            text=f"{lost:,} of {of:,} responses ({share(lost, of)}) are cut and lose their end "
            "of turn",
            advice=_longer(report),
            examples=seen.get("responses_cut", []),
        )
    sides = report.one_sided_cuts
    if sum(sides.values()):
        yield Problem(
            name="one_sided_cuts",
            level="warning",
            count=sum(sides.values()),
            of=report.pairs,
            what="pairs",
            text=f"in {sum(sides.values()):,} of {report.pairs:,} pairs only one side is cut "
            f"({sides['chosen']:,} chosen, {sides['rejected']:,} rejected): "
            "a missing end of turn gives the label away",
            advice="data.overlong=drop leaves such rows out, a larger data.max_length cuts fewer",
            examples=seen.get("one_sided_cuts", []),
        )


def _prompt_cuts(report: DataReport) -> Iterator[Problem]:
    if report.prompts_cut:
        yield Problem(
            name="prompts_cut",
            level="warning",
            count=report.prompts_cut,
            of=report.rows_used,
            what="rows",
            text=f"{report.prompts_cut:,} of {report.rows_used:,} prompts "
            f"({share(report.prompts_cut, report.rows_used)}) are cut",
            advice="their start is lost (data.truncate_prompt); raise data.max_length",
            examples=report.gathered.seen.get("prompts_cut", []),
        )


def _repeats(report: DataReport) -> Iterator[Problem]:
    found = report.repeats
    if found.contradictory_pairs:
        yield Problem(
            name="contradictory_pairs",
            level="warning",
            count=found.contradictory_pairs,
            of=report.pairs,
            what="pairs",
            text=f"{found.contradictory_pairs:,} pairs contradict another one: A over B, and B "
            "over A",
            advice="remove one of the two, or take a soft label or label_smoothing",
            examples=[_named(line) for line in found.of_contradictions],
        )
    if found.duplicate_rows:
        yield Problem(
            name="duplicate_rows",
            level="warning",
            count=found.duplicate_rows,
            of=report.rows_in,
            what="rows",
            text=f"{found.duplicate_rows:,} rows repeat an earlier one word for word",
            advice="remove them: they count double in every mean",
            examples=[_named(line) for line in found.of_duplicates],
        )


def _named(line: str) -> dict[str, Any]:
    return {"row_id": line.split(" ")[0], "detail": line.partition(" ")[2], "excerpt": ""}


def _bias(report: DataReport) -> Iterator[Problem]:
    bias = report.length_bias
    if bias is None or not bias.is_significant or bias.length_only_accuracy < _BIASED:
        return
    longer = "longer" if bias.share_chosen_longer > 0.5 else "shorter"
    yield Problem(
        name="length_bias",
        level="warning",
        count=bias.chosen_longer if longer == "longer" else bias.rejected_longer,
        of=bias.pairs,
        what="pairs",
        text=f"length gives the label away: chosen is {abs(bias.longer_by):.0%} "
        f"{'longer' if bias.longer_by > 0 else 'shorter'} on average, and "
        f"\u201cthe {longer} one is chosen\u201d is right for {bias.length_only_accuracy:.0%}",
        advice="compare lengths before and after training, and judge with length control; "
        "objectives that divide by length depend on it less",
    )


def _scores(report: DataReport) -> Iterator[Problem]:
    gaps = report.score_gaps
    if report.drawn_ties:
        yield Problem(
            name="drawn_ties",
            level="warning",
            count=report.drawn_ties,
            of=report.pairs,
            what="pairs",
            text=f"{report.drawn_ties:,} pairs were drawn from equal scores, so their order says "
            "nothing",
            advice="data.ties=drop leaves them out",
        )
    if gaps is None:
        return
    if gaps.negative:
        yield Problem(
            name="negative_gaps",
            level="warning",
            count=gaps.negative,
            of=gaps.pairs,
            what="pairs",
            text=f"in {gaps.negative:,} of {gaps.pairs:,} pairs chosen has the lower score",
            advice="data.negative_gap=swap trusts the scores, drop leaves them out",
        )
    if gaps.ties and not report.drawn_ties:
        yield Problem(
            name="ties",
            level="note",
            count=gaps.ties,
            of=gaps.pairs,
            what="pairs",
            text=f"{gaps.ties:,} of {gaps.pairs:,} pairs have equal scores",
            advice="data.ties=drop leaves them out",
        )


def _soft_labels(report: DataReport) -> Iterator[Problem]:
    gaps = report.score_gaps
    labels = None if gaps is None else gaps.soft_labels
    if gaps is not None and labels is not None and labels.saturated > _HARD * gaps.pairs:
        suggested = labels.suggested_bt_beta
        figure = f"; {suggested:.2g} puts the median gap at p = 0.9" if suggested else ""
        yield Problem(
            name="saturated_labels",
            level="warning",
            count=labels.saturated,
            of=gaps.pairs,
            what="pairs",
            text=f"bt_beta {labels.bt_beta:g} makes {share(labels.saturated, gaps.pairs)} of the "
            "soft labels hard (beyond 0.99), which is plain DPO",
            advice=f"lower objective.bt_beta{figure}",
        )


def _tokens(report: DataReport) -> Iterator[Problem]:
    seen = report.gathered.seen
    kinds = (
        ("double_bos", "rows", report.double_bos, report.rows_used,
         "start with BOS twice, or have one before the response",
         "remove BOS from the text of the rows: the template or tokenizer adds it"),
        ("double_ends", "responses", report.double_ends, report.responses,
         "end in the same special token twice",
         "remove it from the text of the rows: the template adds it"),
        ("special_in_text", "rows", report.special_in_text, report.rows_in,
         "hold the tokenizer's special tokens as words",
         "remove them, above all where a chat template was applied before: it is applied again"),
    )  # fmt: skip
    for name, what, count, of, text, advice in kinds:
        if count:
            yield Problem(
                name=name,
                level="warning",
                count=count,
                of=of,
                what=what,
                text=f"{count:,} of {of:,} {what} {text}",
                advice=advice,
                examples=seen.get(name, []),
            )
    if report.prefix_retokenised:
        yield Problem(
            name="prefix_retokenised",
            level="note",
            count=report.prefix_retokenised,
            of=report.responses,
            what="responses",
            text=f"{report.prefix_retokenised:,} of {report.responses:,} responses were tokenised "
            "apart from their prompt: a token would span the border",
            advice="nothing to do, unless another tool must see the very same tokens",
        )


def _overlap(report: DataReport) -> Iterator[Problem]:
    found = report.overlap
    if found is None or not found.prompts:
        return
    yield Problem(
        name="train_overlap",
        level="warning",
        count=found.prompts,
        of=found.of,
        what="rows",
        text=f"{found.prompts:,} of {found.of:,} evaluation rows have a prompt that is in the "
        f"training data, {found.rows:,} of them the very same row",
        advice="drop these prompts from training with data.decontaminate, or use "
        "data.eval_fraction, which splits by prompt",
        examples=[{"row_id": one, "detail": "", "excerpt": ""} for one in found.examples],
    )


_FINDERS: tuple[Callable[[DataReport], Iterator[Problem]], ...] = (
    _overlap,
    _cuts,
    _prompt_cuts,
    _set_aside,
    _repeats,
    _scores,
    _soft_labels,
    _bias,
    _tokens,
)
