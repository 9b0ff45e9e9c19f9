"""Token ids into a tree: what is cut where the whole is too long, and what is then of no use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from penchant.data.pairing import PairPlan
from penchant.data.rows import RowError
from penchant.data.tokens import Tokenised
from penchant.errors import DataError
from penchant.types import PairMarks, TokenTree

Mark = Callable[[Any, Any], PairMarks]
"""(chosen_ids, rejected_ids) -> which tokens differ."""


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How long a tree may be, and which turns are scored."""

    chat_template: str | None = None
    """A shipped template's name or a Jinja file; None: the tokenizer's own."""
    max_length: int = 1024
    max_prompt_length: int | None = None
    """None: half of max_length."""
    truncate_prompt: Literal["keep_end", "keep_start"] = "keep_end"
    overlong: Literal["cut", "drop", "stop"] = "cut"
    train_on: Literal["last", "all"] = "last"
    mark: Mark | None = None

    def __post_init__(self) -> None:
        allowed = {
            "truncate_prompt": ("keep_end", "keep_start"),
            "overlong": ("cut", "drop", "stop"),
            "train_on": ("last", "all"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise DataError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(values)}")
        if self.max_length < 2:
            raise DataError(f"max_length is {self.max_length}; at least 2 is needed")
        if self.max_prompt_length is not None and not (
            1 <= self.max_prompt_length <= self.max_length
        ):
            raise DataError(
                f"max_prompt_length is {self.max_prompt_length}; allowed: 1 to max_length "
                f"({self.max_length})"
            )

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt keeps where the whole is too long."""
        return self.max_prompt_length or self.max_length // 2


@dataclass(frozen=True)
class Cuts:
    """What was cut from one comparison."""

    prompt: bool = False
    responses: tuple[bool, ...] = ()
    """Per response; a cut response has lost its end of turn."""


def cut(tokenised: Tokenised, settings: TokenSettings, bos: int | None) -> Cuts:
    """Cuts ids and masks in place where prompt + longest response exceed max_length.

    The prompt first, to its limit, then each response to what room is left. A BOS token at the
    start of a prompt stays and counts. One prompt serves all responses, so the longest decides.

    Raises:
        RowError: `prompt_too_long`, `too_long`.
        DataError: `overlong` is stop.
    """
    longest = max(map(len, tokenised.response_ids))
    length = len(tokenised.prompt_ids) + longest
    uncut = (False,) * len(tokenised.response_ids)
    if length <= settings.max_length:
        return Cuts(False, uncut)
    detail = f"{length} tokens, {len(tokenised.prompt_ids)} of them prompt"
    if settings.overlong == "stop":
        raise DataError(
            f"{detail}, and max_length is {settings.max_length}; raise it, or allow data.overlong "
            "cut or drop"
        )
    if settings.overlong == "drop":
        alone = len(tokenised.prompt_ids) >= settings.max_length
        raise RowError("prompt_too_long" if alone else "too_long", detail)
    prompt_cut = len(tokenised.prompt_ids) > settings.prompt_limit
    if prompt_cut:
        tokenised.prompt_ids = _cut_prompt(tokenised.prompt_ids, settings, bos)
    room = settings.max_length - len(tokenised.prompt_ids)
    if room < 1:
        raise RowError("prompt_too_long", f"{detail}; no room for a response")
    cuts = tuple(len(ids) > room for ids in tokenised.response_ids)
    tokenised.response_ids = [ids[:room] for ids in tokenised.response_ids]
    tokenised.masks = [mask[:room] for mask in tokenised.masks]
    return Cuts(prompt_cut, cuts)


def _cut_prompt(ids: list[int], settings: TokenSettings, bos: int | None) -> list[int]:
    limit = settings.prompt_limit
    if settings.truncate_prompt == "keep_start":
        return ids[:limit]
    if bos is not None and ids[0] == bos and limit > 1:
        return [bos, *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def usable_pairs(
    tokenised: Tokenised, pairs: Sequence[tuple[int, int]], cuts: Cuts
) -> tuple[list[int], list[str]]:
    """Positions of the pairs that have two different sides with scored tokens; why not the others.

    Without pairs (SFT) the responses themselves are looked at.
    Raises RowError where none is left: `empty_response`, `nothing_scored`, `equal_after_cut`,
    `chosen_equals_rejected`.
    """
    kept: list[int] = []
    reasons: list[str] = []
    alone = [(index,) for index in range(len(tokenised.response_ids))]
    sides: Sequence[Sequence[int]] = list(pairs) or alone
    for position, side in enumerate(sides):
        reason = _trouble(tokenised, side, cuts)
        if reason is None:
            kept.append(position)
        else:
            reasons.append(reason)
    if not kept:
        raise RowError(reasons[0], "found on the token ids")
    return kept, reasons


def _trouble(tokenised: Tokenised, side: Sequence[int], cuts: Cuts) -> str | None:
    ids = [tokenised.response_ids[index] for index in side]
    if not all(ids):
        return "empty_response"
    if not all(any(tokenised.masks[index]) for index in side):
        return "nothing_scored"
    if len(ids) == 2 and ids[0] == ids[1]:
        was_cut = any(cuts.responses[index] for index in side)
        return "equal_after_cut" if was_cut else "chosen_equals_rejected"
    return None


def as_tree(row_id: str, tokenised: Tokenised, plan: PairPlan, mark: Mark | None) -> TokenTree:
    """The tree, with marks for every pair where a weighting asked for them."""
    ids = tokenised.response_ids
    marks = None
    if mark is not None and plan.pairs:
        marks = tuple(mark(ids[chosen], ids[rejected]) for chosen, rejected in plan.pairs)
    return TokenTree(
        row_id=row_id,
        prompt_ids=tuple(tokenised.prompt_ids),
        response_ids=tuple(map(tuple, ids)),
        response_masks=tuple(map(tuple, tokenised.masks)),
        pairs_P2=plan.pairs,
        soft_labels_P=plan.soft_labels,
        marks=marks,
    )


def prune(tree: TokenTree) -> TokenTree:
    """The tree without responses that are in no pair; they would only cost time."""
    used = sorted({index for pair in tree.pairs_P2 for index in pair})
    if not used or len(used) == len(tree.response_ids):
        return tree
    place = {index: position for position, index in enumerate(used)}
    return replace(
        tree,
        response_ids=tuple(tree.response_ids[index] for index in used),
        response_masks=tuple(tree.response_masks[index] for index in used),
        scores_R=None if tree.scores_R is None else tuple(tree.scores_R[i] for i in used),
        pairs_P2=tuple((place[chosen], place[rejected]) for chosen, rejected in tree.pairs_P2),
    )
