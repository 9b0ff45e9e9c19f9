"""A step is the mean over its pairs, whatever the micro-batches; against arithmetic by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from penchant import engine, objectives, weights
from penchant.engine.reference_store import ReferenceStore
from penchant.train.step import Step
from penchant.types import ObjectiveOutput, PairLogps, TokenTree
from tests.tiny import naive_logps, random_trees, tiny_model


def build(objective: Any, *, budget: int = 10_000, seed: int = 0) -> tuple[Step, Any]:
    """A step over a float64 policy, with another model as its reference."""
    policy, other = tiny_model(seed=seed).double(), tiny_model(seed=9).double()
    store = ReferenceStore()
    store.fill(engine.prepare(other), marked(random_trees(7, num_responses=2)), 10_000)
    return Step(engine.prepare(policy), objective, store, budget), policy


def marked(trees: list[TokenTree]) -> list[TokenTree]:
    return [
        replace(tree, marks=tuple(weights.mark(*tree.response_ids) for _ in tree.pairs_P2))
        for tree in trees
    ]


OBJECTIVES = {
    "dpo": {"beta": 0.3},
    "mmpo": {"beta": 0.3, "bt_beta": 0.7},
    "dpo-gamma": {"beta": 0.3},
    "slic-dpo": {"beta": 0.3},
    "sft": {},
    "dpo-bmc": {"beta": 0.3, "delta": 2.0},
    "dpo-gamma+sft": {"beta": 0.3, "sft_weight": 0.5},
    "dpo+sft": {"beta": 0.3, "sft_weight": 0.5, "sft_normalisation": "sequence"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_any_micro_batches_give_the_same_update(name: str, budget: int) -> None:
    objective = objectives.load(name.split("+")[0], **OBJECTIVES[name])
    trees = marked(random_trees(7))
    whole, one = build(objective)
    split, two = build(objective, budget=budget)
    expected, got = whole.train(trees).means(), split.train(trees).means()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-12), key
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_micro_batches", [1, 8])
def test_rows_of_5_to_250_tokens_in_any_order(num_micro_batches: int) -> None:
    """An odd batch in float32: parameters after an update to 1e-5 relative."""
    trees = [
        replace(tree, row_id=f"long:{place}")
        for place in range(9)
        for tree in random_trees(1, seed=place, longest=2 + 14 * place)
    ]
    shuffled = [trees[i] for i in torch.randperm(9, generator=torch.manual_seed(0))]
    reference = engine.prepare(tiny_model(seed=9))
    updated = []
    for order, budget in ((trees, 10**6), (shuffled, 10**6 if num_micro_batches == 1 else 1)):
        store = ReferenceStore()
        store.fill(reference, order, 10**6)
        model = tiny_model(seed=0)
        step = Step(engine.prepare(model), objectives.load("dpo", beta=0.3), store, budget)
        if budget < 10**6:
            assert len(step.processes.share(order, range(9), budget)) >= 8
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step.train(order)
        optimizer.step()
        updated.append([parameter.detach() for parameter in model.parameters()])
    for a, b in zip(*updated, strict=True):
        assert torch.linalg.vector_norm(a - b) <= 1e-5 * torch.linalg.vector_norm(a)


def test_dpo_step_by_hand() -> None:
    step, policy = build(objectives.load("dpo", beta=0.3))
    reference = tiny_model(seed=9).double()
    trees = random_trees(7)
    means = step.train(trees).means()
    losses, accuracies, chosen_logps = [], [], []
    for tree in trees:
        with torch.no_grad():
            c, r = (naive_logps(policy, tree, i).sum() for i in (0, 1))
            rc, rr = (naive_logps(reference, tree, i).sum() for i in (0, 1))
        margin = 0.3 * ((c - rc) - (r - rr))
        losses.append(-F.logsigmoid(margin).item())
        accuracies.append(float(margin > 0))
        chosen_logps.append(c.item())
    assert means["loss"] == pytest.approx(sum(losses) / 7, rel=1e-9)
    assert means["rewards/accuracies"] == pytest.approx(sum(accuracies) / 7)
    assert means["logps/chosen"] == pytest.approx(sum(chosen_logps) / 7, rel=1e-9)


def test_logged_logps_are_unweighted_but_rewards_are_not() -> None:
    trees = marked(random_trees(7))
    plain = build(objectives.load("dpo", beta=0.3))[0].evaluate(trees).means()
    loaded = objectives.load("dpo-bmc", beta=0.3, delta=2.0)
    weighted = build(loaded)[0].evaluate(trees).means()
    assert weighted["logps/chosen"] == pytest.approx(plain["logps/chosen"], rel=1e-12)
    assert weighted["rewards/chosen"] != pytest.approx(plain["rewards/chosen"], rel=1e-3)


def test_at_the_reference_dpo_is_log_two() -> None:
    trees = random_trees(7)
    policy = tiny_model(seed=9)
    store = ReferenceStore()
    store.fill(engine.prepare(policy), trees, 50)
    objective = objectives.load("dpo", beta=0.1)
    means = Step(engine.prepare(policy), objective, store, 300).train(trees).means()
    assert means["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(means["rewards/margins"]) < 1e-5


def test_sft_normalises_by_the_tokens_of_the_whole_step() -> None:
    step, policy = build(objectives.load("sft"), budget=1)
    trees = random_trees(7)
    means = step.train(trees).means()
    with torch.no_grad():
        chosen = [naive_logps(policy, tree, 0) for tree in trees]
    total, count = sum(-c.sum().item() for c in chosen), sum(map(len, chosen))
    assert means["loss"] == pytest.approx(total / count, rel=1e-9)


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """A loss that needs the whole step: each margin against the step's mean margin."""

    name: ClassVar = "coupled"
    needs: ClassVar = frozenset({"reference"})
    uses: ClassVar = frozenset()
    input: ClassVar = "pairs"
    scope: ClassVar = "step"

    def __call__(self, policy: PairLogps, reference: PairLogps) -> ObjectiveOutput:
        margin_P = (policy.chosen_P - policy.rejected_P) - (
            reference.chosen_P - reference.rejected_P
        )
        loss_P = (margin_P - margin_P.mean() - 1).square()
        return ObjectiveOutput(loss_P, margin_P.detach(), -margin_P.detach())


