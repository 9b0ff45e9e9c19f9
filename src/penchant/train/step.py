"""One step: the loss of so many pairs and its gradient, whatever the micro-batches.

A step's loss is a sum over its pairs divided by their number; both are known before the first
forward pass, so micro-batches only add to it and their split does not change the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from penchant.engine import Engine, TreeLoss
from penchant.engine.processes import ALONE, Processes, Share
from penchant.engine.reference_store import ReferenceStore
from penchant.train import pairs
from penchant.train.metrics import EXTRA_METRICS, Totals
from penchant.train.micro_batches import gradient_scale, halved, shared
from penchant.types import ObjectiveOutput, PairLogps, TokenLogps, TokenTree


@final
@dataclass
class Step:
    """An engine, an objective and a reference, ready to be fed trees."""

    engine: Engine
    objective: Any
    reference: ReferenceStore | None
    """Needed where "reference" is among the objective's needs."""
    token_budget: int
    """Most tokens of a micro-batch, padding included; lowered where memory runs out."""
    processes: Processes = ALONE
    """All of them are given the same trees and share the work."""
    extra_metrics: Sequence[str] = ()
    """Of EXTRA_METRICS: what is measured although the objective may not need it."""
    kl_to: Engine | None = None
    """The reference as a model; needed where a "token_kl" is needed or measured."""

    def train(self, trees: Sequence[TokenTree], *, with_extra_metrics: bool = True) -> Totals:
        """Adds the gradient of the trees' mean loss to the parameters, whose `.grad` is unset.

        Args:
            with_extra_metrics: whether anybody looks at them; the update is the same.
        """
        metrics = self.extra_metrics if with_extra_metrics else ()
        if self.objective.input == "chosen":
            trees = [pairs.chosen_only(tree) for tree in trees]
        if self.objective.scope == "step":
            totals = self._train_whole(trees, metrics)
        else:
            totals = self._train_pairs(trees, metrics)
        self.processes.sum_gradients(self.engine.model)
        return totals

    @torch.no_grad()
    def evaluate(self, trees: Sequence[TokenTree]) -> Totals:
        """Metrics of the trees without gradients; rejected responses always take part."""
        whole = StepSize.of(trees)
        if self.objective.scope == "step":
            totals = Totals()
            self._evaluate(trees, self._gather(trees, self.extra_metrics), whole, totals)
            return totals
        asked = self._asked(self.extra_metrics)

        def work(budget: int) -> Totals:
            totals = Totals()
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]
                logps = self.engine.logps(batch, **asked)
                if share.counts:
                    self._evaluate(batch, logps, whole, totals)
            return totals

        return halved(self, work, trees).summed(self.processes)

    @torch.no_grad()
    def measure(
        self, trees: Sequence[TokenTree]
    ) -> tuple[PairLogps, PairLogps | None, ObjectiveOutput]:
        """Policy, reference and objective of each pair, in order, the trees being one step."""
        logps = self._gather(trees)
        output = self._evaluate(trees, logps, StepSize.of(trees), Totals())
        reference = self._reference(trees, logps.values_T.device)
        return pairs.pair_logps(trees, logps), reference, output

    def _train_pairs(self, trees: Sequence[TokenTree], metrics: Sequence[str]) -> Totals:
        whole = StepSize.of(trees)
        # What the objective does not need is constant to it: a metric changes no gradient.
        asked = self._asked(metrics) | {"differentiable": bool(self._needed())}

        def work(budget: int) -> Totals:
            totals = Totals()
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]

                def loss(
                    part: Sequence[TokenTree], logps: TokenLogps, share: Share = share
                ) -> Tensor:
                    counted = totals if share.counts else Totals()
                    output = self._evaluate(part, logps, whole, counted)
                    scale = gradient_scale(self) * share.counts / whole.num_pairs
                    return output.loss_P.sum() * scale

                weight = sum(map(pairs.num_pairs, batch)) / whole.num_pairs
                self._backward(batch, loss, share, weight, asked)
            return totals

        with self.engine.precision():
            return halved(self, work, trees).summed(self.processes)

    def _train_whole(self, trees: Sequence[TokenTree], metrics: Sequence[str]) -> Totals:
        """For objectives that need the whole step at once: one more forward pass.

        The step's log-probabilities are gathered detached; the objective's gradient with respect
        to them is then propagated micro-batch by micro-batch.
        """
        totals = Totals()
        with torch.no_grad():
            gathered = self._gather(trees, metrics)
        names = ["values_T", *(f"{name}_T" for name in self._needed())]
        leaves = {name: getattr(gathered, name).requires_grad_() for name in names}
        output = self._evaluate(trees, gathered, StepSize.of(trees), totals)
        coefficients = torch.autograd.grad(
            output.loss_P.mean(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        parts = _by_tree(trees, gathered.lengths_R, dict(zip(leaves, coefficients, strict=True)))
        num_pairs = sum(map(pairs.num_pairs, trees))

        def work(budget: int) -> None:
            for share in shared(self, trees, budget):
                coefficients = iter([parts[i] for i in share.batch])

                def loss(
                    part: Sequence[TokenTree],
                    logps: TokenLogps,
                    own: Iterator[dict[str, Tensor]] = coefficients,
                    share: Share = share,
                ) -> Tensor:
                    found = [next(own) for _ in part]
                    products = [
                        (torch.cat([one[name] for one in found]) * getattr(logps, name)).sum()
                        for name in names
                    ]
                    return torch.stack(products).sum() * (gradient_scale(self) * share.counts)

                batch = [trees[i] for i in share.batch]
                weight = sum(map(pairs.num_pairs, batch)) / num_pairs
                self._backward(batch, loss, share, weight, self._asked())

        with self.engine.precision():
            halved(self, work, trees)
        return totals

    def _backward(
        self,
        batch: Sequence[TokenTree],
        loss: TreeLoss,
        share: Share,
        weight: float,
        asked: dict[str, Any],
    ) -> None:
        """Adds a micro-batch's gradient; a mixture of experts' own loss counts by `weight`."""
        self.engine.backward_by_tree(
            batch, loss, auxiliary_weight=weight * gradient_scale(self) * share.counts, **asked
        )

    def _needed(self) -> list[str]:
        """Those of EXTRA_METRICS that the objective's loss depends on."""
        return [name for name in EXTRA_METRICS if name in self.objective.needs]

    def _asked(self, metrics: Sequence[str] = ()) -> dict[str, Any]:
        """What the engine computes besides log-probabilities: what is needed, and the metrics."""
        names = {*self._needed(), *metrics}
        if "token_kl" in names:
            assert self.kl_to is not None, "a token KL needs the reference as a model"
        kl_to = self.kl_to if "token_kl" in names else None
        return {"entropy": "entropy" in names, "kl_to": kl_to}

    def _gather(self, trees: Sequence[TokenTree], metrics: Sequence[str] = ()) -> TokenLogps:
        """Log-probabilities of all trees in their order, on every process, without gradients."""
        asked = self._asked(metrics)

        def work(budget: int) -> dict[int, dict[str, Tensor]]:
            own: dict[int, dict[str, Tensor]] = {}
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]
                logps = self.engine.logps(batch, **asked)
                fields = {name: getattr(logps, name) for name in _FIELDS}
                known = {name: each.cpu() for name, each in fields.items() if each is not None}
                parts = _by_tree(batch, logps.lengths_R, known)
                if share.counts:
                    own |= dict(zip(share.batch, parts, strict=True))
            return own

        found: dict[int, dict[str, Tensor]] = {}
        for part in self.processes.gather(halved(self, work, trees)):
            found |= part
        device = next(self.engine.model.parameters()).device
        lengths = [sum(mask) for tree in trees for mask in tree.response_masks]
        whole = {
            name: torch.cat([found[i][name] for i in range(len(trees))]).to(device)
            for name in found[0]
        }
        return TokenLogps(lengths_R=torch.tensor(lengths, device=device), **whole)

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
        totals.add(policy, output, [trees[place].row_id for place in owners], reference)
        sides = [policy.chosen, policy.rejected]
        counted = sides[: 1 if self.objective.input == "chosen" else 2]
        totals.add_tokens([side for side in counted if side is not None])
        return output

    def _reference(self, trees: Sequence[TokenTree], device: torch.device) -> PairLogps | None:
        if "reference" not in self.objective.needs:
            return None
        assert self.reference is not None, "the objective needs a reference; none was computed"
        return pairs.pair_logps(trees, self.reference.logps(trees, device))


_FIELDS = ("values_T", "entropy_T", "token_kl_T")
"""Of TokenLogps: those with a value per token."""


def _by_tree(
    trees: Sequence[TokenTree], lengths_R: Tensor, fields: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """The part of each field that belongs to each tree."""
    parts = {name: TokenLogps(field, lengths_R).per_tree(trees) for name, field in fields.items()}
    return [{name: own[i] for name, own in parts.items()} for i in range(len(trees))]


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
