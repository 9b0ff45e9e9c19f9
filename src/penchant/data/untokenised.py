"""The data report without a tokenizer: lengths in characters, nothing cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from penchant.data.build import split_settings
from penchant.data.data_report import DataReport
from penchant.data.fields import is_empty, plain_text
from penchant.data.plan import Planned, set_aside
from penchant.data.planned import plan_reported
from penchant.data.rows import RowError
from penchant.types import Comparison


def text_report(comparisons: Iterable[Comparison], **settings: Any) -> DataReport:
    """What can be said of comparisons without a tokenizer; settings as for `build_trees`.

    A length is the number of characters that the turns hold, without the template's text.
    Raises DataError for scores that are needed and not there, and for an unknown setting.
    """
    build, pair, _ = split_settings(settings)
    report = DataReport(unit="characters")
    for one in plan_reported(comparisons, build, pair, report):
        try:
            pairs = _usable_pairs(one)
        except RowError as error:
            report.add_set_aside(set_aside(one.row, error))
            continue
        prompt = len(plain_text(one.row.prompt))
        lengths = [len(plain_text(response)) for response in one.row.responses]
        report.gathered.measure(prompt, lengths, pairs)
        report.gathered.use(lengths, pairs, one.row.scores)
        report.add_lengths(one.row, prompt, lengths, lengths, pairs)
    report.notes.append(
        "lengths are in characters (about four to a token of English); with tokenizer=PATH or "
        "model=DIR they are in tokens, with what max_length would cut"
    )
    report.finish(range(report.rows_used), build.bt_beta)
    return report


def _usable_pairs(one: Planned) -> Sequence[tuple[int, int]]:
    """Pairs of two different texts; raises RowError where there is none, or no response."""
    empty = [is_empty(response) for response in one.row.responses]
    if not one.plan.pairs:
        if all(empty):
            raise RowError("empty_response", "no response holds text")
        return ()
    texts = list(map(plain_text, one.row.responses))
    kept = []
    for chosen, rejected in one.plan.pairs:
        if texts[chosen] != texts[rejected] and texts[chosen] and texts[rejected]:
            kept.append((chosen, rejected))
    if not kept:
        reason = "empty_response" if any(empty) else "chosen_equals_rejected"
        raise RowError(reason, "found on the text")
    return kept