def test_objectives_of_scope_step_see_the_whole_step() -> None:
    trees = random_trees(7)
    whole, one = build(Coupled())
    split, two = build(Coupled(), budget=1)
    assert split.train(trees).means()["loss"] == pytest.approx(whole.train(trees).means()["loss"])
    direct, three = build(Coupled())
    logps = direct.engine.logps(trees)
    from penchant.train.pairs import pair_logps

    assert direct.reference is not None
    reference = direct.reference.logps(trees, torch.device("cpu"))
    output = Coupled()(pair_logps(trees, logps), pair_logps(trees, reference))
    output.loss_P.mean().backward()
    for a, b, c in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(a.grad, c.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(b.grad, c.grad, rtol=1e-9, atol=1e-12)


def test_rows_of_a_non_finite_loss_are_named() -> None:
    step, policy = build(objectives.load("dpo", beta=0.3))
    with torch.no_grad():
        policy.get_input_embeddings().weight[random_trees(7)[2].response_ids[0][0]] = float("nan")
    totals = step.train(random_trees(7))
    assert "random:3" in totals.non_finite_rows


def test_the_reference_is_computed_once_per_content() -> None:
    trees = random_trees(7)
    store = ReferenceStore()
    prepared = engine.prepare(tiny_model())
    store.fill(prepared, trees, 40)
    store.fill(prepared, [*trees, replace(trees[0], row_id="again:1")], 40)
    assert (store.rows_computed, store.rows_reused, len(store)) == (7, 8, 7)
    values = store.logps([trees[3]], torch.device("cpu")).values_T
    torch.testing.assert_close(values, prepared.logps([trees[3]]).values_T, rtol=1e-5, atol=1e-6)
