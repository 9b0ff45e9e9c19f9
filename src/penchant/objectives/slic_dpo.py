"""SLiC-DPO: hinge loss on how far the policy has moved from the reference.

Formula
    loss = max(0, delta - beta * D)
    D    = (policy - reference)(chosen) - (policy - reference)(rejected)
Symbols
    policy, reference   summed log-probability of a response [nats]
    beta                how strongly the policy is tied to the reference
    delta               target margin, in units of the reward beta * (policy - reference)
Raises
    ObjectiveError      no reference, no rejected responses, or shapes that differ
Paper
    thesis behind https://github.com/martimfasantos/CustomPOs-for-SLMs, Eq. 4.2; the hinge is that
    of SLiC-HF, https://arxiv.org/abs/2305.10425, Eq. 1, here against a reference
Differs from the paper
    delta is a field; the released code fixes it at 1. The gradient at the hinge itself is 0, so
    delta must be above 0: with 0 a policy that equals its reference would never start to move
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from penchant.plugins import Positive, check_fields
from penchant.types import ObjectiveOutput, PairLogps, check_same_pairs


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module's docstring for the formula."""

    beta: Positive = 0.1
    """How strongly the policy is tied to the reference; smaller is looser."""
    delta: Positive = 1.0
    """By how much the chosen reward should exceed the rejected one; beyond it nothing is learnt."""

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
        loss_P = torch.relu(self.delta - (chosen_P - rejected_P))
        return ObjectiveOutput(loss_P, chosen_P.detach(), rejected_P.detach())
