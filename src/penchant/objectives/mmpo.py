"""MMPO: DPO fitted to how much better the chosen response is, not to "chosen always wins".

Formula
    loss = -p * log sigmoid(beta * D) - (1 - p) * log sigmoid(-beta * D)
    p    = sigmoid(bt_beta * (score(chosen) - score(rejected)))
    D    = (policy - reference)(chosen) - (policy - reference)(rejected)
Symbols
    policy, reference   summed log-probability of a response [nats]
    score               quality of a response, in the units of its source
    p                   soft label; the loss is least at beta * D = bt_beta * (score gap)
Args
    score_chosen_P, score_rejected_P   [pairs]; not needed where soft_label_P says p
    soft_label_P                       [pairs], p itself, in [0, 1]; NaN: the scores decide
Raises
    ObjectiveError      a pair without p, no reference, no rejected responses, shapes that differ
Paper
    https://arxiv.org/abs/2410.03145, its policy objective; bt_beta is the paper's gamma
Differs from the paper
    a soft label may be given instead of scores, as in the released code
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from penchant.objectives._soft_labels import LABEL_ARGUMENTS, soft_labels
from penchant.plugins import NonNegative, Positive, check_fields
from penchant.types import ObjectiveOutput, PairLogps, check_same_pairs


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module's docstring for the formula."""

    beta: Positive = 0.01
    """How strongly the policy is tied to the reference; smaller is looser."""
    bt_beta: NonNegative
    """How sharply a score gap turns into a label; 0 makes every label 0.5."""

    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    input: ClassVar[str] = "pairs"
    scope: ClassVar[str] = "pair"
    uses: ClassVar[frozenset[str]] = LABEL_ARGUMENTS
    refuses: ClassVar[Mapping[str, str]] = {
        "label_smoothing": "soft labels already say how sure each label is, so label_smoothing "
        "and mmpo exclude each other; leave it out, or use dpo"
    }

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, policy: PairLogps, reference: PairLogps, **scores_P: Tensor | None
    ) -> ObjectiveOutput:
        """Loss and implicit rewards of each pair."""
        check_same_pairs(policy, reference, **scores_P)
        p_P = soft_labels(self.bt_beta, **scores_P).to(policy.chosen_P.dtype)
        chosen_P = self.beta * (policy.chosen_P - reference.chosen_P)
        rejected_P = self.beta * (policy.rejected_P - reference.rejected_P)
        margin_P = chosen_P - rejected_P
        loss_P = -p_P * F.logsigmoid(margin_P) - (1 - p_P) * F.logsigmoid(-margin_P)
        return ObjectiveOutput(loss_P, chosen_P.detach(), rejected_P.detach())
