"""Planned rows into token trees, a batch at a time: render, tokenise, cut, mark.

Every row's outcome depends on that row alone, so that batches may be made anywhere, in any number
of processes, and give the same trees and the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from penchant.data.pairing import PairPlan
from penchant.data.plan import Planned
from penchant.data.render import Rendered, Renderer, chat_template
from penchant.data.rows import RowError
from penchant.data.tokens import Tokenised, tokenise
from penchant.data.trees import Cuts, TokenSettings, as_tree, cut, usable_pairs
from penchant.errors import DataError
from penchant.types import TokenTree


@dataclass
class Made:
    """What became of one row: a tree, or a reason and a detail."""

    tree: TokenTree | None = None
    """With all responses, also those that no pair uses any more."""
    cuts: Cuts = field(default_factory=Cuts)
    dropped: tuple[str, ...] = ()
    """Why pairs of it are not used."""
    prompt_length: int = 0
    """[tokens] before anything is cut, as the next one."""
    response_lengths: tuple[int, ...] = ()
    """Empty where the row could not be tokenised."""
    num_retokenised: int = 0
    not_printed: str = ""
    """What of the row the chat template leaves out."""
    error: tuple[str, str] | None = None


@final
class Maker:
    """Makes trees with one tokenizer and one set of settings; can be sent to another process."""

    def __init__(self, tokenizer: Any, settings: TokenSettings) -> None:
        named = settings.chat_template
        template = None if named is None else chat_template(named)
        self.tokenizer = tokenizer
        self.settings = settings
        self.renderer = Renderer(tokenizer, template, settings.train_on)

    def make(self, batch: Sequence[Planned]) -> list[Made]:
        """One outcome per row. Raises DataError for what no row is to blame for."""
        made: list[Made] = []
        texts: list[Rendered] = []
        rendered: list[int] = []
        for place, one in enumerate(batch):
            made.append(Made())
            try:
                text = self.renderer.render(one.row)
            except RowError as error:
                made[-1].error = (error.reason, error.detail)
                continue
            made[-1].not_printed = text.not_printed
            texts.append(text)
            rendered.append(place)
        for place, tokenised in zip(rendered, tokenise(texts, self.tokenizer), strict=True):
            try:
                self._finish(batch[place], tokenised, made[place])
            except RowError as error:
                made[place].error = (error.reason, error.detail)
        return made

    def _finish(self, one: Planned, tokenised: Tokenised, made: Made) -> None:
        """Fills in one tree; raises RowError where it is of no use."""
        if tokenised.error is not None:
            raise tokenised.error
        made.prompt_length = len(tokenised.prompt_ids)
        made.response_lengths = tuple(map(len, tokenised.response_ids))
        made.num_retokenised = tokenised.num_retokenised
        try:
            cuts = cut(tokenised, self.settings, self.tokenizer.bos_token_id)
        except DataError as error:
            raise DataError(f"{one.row.row_id}: {error}") from None
        kept, reasons = usable_pairs(tokenised, one.plan.pairs, cuts)
        plan: PairPlan = one.plan.keep(kept, reasons) if one.plan.pairs else one.plan
        tree = as_tree(one.row.row_id, tokenised, plan, self.settings.mark)
        made.tree = replace(tree, scores_R=one.row.scores)
        made.cuts, made.dropped = cuts, plan.dropped
