"""One row, token by token, as training gets it: for looking at, not for speed.

The same steps as `build_trees` takes, but what is cut is kept and told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.data.build import split_settings
from penchant.data.comparisons import Comparisons
from penchant.data.data_report import DataReport
from penchant.data.planned import plan_reported
from penchant.data.render import Rendered, Renderer, Span, chat_template
from penchant.data.rows import RowError
from penchant.data.tokens import Tokenised, tokenise
from penchant.data.trees import TokenSettings, as_tree, cut, usable_pairs
from penchant.errors import DataError
from penchant.types import Comparison, Text, TokenTree


@dataclass(frozen=True)
class SeenToken:
    """One token and what it is to the model."""

    id: int
    text: str
    """Its part of the text; empty for a further piece of a character that several make up."""
    is_content: bool
    """Of a message; else of the template, or added by the tokenizer."""
    is_scored: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class SingleRow:
    """A comparison with its tree, and every token of it, those that were cut too."""

    row: Comparison
    """With the responses that training uses, and their scores as the objective sees them."""
    tree: TokenTree
    prompt: tuple[SeenToken, ...]
    responses: tuple[tuple[SeenToken, ...], ...]
    dropped: tuple[str, ...]
    """Why pairs of it are not used."""
    num_retokenised: int


def single_row(comparisons: Comparisons, row_id: str, tokenizer: Any, **settings: Any) -> SingleRow:
    """The row of this id as `build_trees` with the same settings would make it a tree.

    Raises DataError where there is no such row, or it is set aside; says why.
    """
    build, pair, token = split_settings(settings)
    report = DataReport()
    planned = plan_reported(comparisons, build, pair, report)
    found = next((one for one in planned if one.row.row_id == row_id), None)
    if found is None:
        raise _absent(report, comparisons, row_id)
    template = None if token.chat_template is None else chat_template(token.chat_template)
    try:
        rendered = Renderer(tokenizer, template, token.train_on).render(found.row)
        (whole,) = tokenise([rendered], tokenizer)
        if whole.error is not None:
            raise whole.error
        kept = replace(whole, prompt_ids=list(whole.prompt_ids),
                       response_ids=list(map(list, whole.response_ids)),
                       masks=list(map(list, whole.masks)))  # fmt: skip
        cuts = cut(kept, token, tokenizer.bos_token_id)
        positions, reasons = usable_pairs(kept, found.plan.pairs, cuts)
    except RowError as error:
        raise DataError(f"row {row_id} is set aside: {error.reason}: {error.detail}") from None
    plan = found.plan.keep(positions, reasons) if found.plan.pairs else found.plan
    tree = replace(as_tree(row_id, kept, plan, token.mark), scores_R=found.row.scores)
    prompt, responses = _see(found.row, rendered, whole, kept, tokenizer)
    shown = _cut_prompt(prompt, len(kept.prompt_ids), token, tokenizer.bos_token_id)
    return SingleRow(found.row, tree, shown, responses, plan.dropped, whole.num_retokenised)


def _absent(report: DataReport, comparisons: Comparisons, row_id: str) -> DataError:
    """Why there is no such row among those with pairs."""
    source, _, line = row_id.rpartition(":")
    for lost in comparisons.set_aside:
        if lost.row_id == row_id:
            return DataError(f"row {row_id} is set aside: {lost.reason}: {lost.detail}")
    for reason, shown in report.examples.items():
        if any((one["source"], str(one["line"])) == (source, line) for one in shown):
            return DataError(f"row {row_id} is set aside: {reason}: {shown[0]['detail']}")
    if any(row.row_id == row_id for row in comparisons):
        return DataError(f"row {row_id} is set aside: {report.reasons()} are the reasons here")
    return DataError(f"no row {row_id}; there are {report.rows_in:,} rows")


def _see(
    row: Comparison, rendered: Rendered, whole: Tokenised, kept: Tokenised, tokenizer: Any
) -> tuple[tuple[SeenToken, ...], tuple[tuple[SeenToken, ...], ...]]:
    prompt_spans = _offsets(whole.prompt_ids, rendered.prompt, tokenizer)
    spoken = _content(rendered.prompt, row.prompt, 0)
    prompt = _tokens(whole.prompt_ids, prompt_spans, rendered.prompt, spoken, tokenizer)
    responses = []
    for index, ids in enumerate(whole.response_ids):
        text, start = rendered.wholes[index], len(rendered.prompt)
        spans = _offsets([*whole.prompt_ids, *ids], text, tokenizer)[len(whole.prompt_ids) :]
        if all(span is None for span in spans[: len(ids) - 1]):
            suffix = _offsets(ids, text[start:], tokenizer)
            spans = [span and (span[0] + start, span[1] + start) for span in suffix]
        spoken = _content(text, row.responses[index], start)
        tokens = _tokens(ids, spans, text, spoken, tokenizer, start)
        masks = whole.masks[index]
        room = len(kept.response_ids[index])
        responses.append(
            tuple(
                replace(token, is_scored=mask and place < room, is_cut=place >= room)
                for place, (token, mask) in enumerate(zip(tokens, masks, strict=True))
            )
        )
    return tuple(prompt), tuple(responses)


def _offsets(ids: Sequence[int], text: str, tokenizer: Any) -> list[Span | None]:
    """Where each token stands in the text; None for those that are not from it, or not known."""
    unknown: list[Span | None] = [None] * len(ids)
    if not getattr(tokenizer, "is_fast", False):
        return unknown
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = encoded["input_ids"]
    for start in (0, 1):  # BOS may have been put before.
        if list(ids[start : start + len(found)]) == found and len(ids) - len(found) <= start + 1:
            unknown[start : start + len(found)] = encoded["offset_mapping"]
            break
    return unknown


def _content(whole: str, text: Text, start: int) -> list[Span]:
    """What the messages say, within the rendered text; a plain string is all content."""
    if isinstance(text, str):
        return [(start, len(whole))]
    spans = []
    for turn in text:
        for words in (turn["content"], turn["content"].strip()):
            place = whole.find(words, start) if words else -1
            if place >= 0:
                start = place + len(words)
                spans.append((place, start))
                break
    return spans


def _tokens(
    ids: Sequence[int],
    spans: Sequence[Span | None],
    text: str,
    spoken: Sequence[Span],
    tokenizer: Any,
    start: int = 0,
) -> list[SeenToken]:
    tokens = []
    for token, span in zip(ids, spans, strict=True):
        if span is None:
            tokens.append(SeenToken(token, str(tokenizer.convert_ids_to_tokens(token)), False))
            continue
        # From the end of the last one: a tokenizer may leave spaces out of its offsets.
        shown, first = text[start : span[1]], max(start, span[0])
        # A template's space may begin the first token of what is said.
        blank = len(text[first : span[1]]) - len(text[first : span[1]].lstrip(" "))
        place = min(first + blank, span[1] - 1)
        is_content = any(low <= place < high for low, high in spoken)
        tokens.append(SeenToken(token, shown, is_content))
        start = max(start, span[1])
    return tokens


def _cut_prompt(
    prompt: Sequence[SeenToken], kept: int, settings: TokenSettings, bos: int | None
) -> tuple[SeenToken, ...]:
    """The prompt with the tokens that do not reach the model marked; as `cut` takes them."""
    lost = len(prompt) - kept
    first = 0 if settings.truncate_prompt == "keep_end" else kept
    if settings.truncate_prompt == "keep_end" and prompt[0].id == bos and kept > 1:
        first = 1
    return tuple(
        replace(token, is_cut=first <= place < first + lost) for place, token in enumerate(prompt)
    )
