"""SFT: negative log-likelihood of the chosen response.

Formula
    token:     loss = -policy(chosen) / (chosen tokens per pair, mean over the step)
    sequence:  loss = -policy(chosen)
Symbols
    policy              summed log-probability of a response [nats]
Args
    tokens_per_pair     of the whole step, where the call sees a part of it; default: of the call
Raises
    ObjectiveError      token-normalised with neither lengths nor tokens_per_pair
Paper
    https://arxiv.org/abs/2203.02155, Section 3.5 (supervised fine-tuning); no equation
Differs from the paper
    the mean of the loss over the pairs of a step is the mean over its tokens (or its responses),
    however the step is split; the reward is the log-probability itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from penchant.errors import ObjectiveError
from penchant.plugins import check_fields
from penchant.types import ObjectiveOutput, PairLogps


def chosen_nll(
    policy: PairLogps, normalisation: str, tokens_per_pair: float | None = None
) -> Tensor:
    """NLL of each chosen response as in the module's formula, [pairs], in nats."""
    if normalisation == "sequence":
        return -policy.chosen_P
    if tokens_per_pair is not None:
        return -policy.chosen_P / tokens_per_pair
    if policy.chosen.length_P is None:
        raise ObjectiveError(
            "token-normalised NLL needs the number of chosen tokens: give chosen_lengths_P to "
            "PairLogps.from_totals, or tokens_per_pair, or normalise by sequence"
        )
    return -policy.chosen_P / policy.chosen.length_P.to(policy.chosen_P.dtype).mean()


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module's docstring for the formula."""

    normalisation: Literal["token", "sequence"] = "token"
    """Divide the summed NLL of a step by its chosen tokens, or by its responses."""

    needs: ClassVar[frozenset[str]] = frozenset()
    input: ClassVar[str] = "chosen"
    scope: ClassVar[str] = "pair"
    uses: ClassVar[frozenset[str]] = frozenset({"tokens_per_pair"})

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        policy: PairLogps,
        reference: PairLogps | None = None,
        *,
        tokens_per_pair: float | None = None,
    ) -> ObjectiveOutput:
        """Loss of each chosen response; rejected responses and the reference play no part."""
        loss_P = chosen_nll(policy, self.normalisation, tokens_per_pair)
        chosen_P = policy.chosen_P.detach()
        rejected = policy.rejected
        rejected_P = torch.full_like(chosen_P, torch.nan) if rejected is None else rejected.total_P
        return ObjectiveOutput(loss_P, chosen_P, rejected_P.detach())
