"""One step: the loss of so many pairs and its gradient, whatever the micro-batches.

A step's loss is a sum over its pairs divided by their number; both are known before the first
forward pass, so micro-batches only add to it and their split does not change the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from penchant.data.pack import plan_micro_batches
from penchant.engine import Engine
from penchant.engine.reference_store import ReferenceStore
from penchant.train import pairs
from penchant.train.metrics import Totals
from penchant.types import ObjectiveOutput, PairLogps, TokenLogps, TokenTree


@final
@dataclass(frozen=True)
class Step:
    """An engine, an objective and a reference, ready to be fed trees."""

    engine: Engine
    objective: Any
    reference: ReferenceStore | None
    """Needed where "reference" is among the objective's needs."""
    token_budget: int
    """Most tokens of a micro-batch, padding included."""

    def train(self, trees: Sequence[TokenTree]) -> Totals:
        """Adds the gradient of the trees' mean loss to the parameters."""
        if self.objective.input == "chosen":
            trees = [pairs.chosen_only(tree) for tree in trees]
        if self.objective.scope == "step":
            return self._train_whole(trees)
        totals, whole = Totals(), StepSize.of(trees)
        for batch in self._micro_batches(trees):

            def loss(logps: TokenLogps, batch: list[TokenTree] = batch) -> Tensor:
                output = self._evaluate(batch, logps, whole, totals)
                return output.loss_P.sum() / whole.num_pairs

            self.engine.backward(batch, loss)
        return totals

    @torch.no_grad()
    def evaluate(self, trees: Sequence[TokenTree]) -> Totals:
        """Metrics of the trees without gradients; rejected responses always take part."""
        totals, whole = Totals(), StepSize.of(trees)
        if self.objective.scope == "step":
            batches = self._micro_batches(trees)
            ordered = [tree for batch in batches for tree in batch]
            self._evaluate(ordered, self._gather(batches), whole, totals)
            return totals
        for batch in self._micro_batches(trees):
            self._evaluate(batch, self.engine.logps(batch), whole, totals)
        return totals

    def _train_whole(self, trees: Sequence[TokenTree]) -> Totals:
        """For objectives that need the whole step at once: one more forward pass.

        The step's log-probabilities are gathered detached; the objective's gradient with respect
        to them is then propagated micro-batch by micro-batch.
        """
        totals, whole = Totals(), StepSize.of(trees)
        batches = self._micro_batches(trees)
        with torch.no_grad():
            gathered = self._gather(batches)
        leaf = TokenLogps(gathered.values_T.requires_grad_(), gathered.lengths_R)
        ordered = [tree for batch in batches for tree in batch]
        output = self._evaluate(ordered, leaf, whole, totals)
        (coefficient_T,) = torch.autograd.grad(output.loss_P.mean(), leaf.values_T)
        start = 0
        for batch in batches:

            def loss(logps: TokenLogps, start: int = start) -> Tensor:
                part_T = coefficient_T[start : start + len(logps.values_T)]
                return (part_T * logps.values_T).sum()

            self.engine.backward(batch, loss)
            start += sum(sum(mask) for tree in batch for mask in tree.response_masks)
        return totals

    def _gather(self, batches: Sequence[Sequence[TokenTree]]) -> TokenLogps:
        parts = [self.engine.logps(batch) for batch in batches]
        return TokenLogps(
            torch.cat([part.values_T for part in parts]),
            torch.cat([part.lengths_R for part in parts]),
        )

    def _evaluate(
        self, trees: Sequence[TokenTree], logps: TokenLogps, whole: StepSize, totals: Totals
    ) -> ObjectiveOutput:
        policy = pairs.pair_logps(trees, logps)
        reference = self._reference(trees, logps.values_T.device)
        arguments: dict[str, Any] = {
            name: value.to(logps.values_T.device)
            for name, value in pairs.scores(trees, self.objective.uses).items()
        }
        if "tokens_per_pair" in self.objective.uses:
            arguments["tokens_per_pair"] = whole.tokens_per_pair
        output = self.objective(policy, reference, **arguments)
        owners = pairs.index_pairs(trees).tree_P
        totals.add(policy, output, [trees[place].row_id for place in owners])
        return output

    def _reference(self, trees: Sequence[TokenTree], device: torch.device) -> PairLogps | None:
        if "reference" not in self.objective.needs:
            return None
        assert self.reference is not None, "the objective needs a reference; none was computed"
        return pairs.pair_logps(trees, self.reference.logps(trees, device))

    def _micro_batches(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        plan = plan_micro_batches(trees, range(len(trees)), self.token_budget)
        return [[trees[i] for i in batch] for batch in plan]


@dataclass(frozen=True)
class StepSize:
    """The denominators of a step."""

    num_pairs: int
    tokens_per_pair: float
    """Scored chosen tokens, mean over the step's pairs."""

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> StepSize:
        """Counted from the trees."""
        total = sum(map(pairs.num_pairs, trees))
        return cls(total, sum(map(pairs.chosen_tokens, trees)) / total)
