"""BMC: tokens that differ between the two sides count more, the less sure the policy is of them.

Formula
    total = sum over tokens of w * logp
    w     = 1 + mark * min(1 / exp(logp), delta)
Symbols
    logp    log-probability of a response token [nats]; constant in w (no gradient)
    mark    1 where the token differs from the other side's response, else 0
Raises
    ObjectiveError      totals without tokens, tokens without marks, a reference of other tokens
Paper
    https://arxiv.org/abs/2408.07471, Eqs. 5-6
Differs from the paper
    nothing with source "policy"; with "own" the reference is weighted by its own probabilities, as
    in the released code. Alignment sees response tokens only, no prompt and no padding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from penchant.errors import ObjectiveError
from penchant.plugins import NonNegative, check_fields
from penchant.types import PairLogps, PairMarks, ResponseLogps
from penchant.weights._marks import Alignment, list_words, mark, stop_word_ids


@final
@dataclass(frozen=True, kw_only=True)
class Weighting:
    """See the module's docstring for the formula."""

    delta: NonNegative = 2.0
    """Most that a marked token can gain; 0 leaves every token at weight 1."""
    source: Literal["policy", "own"] = "policy"
    """Whose probabilities weight the reference: the policy's or the reference's own."""
    alignment: Alignment = "levenshtein"
    """How the two sides are aligned: fewest edits, or longest blocks first."""
    stop_words: str | Sequence[str] = "english"
    """Words that are never marked: a language, none, or a list of words."""

    published_as: ClassVar[str] = "dpo-bmc"

    def __post_init__(self) -> None:
        check_fields(self)
        list_words(self.stop_words)
        if not isinstance(self.stop_words, str):
            object.__setattr__(self, "stop_words", tuple(self.stop_words))

    def ignored_ids(self, tokenizer: Any) -> frozenset[int]:
        """Ids of the stop words in a tokenizer, to be passed to `mark`."""
        return stop_word_ids(tokenizer, self.stop_words)

    def mark(
        self,
        chosen_ids: Sequence[int],
        rejected_ids: Sequence[int],
        ignored_ids: frozenset[int] = frozenset(),
    ) -> PairMarks:
        """Which tokens of two responses differ; one flag per token."""
        return mark(chosen_ids, rejected_ids, self.alignment, ignored_ids)

    def __call__(
        self, policy: PairLogps, reference: PairLogps | None = None
    ) -> tuple[PairLogps, PairLogps | None]:
        """Policy and reference with weighted totals; tokens and lengths stay as they are."""
        if self.delta == 0:
            return policy, reference
        if policy.rejected is None:
            raise ObjectiveError("token weights compare the two sides of a pair; got chosen only")
        chosen_T, rejected_T = self._weights(policy.chosen), self._weights(policy.rejected)
        weighted = PairLogps(policy.chosen.weighted(chosen_T), policy.rejected.weighted(rejected_T))
        if reference is None or reference.rejected is None:
            return weighted, None
        _check_same_tokens(policy.chosen, reference.chosen)
        _check_same_tokens(policy.rejected, reference.rejected)
        if self.source == "own":
            chosen_T = self._weights(reference.chosen, policy.chosen.mark_T)
            rejected_T = self._weights(reference.rejected, policy.rejected.mark_T)
        return weighted, PairLogps(
            reference.chosen.weighted(chosen_T), reference.rejected.weighted(rejected_T)
        )

    def _weights(self, side: ResponseLogps, mark_T: Tensor | None = None) -> Tensor:
        """[tokens]; marks belong to the pair, so a reference is given the policy's."""
        mark_T = side.mark_T if mark_T is None else mark_T
        if side.logp_T is None or mark_T is None:
            raise ObjectiveError(
                "bmc weights single tokens: build PairLogps with from_tokens, with chosen_marks "
                "and rejected_marks"
            )
        gain_T = torch.exp(-side.logp_T.detach()).clamp(max=self.delta)
        return 1 + torch.where(mark_T, gain_T, torch.zeros_like(gain_T))


def _check_same_tokens(policy: ResponseLogps, reference: ResponseLogps) -> None:
    if reference.pair_T is None or not torch.equal(policy.pair_T, reference.pair_T):  # type: ignore[arg-type]
        raise ObjectiveError(
            "policy and reference must hold log-probabilities of the same tokens, pair by pair"
        )
