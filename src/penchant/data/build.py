"""Comparisons into token trees: pairs, text, tokens, cuts; every row used or set aside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from penchant.data import cache, content
from penchant.data.collect import Collector
from penchant.data.data_report import DataReport
from penchant.data.fingerprint import NoFingerprintError, combine, ingredients
from penchant.data.making import Maker
from penchant.data.pairing import PairPlan, PairSettings
from penchant.data.parallel import make_batches, num_processes, spared_garbage
from penchant.data.plan import BuildSettings, Planned, plan_rows
from penchant.data.planned import plan_pairs_of, read_rows, with_texts
from penchant.data.scores import read_soft_labels
from penchant.data.store import TreeWriter, map_trees
from penchant.data.trees import TokenSettings
from penchant.errors import DataError
from penchant.types import Comparison, TokenTree

_MAX_NOT_PREFIX = 0.01
"""A template that is rarely a prefix has odd rows; one that often is not, is the wrong one."""
Parts = tuple[BuildSettings, PairSettings, TokenSettings]


@dataclass(frozen=True, kw_only=True)
class HowSettings:
    """How trees are made; which ones does not depend on it."""

    num_proc: int | None = None
    """Processes that tokenise; None: one per core where the data are large."""
    cache: bool = False
    """Whether trees and report are kept on disk, and taken from there the next time."""

    def __post_init__(self) -> None:
        if self.num_proc is not None and self.num_proc < 1:
            raise DataError(f"num_proc is {self.num_proc}; allowed: 1 or more, or None")


_HOW = frozenset(field.name for field in fields(HowSettings))


def build_trees(
    comparisons: Iterable[Comparison], tokenizer: Any, **settings: Any
) -> tuple[Sequence[TokenTree], DataReport]:
    """Token trees in the order of the rows, and the report.

    Args:
        comparisons: from `load`, or from `read_comparisons` where the rows' texts are not to be
            held in memory; or any iterable of Comparison.
        tokenizer: a Hugging Face tokenizer.
        settings: fields of BuildSettings (use, score_transform, max_pairs_per_prompt, strict,
            seed, max_cut_fraction, bt_beta), PairSettings (pairing, min_score_gap, ties,
            negative_gap, soft_labels, soft_labels_below_half, needs_scores), TokenSettings
            (chat_template, max_length, max_prompt_length, truncate_prompt, overlong, train_on,
            mark) and HowSettings (num_proc, cache). `soft_labels` may be the path of a table.
    Raises:
        DataError: no usable row; a row set aside under `strict`; messages without a chat
            template; a template whose prompt is often no prefix; scores that are needed and not
            there; an unknown setting.
        WorkerError: a process that tokenises died.
    """
    parts, how = split_settings(settings), _how(settings)
    trees, report = _build(comparisons, tokenizer, parts, how)
    _check_prefixes(report)
    report.check(parts[0].strict, parts[0].max_cut_fraction)
    return trees, report


def report(comparisons: Iterable[Comparison], tokenizer: Any, **settings: Any) -> DataReport:
    """The report alone, also where `build_trees` would refuse; settings as there."""
    return _build(comparisons, tokenizer, split_settings(settings), _how(settings))[1]


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
    for made in Maker(tokenizer, token).make(planned):
        if made.tree is not None:
            return made.tree
        assert made.error is not None, "a row becomes a tree or an error"
        raise DataError(f"{comparison.row_id}: {': '.join(made.error)}")
    reason, (example, *_) = next(iter(report.examples.items()))
    raise DataError(f"{comparison.row_id}: {reason}: {example['detail']}")


def split_settings(given: dict[str, Any]) -> tuple[BuildSettings, PairSettings, TokenSettings]:
    """Flat settings as those of the three stages; raises DataError for an unknown one."""
    kinds = (BuildSettings, PairSettings, TokenSettings)
    known = [{field.name for field in fields(kind)} for kind in kinds]
    every = _HOW.union(*known)
    unknown = set(given) - every
    if unknown:
        allowed = ", ".join(sorted(every))
        raise DataError(f"unknown data setting {sorted(unknown)[0]!r}; allowed: {allowed}")
    table = given.get("soft_labels")
    if isinstance(table, (str, Path)):
        given = {**given, "soft_labels": read_soft_labels(str(table))}
    parts = [{key: value for key, value in given.items() if key in names} for names in known]
    return BuildSettings(**parts[0]), PairSettings(**parts[1]), TokenSettings(**parts[2])


def _how(given: dict[str, Any]) -> HowSettings:
    return HowSettings(**{key: given[key] for key in _HOW if key in given})


def _build(
    comparisons: Iterable[Comparison], tokenizer: Any, parts: Parts, how: HowSettings
) -> tuple[Sequence[TokenTree], DataReport]:
    """From the cache where it holds them; else made, and put there where that is asked for."""
    build, pair, token = parts
    known = _ingredients(tokenizer, parts) if how.cache else None
    report = DataReport(max_length=token.max_length)
    report.gathered.bos_id = tokenizer.bos_token_id
    report.gathered.special_ids = content.special_ids(tokenizer)
    rows = read_rows(comparisons, report, digest=known is not None)
    key = None
    if known is not None and rows.digest is not None:
        key = combine({**known, "rows": rows.digest})
        found = cache.find(key)
        if found is not None:
            return found
    planned = plan_pairs_of(rows, build, pair, report)
    folder, owner = cache.new_folder(cached=key is not None)
    with TreeWriter(folder) as writer, spared_garbage():
        texts = with_texts(planned, rows, build.use, report)
        processes = num_processes(how.num_proc, len(planned))
        batches = make_batches(Maker(tokenizer, token), texts, processes)
        has_template = tokenizer.chat_template is not None or token.chat_template is not None
        collector = Collector(report, content.special_texts(tokenizer), has_template)
        collector.collect(batches, writer)
    report.finish(range(report.rows_used), build.bt_beta)
    trees = map_trees(folder, writer.manifest, owner)
    if key is not None:
        cache.publish(key, writer, report)
    return trees, report


def _ingredients(tokenizer: Any, parts: Parts) -> dict[str, str] | None:
    """None where something has no content to compare, so that nothing can be cached."""
    try:
        return ingredients(tokenizer, parts)
    except NoFingerprintError:
        return None


def _check_prefixes(report: DataReport) -> None:
    count = report.set_aside.get("template_not_prefix", 0)
    if count > _MAX_NOT_PREFIX * report.rows_in:
        raise DataError(
            f"{count} of {report.rows_in} rows: the chat template does not begin the whole "
            "conversation as it renders the prompt (template_not_prefix), so the response cannot "
            "be told from it; choose another one with data.chat_template"
        )
