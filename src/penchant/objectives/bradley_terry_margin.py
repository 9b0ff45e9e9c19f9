"""Bradley-Terry with a margin per pair: the larger the score gap, the further apart the rewards.

Formula
    loss   = -log sigmoid(D - margin)
    margin = gap_scale * (score(chosen) - score(rejected))
    D      = reward(chosen) - reward(rejected)
Symbols
    reward      what a reward model gives a response
    score       quality of a response, in the units of its source
Args
    chosen_P, rejected_P                [pairs], rewards
    score_chosen_P, score_rejected_P    [pairs]
Raises
    ObjectiveError      a pair without two scores that are numbers, shapes that differ
Paper
    https://arxiv.org/abs/2307.09288, Eq. 2
Differs from the paper
    the margin is in proportion to the score gap; there it is a number for each of four ratings.
    Where the label says chosen and the scores say rejected (data.negative_gap=keep), the margin is
    negative: the label holds, but pulls the two apart less than without a margin
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from penchant.errors import ObjectiveError
from penchant.objectives._ranking import check_rewards
from penchant.plugins import Positive, check_fields
from penchant.types import ObjectiveOutput


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module's docstring for the formula."""

    gap_scale: Positive = 1.0
    """Units of reward that a unit of score gap asks for."""

    needs: ClassVar[frozenset[str]] = frozenset()
    input: ClassVar[str] = "ranking"
    scope: ClassVar[str] = "pair"
    uses: ClassVar[frozenset[str]] = frozenset({"score_chosen_P", "score_rejected_P"})
    refuses: ClassVar[Mapping[str, str]] = {
        "margin": "bradley-terry-margin takes each pair's margin from its scores; for one margin "
        "for all pairs use bradley-terry"
    }

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        chosen_P: Tensor,
        rejected_P: Tensor,
        *,
        score_chosen_P: Tensor | None = None,
        score_rejected_P: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Loss of each pair; the rewards are the model's own."""
        scores_P = {"score_chosen_P": score_chosen_P, "score_rejected_P": score_rejected_P}
        check_rewards(chosen_P, rejected_P, **scores_P)
        if score_chosen_P is None or score_rejected_P is None:
            raise ObjectiveError("the margin comes from score_chosen_P and score_rejected_P")
        gap_P = (score_chosen_P - score_rejected_P).double()
        if not bool(gap_P.isfinite().all()):
            places = (~gap_P.isfinite()).nonzero().flatten().tolist()
            raise ObjectiveError(f"no margin for pairs {places[:5]}: a score is not a number")
        margin_P = chosen_P - rejected_P - (self.gap_scale * gap_P).to(chosen_P.dtype)
        return ObjectiveOutput(-F.logsigmoid(margin_P), chosen_P.detach(), rejected_P.detach())
