"""DPO: logistic loss on how far the policy has moved from the reference.

Formula
    loss = -(1 - eps) * log sigmoid(beta * D) - eps * log sigmoid(-beta * D)
    D    = (policy - reference)(chosen) - (policy - reference)(rejected)
Symbols
    policy, reference   summed log-probability of a response [nats]
    beta                how strongly the policy is tied to the reference
    eps                 label_smoothing: probability that a label is flipped
Raises
    ObjectiveError      no reference, no rejected responses, or shapes that differ
Paper
    https://arxiv.org/abs/2305.18290, Eq. 7; eps: https://ericmitchell.ai/cdpo.pdf, Eq. 3
Differs from the paper
    nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch.nn.functional as F

from penchant.plugins import Positive, SmoothingFraction, check_fields
from penchant.types import ObjectiveOutput, PairLogps, check_same_pairs


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module's docstring for the formula."""

    beta: Positive = 0.1
    """How strongly the policy is tied to the reference; smaller is looser."""
    label_smoothing: SmoothingFraction = 0.0
    """Probability that a label is flipped."""

    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    input: ClassVar[str] = "pairs"
    scope: ClassVar[str] = "pair"
    uses: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, policy: PairLogps, reference: PairLogps) -> ObjectiveOutput:
        """Loss and implicit rewards of each pair."""
        check_same_pairs(policy, reference)
        chosen_P = self.beta * (policy.chosen_P - reference.chosen_P)
        rejected_P = self.beta * (policy.rejected_P - reference.rejected_P)
        margin_P = chosen_P - rejected_P
        eps = self.label_smoothing
        loss_P = -(1 - eps) * F.logsigmoid(margin_P) - eps * F.logsigmoid(-margin_P)
        return ObjectiveOutput(loss_P, chosen_P.detach(), rejected_P.detach())
