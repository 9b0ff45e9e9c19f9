"""An objective with token weights, with an NLL term, or with both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

from penchant.errors import ObjectiveError
from penchant.objectives._whole import Whole
from penchant.objectives.sft import chosen_nll
from penchant.plugins import NonNegative, check_fields
from penchant.types import ObjectiveOutput, PairLogps


@final
@dataclass(frozen=True, kw_only=True)
class Composed(Whole):
    """loss = base(weighted log-probabilities) + sft_weight * NLL(chosen, unweighted).

    What the base declares (needs, input, scope, uses) holds for the whole.
    """

    base: Any
    """The objective."""
    token_weights: Any = None
    """A weighting of the tokens, applied before they are summed: its name, or {name, fields}."""
    sft_weight: NonNegative = 0.0
    """Adds this times the negative log-likelihood of the chosen response."""
    sft_normalisation: Literal["token", "sequence"] = "token"
    """Divide that NLL by the chosen tokens of the step, or by its pairs."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.base.input != "pairs":
            raise ObjectiveError(f"{self.base.name} takes no token_weights and no sft_weight")

    @property
    def name(self) -> str:
        """The base's name, with the weighting's behind it."""
        weights = self.token_weights
        return self.base.name if weights is None else f"{self.base.name}-{weights.name}"

    @property
    def uses(self) -> frozenset[str]:
        """What the base uses, and the token count where the NLL is divided by it."""
        counts_tokens = self.sft_weight > 0 and self.sft_normalisation == "token"
        return self.base.uses | ({"tokens_per_pair"} if counts_tokens else frozenset())

    def __call__(
        self, policy: PairLogps, reference: PairLogps | None = None, **extras: Any
    ) -> ObjectiveOutput:
        """Loss and implicit rewards of each pair; the rewards are the base's."""
        weighted, weighted_reference = policy, reference
        if self.token_weights is not None:
            weighted, weighted_reference = self.token_weights(policy, reference)
        own = {name: value for name, value in extras.items() if name not in self._added}
        output = self.base(weighted, weighted_reference, **own)
        if self.sft_weight == 0:
            return output
        nll_P = chosen_nll(policy, self.sft_normalisation, extras.get("tokens_per_pair"))
        return replace(output, loss_P=output.loss_P + self.sft_weight * nll_P)

    @property
    def _added(self) -> frozenset[str]:
        return self.uses - self.base.uses
