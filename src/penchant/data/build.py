"""Comparisons into token trees: pairs, text, tokens, cuts; every row used or set aside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from penchant.data import content
from penchant.data.comparisons import Comparisons
from penchant.data.data_report import DataReport, SourceReport
from penchant.data.gathered import NUM_EXAMPLES
from penchant.data.pairing import PairPlan, PairSettings
from penchant.data.plan import BuildSettings, Planned, plan_rows, set_aside
from penchant.data.render import Renderer, chat_template
from penchant.data.rows import RowError
from penchant.data.scores import read_soft_labels
from penchant.data.tokens import Tokenised, tokenise
from penchant.data.trees import Cuts, TokenSettings, as_tree, cut, prune, usable_pairs
from penchant.errors import DataError
from penchant.types import Comparison, TokenTree

_BATCH = 1024
"""Comparisons tokenised at once."""
_MAX_NOT_PREFIX = 0.01
"""A template that is rarely a prefix has odd rows; one that often is not, is the wrong one."""


def build_trees(
    comparisons: Iterable[Comparison], tokenizer: Any, **settings: Any
) -> tuple[list[TokenTree], DataReport]:
    """Token trees in the order of the rows, and the report.

    Args:
        comparisons: from `load`; or any iterable of Comparison.
        tokenizer: a Hugging Face tokenizer.
        settings: fields of BuildSettings (use, score_transform, max_pairs_per_prompt, strict,
            seed, max_cut_fraction, bt_beta), PairSettings (pairing, min_score_gap, ties,
            negative_gap, soft_labels, soft_labels_below_half, needs_scores) and TokenSettings
            (chat_template, max_length, max_prompt_length, truncate_prompt, overlong, train_on,
            mark). `soft_labels` may be the path of a table.
    Raises:
        DataError: no usable row; a row set aside under `strict`; messages without a chat
            template; a template whose prompt is often no prefix; scores that are needed and not
            there; an unknown setting.
    """
    build, pair, token = split_settings(settings)
    trees, report = _build(comparisons, tokenizer, build, pair, token)
    _check_prefixes(report)
    report.check(build.strict, build.max_cut_fraction)
    return trees, report


def report(comparisons: Iterable[Comparison], tokenizer: Any, **settings: Any) -> DataReport:
    """The report alone, also where `build_trees` would refuse; settings as there."""
    build, pair, token = split_settings(settings)
    return _build(comparisons, tokenizer, build, pair, token)[1]


def tree(comparison: Comparison, tokenizer: Any, **settings: Any) -> TokenTree:
    """One comparison as a tree, with all of its responses; settings as for `build_trees`.

    A comparison that has neither pairs nor scores becomes a tree without pairs.
    Raises DataError where the row would be set aside.
    """
    build, pair, token = split_settings(settings)
    report = DataReport()
    if comparison.pairs is None and comparison.scores is None:
        planned = [Planned(comparison, PairPlan((), None, ()))]
    else:
        planned = plan_rows([comparison], build, pair, report, every_response=True)
    made = _tokenise(planned, tokenizer, token, report, pruned=False)
    if not made:
        reason, (example, *_) = next(iter(report.examples.items()))
        raise DataError(f"{comparison.row_id}: {reason}: {example['detail']}")
    return made[0]


def split_settings(given: dict[str, Any]) -> tuple[BuildSettings, PairSettings, TokenSettings]:
    """Flat settings as those of the three stages; raises DataError for an unknown one."""
    kinds = (BuildSettings, PairSettings, TokenSettings)
    known = [{field.name for field in fields(kind)} for kind in kinds]
    unknown = set(given) - set().union(*known)
    if unknown:
        allowed = ", ".join(sorted(set().union(*known)))
        raise DataError(f"unknown data setting {sorted(unknown)[0]!r}; allowed: {allowed}")
    table = given.get("soft_labels")
    if isinstance(table, (str, Path)):
        given = {**given, "soft_labels": read_soft_labels(str(table))}
    parts = [{key: value for key, value in given.items() if key in names} for names in known]
    return BuildSettings(**parts[0]), PairSettings(**parts[1]), TokenSettings(**parts[2])


def _build(
    comparisons: Iterable[Comparison],
    tokenizer: Any,
    build: BuildSettings,
    pair: PairSettings,
    token: TokenSettings,
) -> tuple[list[TokenTree], DataReport]:
    report = DataReport(max_length=token.max_length)
    report.gathered.bos_id = tokenizer.bos_token_id
    report.gathered.special_ids = content.special_ids(tokenizer)
    planned = plan_reported(comparisons, build, pair, report)
    _find_special(planned, tokenizer, report)
    trees = _tokenise(planned, tokenizer, token, report)
    has_template = tokenizer.chat_template is not None or token.chat_template is not None
    if has_template and any(isinstance(one.row.prompt, str) for one in planned):
        report.notes.append(
            "plain strings are used as they are, without the chat template; give messages "
            "(role, content) to have it applied"
        )
    report.finish(trees, build.bt_beta)
    return trees, report


def plan_reported(
    comparisons: Iterable[Comparison], build: BuildSettings, pair: PairSettings, report: DataReport
) -> list[Planned]:
    """The pairs of each row, with sources, rows set aside and repeats put into the report."""
    if isinstance(comparisons, Comparisons):
        report.left_out = comparisons.left_out
        report.sources = {name: SourceReport(kind) for name, kind in comparisons.formats.items()}
        for lost in comparisons.set_aside:
            report.add_set_aside(lost)
    rows = list(comparisons)
    for row in rows:
        report.sources.setdefault(row.source, SourceReport(row.format))
    planned = plan_rows(rows, build, pair, report)
    pairs = ((one.row, one.plan.pairs) for one in planned)
    report.repeats = content.repeats(pairs, NUM_EXAMPLES)
    return planned


def _find_special(planned: Sequence[Planned], tokenizer: Any, report: DataReport) -> None:
    """Special tokens among the words of the rows: a template that was applied before, say."""
    pattern = content.special_texts(tokenizer)
    if pattern is None:
        return
    for one in planned:
        found = content.special_in(one.row, pattern)
        if found is not None:
            report.special_in_text += 1
            report.gathered.see("special_in_text", one.row, found)


def _tokenise(
    planned: Sequence[Planned],
    tokenizer: Any,
    settings: TokenSettings,
    report: DataReport,
    pruned: bool = True,
) -> list[TokenTree]:
    """Renders and tokenises in batches; rows that fail are set aside."""
    template = None if settings.chat_template is None else chat_template(settings.chat_template)
    renderer = Renderer(tokenizer, template, settings.train_on)
    trees: list[TokenTree] = []
    unprinted: list[str] = []
    for start in range(0, len(planned), _BATCH):
        batch = []
        for one in planned[start : start + _BATCH]:
            try:
                one.rendered = renderer.render(one.row)
            except RowError as error:
                report.add_set_aside(set_aside(one.row, error))
            else:
                batch.append(one)
                unprinted += [one.row.row_id] if one.rendered.not_printed else []
        texts = [one.rendered for one in batch if one.rendered is not None]
        for one, tokenised in zip(batch, tokenise(texts, tokenizer), strict=True):
            one.rendered = None
            _measure(one, tokenised, report)
            try:
                made, cuts, plan = _finish(one, tokenised, tokenizer, settings)
            except RowError as error:
                report.add_set_aside(set_aside(one.row, error))
                continue
            report.prefix_retokenised += tokenised.num_retokenised
            report.add_tree(one.row, made, cuts, plan.dropped)
            trees.append(prune(made) if pruned else made)
    if unprinted:
        report.notes.append(
            f"{len(unprinted):,} rows call tools of which the chat template prints nothing "
            f"({unprinted[0]}, say); choose one that does with data.chat_template"
        )
    return trees


def _measure(one: Planned, tokenised: Tokenised, report: DataReport) -> None:
    """Lengths as they are before anything is cut, of rows that are set aside later too."""
    if tokenised.error is None:
        lengths = [len(ids) for ids in tokenised.response_ids]
        report.gathered.measure(len(tokenised.prompt_ids), lengths, one.plan.pairs)


def _finish(
    one: Planned, tokenised: Tokenised, tokenizer: Any, settings: TokenSettings
) -> tuple[TokenTree, Cuts, PairPlan]:
    """One tree; raises RowError where it is of no use."""
    if tokenised.error is not None:
        raise tokenised.error
    try:
        cuts = cut(tokenised, settings, tokenizer.bos_token_id)
    except DataError as error:
        raise DataError(f"{one.row.row_id}: {error}") from None
    kept, reasons = usable_pairs(tokenised, one.plan.pairs, cuts)
    plan = one.plan.keep(kept, reasons) if one.plan.pairs else one.plan
    made = as_tree(one.row.row_id, tokenised, plan, settings.mark)
    return replace(made, scores_R=one.row.scores), cuts, plan


def _check_prefixes(report: DataReport) -> None:
    count = report.set_aside.get("template_not_prefix", 0)
    if count > _MAX_NOT_PREFIX * report.rows_in:
        raise DataError(
            f"{count} of {report.rows_in} rows: the chat template does not begin the whole "
            "conversation as it renders the prompt (template_not_prefix), so the response cannot "
            "be told from it; choose another one with data.chat_template"
        )
