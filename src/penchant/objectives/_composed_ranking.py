"""A ranking objective with rewards kept around zero, with a language-model term, or with both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from penchant.errors import ObjectiveError
from penchant.objectives._ranking import check_rewards
from penchant.objectives._whole import Whole
from penchant.plugins import NonNegative, check_fields
from penchant.types import ObjectiveOutput


@final
@dataclass(frozen=True, kw_only=True)
class ComposedRanking(Whole):
    """loss = base + centring * (reward(chosen) + reward(rejected))^2 + lm_weight * NLL.

    Centring: https://arxiv.org/abs/2312.09244, Eq. 2. The NLL is that of a prompt's best response
    under the language model on the same backbone, mean over the tokens of a task and step.
    What the base declares (needs, input, scope, uses) holds for the whole.
    """

    base: Any
    """The objective."""
    centring: NonNegative = 0.0
    """Pulls the rewards of a pair towards a sum of zero; differences alone leave it open."""
    lm_weight: NonNegative = 0.0
    """Adds this times the mean token NLL of the best response; needs a model with its LM head."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.base.input != "ranking":
            raise ObjectiveError(f"{self.base.name} takes no centring and no lm_weight")

    @property
    def token_weights(self) -> None:
        """None: rewards are no sums over tokens."""
        return

    @property
    def uses(self) -> frozenset[str]:
        """What the base uses, and the NLL where it counts."""
        return self.base.uses | ({"lm_nll_P"} if self.lm_weight > 0 else frozenset())

    def __call__(
        self, chosen_P: Tensor, rejected_P: Tensor, **extras: Tensor | None
    ) -> ObjectiveOutput:
        """Loss of each pair; `lm_nll_P` is each pair's share of the mean token NLL [nats]."""
        nll_P = extras.pop("lm_nll_P", None) if self.lm_weight > 0 else None
        output = self.base(chosen_P, rejected_P, **extras)
        loss_P = output.loss_P
        if self.centring > 0:
            loss_P = loss_P + self.centring * (chosen_P + rejected_P).square()
        if self.lm_weight > 0:
            if nll_P is None:
                raise ObjectiveError("lm_weight needs lm_nll_P, the NLL of the best responses")
            check_rewards(chosen_P, rejected_P, lm_nll_P=nll_P)
            loss_P = loss_P + self.lm_weight * nll_P.to(loss_P.dtype)
        return replace(output, loss_P=loss_P)
