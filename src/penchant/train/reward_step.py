"""One step of a reward model: the weighted sum of its tasks' mean ranking losses, and its gradient.

Numbers of pairs are known before the first forward pass, so micro-batches only add to what is
divided by them. Weights that depend on the step's gradients (`more`) need the whole step first:
where every process has one micro-batch they are found between its forward and its backward pass;
else in forward passes of their own, without gradients (one more forward).

A mixture of experts' load-balancing loss, where the model's config asks for it, is added to what is
propagated back, a micro-batch's by its share of the pairs; as for policies it is not in `loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from penchant.data.pack import plan_micro_batches
from penchant.engine import Engine, RewardOutput
from penchant.engine.heads import causal_of
from penchant.engine.processes import ALONE, Processes, Share
from penchant.models.reward_settings import settings_of
from penchant.reward.gradients import head_gradients_of_scores, pair_weights
from penchant.reward.task_weights import TaskWeighting
from penchant.train import last_layer, pairs, ranking
from penchant.train.micro_batches import gradient_scale, halved, shared
from penchant.train.ranking import Ranked, StepCounts
from penchant.train.reward_metrics import RewardTotals, side_lengths
from penchant.train.reward_tasks import Tasks
from penchant.train.task_weighting import StepSums, Weigher
from penchant.types import TokenTree

Kept = list[tuple[Share, RewardOutput | None]]
"""Micro-batches, and what their forward passes gave where that was kept."""


@final
@dataclass
class RewardStep:
    """An engine around a reward model, an objective and its tasks, ready to be fed trees."""

    engine: Engine
    objective: Any
    tasks: Tasks
    token_budget: int
    """Most tokens of a micro-batch, padding included; lowered where memory runs out."""
    processes: Processes = ALONE
    """All of them are given the same trees and share the work."""
    weigher: Weigher = field(init=False)
    """Its state belongs into checkpoints."""
    num_ahead: int = field(default=0, init=False)
    """Steps that ran forward once more, for their weights."""

    reference: None = field(default=None, init=False)
    """None: nothing is measured against a reference."""

    def __post_init__(self) -> None:
        self.weigher = Weigher(self.tasks)

    def train(self, trees: Sequence[TokenTree], *, with_extra_metrics: bool = True) -> RewardTotals:
        """Adds the gradient of the trees' weighted loss to the parameters, whose `.grad` is unset.

        Args:
            with_extra_metrics: there are none; the loop gives it to every kind of step.
        """
        counts = StepCounts.count(trees, self.tasks.of, len(self.tasks.names))
        weighting: TaskWeighting | None = None
        waiting: list[Kept] = []
        again: Callable[[], None] | None = None
        with self.engine.precision():
            if self.weigher.looks_ahead:
                again = _random_numbers(next(self.engine.model.parameters()).device)
                weighting, waiting = self._weigh_ahead(trees, counts, again)

            def work(budget: int) -> tuple[RewardTotals, StepSums]:
                # What was kept is good for one backward pass; after that all is run anew.
                kept = waiting.pop() if waiting else None
                if again is not None and kept is None:
                    again()  # so that dropout is that of the pass which gave the weights
                return self._pass(trees, counts, weighting, kept or self._todo(trees, budget))

            totals, sums = halved(self, work, trees)
        totals = totals.summed(self.processes)
        totals.weighting = weighting or self._weigh(sums, counts)
        self.processes.sum_gradients(self.engine.model)
        return totals

    @torch.no_grad()
    def evaluate(self, trees: Sequence[TokenTree]) -> RewardTotals:
        """Metrics of evaluation trees, set by set, without gradients."""
        of = self.tasks.of_eval
        counts = StepCounts.count(trees, of, len(self.tasks.eval_names))

        def work(budget: int) -> RewardTotals:
            totals = RewardTotals(self.tasks.eval_names)
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]
                ranked = self._rank(batch, self._rewards(batch), counts)
                if share.counts:
                    _add(totals, batch, ranked, ranked.owners(list(map(of, batch))))
            return totals

        return halved(self, work, trees).summed(self.processes)

    @torch.no_grad()
    def measure(self, trees: Sequence[TokenTree]) -> dict[str, list[float]]:
        """Loss (without an LM term) and both rewards of each pair, in order, on every process."""

        def work(budget: int) -> dict[int, list[float]]:
            own: dict[int, list[float]] = {}
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]
                scores_R = self.engine.rewards(batch).scores_R.double()
                parts = scores_R.split([len(tree.response_ids) for tree in batch])
                if share.counts:
                    own |= {i: part.tolist() for i, part in zip(share.batch, parts, strict=True)}
            return own

        found: dict[int, list[float]] = {}
        for part in self.processes.gather(halved(self, work, trees)):
            found |= part
        flat = [score for i in range(len(trees)) for score in found[i]]
        ranked = ranking.rank(self.objective, trees, torch.tensor(flat, dtype=torch.float64))
        return {
            "loss": ranked.output.loss_P.tolist(),
            "reward_chosen": ranked.output.chosen_reward_P.tolist(),
            "reward_rejected": ranked.output.rejected_reward_P.tolist(),
        }

    def about(self) -> dict[str, Any]:
        """What summary.json holds besides."""
        return {
            "kind": "reward",
            "tasks": list(self.tasks.names),
            "task_weights": self.tasks.weights.name,
            "pooling": settings_of(causal_of(self.engine.model).config).pooling,
            "steps_with_a_second_forward_pass": self.num_ahead,
        }

    def _pass(
        self,
        trees: Sequence[TokenTree],
        counts: StepCounts,
        weighting: TaskWeighting | None,
        todo: Kept,
    ) -> tuple[RewardTotals, StepSums]:
        """Forward and backward of this process's micro-batches; sums only where nobody has them."""
        if weighting is None:
            weights_K = self.weigher.before(counts.pairs_K)
        else:
            weights_K = weighting.weights_K.cpu()
        totals, sums = RewardTotals(self.tasks.names), StepSums()
        while todo:
            share, rewards = todo.pop(0)
            batch = [trees[i] for i in share.batch]
            rewards = rewards or self._rewards(batch, with_auxiliary=True)
            ranked = self._rank(batch, rewards, counts)
            tasks_P = torch.tensor(ranked.owners(list(map(self.tasks.of, batch))))
            if share.counts:
                _add(totals, batch, ranked, tasks_P.tolist())
                if weighting is None and len(self.tasks.names) > 1:
                    sums.add(*self._head_sums(batch, rewards, ranked))
            weight_P = pair_weights(weights_K, counts.pairs_K, tasks_P).to(ranked.loss_P.device)
            loss = (weight_P * ranked.loss_P).sum()
            if rewards.auxiliary is not None:
                part = sum(map(pairs.num_pairs, batch)) / int(counts.pairs_K.sum())
                loss = loss + part * rewards.auxiliary
            (loss * (gradient_scale(self) * share.counts)).backward()
        return totals, sums

    def _weigh_ahead(
        self, trees: Sequence[TokenTree], counts: StepCounts, again: Callable[[], None]
    ) -> tuple[TaskWeighting, list[Kept]]:
        """The weights of the step, and what its forward passes gave where that can be kept."""
        by_layer = self.tasks.weights.gradients == "last_layer"

        def work(budget: int) -> tuple[StepSums, list[Kept]]:
            again()
            sums, kept, keeps = StepSums(), Kept(), self._is_single(trees, budget)
            for share in shared(self, trees, budget):
                batch = [trees[i] for i in share.batch]
                with torch.set_grad_enabled(keeps or by_layer):
                    rewards = self._rewards(batch, with_auxiliary=keeps)
                    ranked = self._rank(batch, rewards, counts)
                    if share.counts:
                        summed = self._layer_sums if by_layer else self._head_sums
                        sums.add(*summed(batch, rewards, ranked))
                kept.append((share, rewards))
                if not keeps:
                    kept.clear()
            return sums, [kept] if keeps else []

        sums, kept = halved(self, work, trees)
        self.num_ahead += not kept
        return self._weigh(sums, counts), kept

    def _weigh(self, sums: StepSums, counts: StepCounts) -> TaskWeighting:
        """From what this process summed; the same in every process."""
        device = next(self.engine.model.parameters()).device
        num_tasks = len(self.tasks.names)
        gradients_KD, losses_K = sums.gradients_KD, sums.losses_K
        width = max(self.processes.gather(0 if gradients_KD is None else gradients_KD.shape[1]))
        if gradients_KD is None or losses_K is None:
            gradients_KD = torch.zeros(num_tasks, width, dtype=torch.float64, device=device)
            losses_K = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        gradients_KD, losses_K = self.processes.sum(gradients_KD), self.processes.sum(losses_K)
        pairs_K = counts.pairs_K.to(device).clamp(min=1)
        return self.weigher.weigh(
            gradients_KD / pairs_K[:, None], losses_K / pairs_K, counts.pairs_K
        )

    def _head_sums(
        self, batch: Sequence[TokenTree], rewards: RewardOutput, ranked: Ranked
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the head and losses, summed per task over a micro-batch's pairs."""
        num_tasks = len(self.tasks.names)
        slope_R = ranking.slopes(self.objective, batch, rewards.scores_R)
        task_R = [self.tasks.of(tree) for tree in batch for _ in tree.response_ids]
        device = rewards.pooled_RH.device
        gradients_KH = head_gradients_of_scores(
            rewards.pooled_RH, slope_R, torch.tensor(task_R, device=device), num_tasks
        )
        losses_K = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        tasks_P = torch.tensor(ranked.owners(list(map(self.tasks.of, batch))), device=device)
        return gradients_KH, losses_K.index_add(0, tasks_P, ranked.loss_P.detach())

    def _layer_sums(
        self, batch: Sequence[TokenTree], rewards: RewardOutput, ranked: Ranked
    ) -> tuple[Tensor, Tensor]:
        """The same of the last layer's parameters and the head together."""
        tasks_P = torch.tensor(ranked.owners(list(map(self.tasks.of, batch))))
        tasks_P = tasks_P.to(ranked.loss_P.device)
        losses = [ranked.loss_P[tasks_P == task].sum() for task in range(len(self.tasks.names))]
        gradients_KD = last_layer.gradients(self.engine.model, losses)
        return gradients_KD, torch.stack(losses).detach()

    def _rewards(self, batch: Sequence[TokenTree], *, with_auxiliary: bool = False) -> RewardOutput:
        with_logps = "lm_nll_P" in self.objective.uses
        return self.engine.rewards(batch, with_logps=with_logps, with_auxiliary=with_auxiliary)

    def _rank(
        self, batch: Sequence[TokenTree], rewards: RewardOutput, counts: StepCounts
    ) -> Ranked:
        return ranking.rank(self.objective, batch, rewards.scores_R, rewards.logps, counts)

    def _is_single(self, trees: Sequence[TokenTree], budget: int) -> bool:
        """Whether no process has more than one micro-batch."""
        size = self.processes.size
        planned = plan_micro_batches(
            trees, range(len(trees)), budget, self.engine.padded, multiple=size
        )
        return len(planned) <= size

    def _todo(self, trees: Sequence[TokenTree], budget: int) -> Kept:
        return [(share, None) for share in shared(self, trees, budget)]


def _add(
    totals: RewardTotals, batch: Sequence[TokenTree], ranked: Ranked, task_P: Sequence[int]
) -> None:
    rows = [batch[place].row_id for place in ranked.index.tree_P]
    lengths = side_lengths(batch, ranked.index, ranked.loss_P.device)
    totals.add(task_P, ranked.output, rows, lengths)


def _random_numbers(device: torch.device) -> Callable[[], None]:
    """Its call has the numbers that are drawn from here on drawn once more."""
    on_cpu = torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def again() -> None:
        torch.set_rng_state(on_cpu)
        if on_cuda is not None:
            torch.cuda.set_rng_state(on_cuda, device)

    return again
