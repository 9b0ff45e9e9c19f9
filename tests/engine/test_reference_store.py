"""What the reference is and when a stored value may serve: traps 15 to 17 of other trainers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant import engine, objectives
from penchant.engine.reference_store import ReferenceStore, content_key
from penchant.train.pairs import pair_logps
from penchant.train.step import Step
from penchant.types import TokenTree
from tests.tiny import naive_logps, random_trees, tiny_model

TREE = TokenTree(
    row_id="a:1",
    prompt_ids=(1, 2, 3),
    response_ids=((4, 5, 6), (7, 8)),
    response_masks=((True, True, True), (True, True)),
    pairs_P2=((0, 1),),
)
OTHERS = {
    "a prompt token": replace(TREE, prompt_ids=(1, 2, 9)),
    "a shorter prompt": replace(TREE, prompt_ids=(2, 3)),
    "a response token": replace(TREE, response_ids=((4, 5, 9), (7, 8))),
    "a shorter response": replace(
        TREE, response_ids=((4, 5), (7, 8)), response_masks=((True, True), (True, True))
    ),
    "a mask": replace(TREE, response_masks=((True, False, True), (True, True))),
    "the order": replace(
        TREE, response_ids=((7, 8), (4, 5, 6)), response_masks=((True, True), (True, True, True))
    ),
    "the border": replace(
        TREE,
        prompt_ids=(1, 2),
        response_ids=((3, 4, 5, 6), (7, 8)),
        response_masks=((True,) * 4, (True, True)),
    ),
}


def expected(model: torch.nn.Module, tree: TokenTree) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([naive_logps(model, tree, i) for i in range(len(tree.response_ids))])


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_changes_a_value_is_another_entry(name: str) -> None:
    """Trap 16: other lengths, tokens or masks must never get values that were stored before."""
    model = tiny_model().double()
    prepared, store, other = engine.prepare(model), ReferenceStore(), OTHERS[name]
    store.fill(prepared, [TREE], 1000)
    with pytest.raises(KeyError):
        store.logps([other], torch.device("cpu"))
    store.fill(prepared, [other], 1000)
    assert (store.rows_computed, len(store)) == (2, 2)
    for tree in (TREE, other):
        found = store.logps([tree], torch.device("cpu"))
        torch.testing.assert_close(found.values_T, expected(model, tree))
        assert found.lengths_R.tolist() == [sum(mask) for mask in tree.response_masks]


@pytest.mark.parametrize(
    "same",
    [
        replace(TREE, row_id="b:7"),
        replace(TREE, pairs_P2=((1, 0),)),
        replace(TREE, scores_R=(1.0, 2.0), soft_labels_P=(0.7,)),
    ],
    ids=["row id", "pairs", "scores"],
)
def test_what_changes_no_value_is_not_computed_again(same: TokenTree) -> None:
    """Trap 15: a key over everything would recompute for each new setting."""
    store = ReferenceStore()
    prepared = engine.prepare(tiny_model())
    store.fill(prepared, [TREE, same], 1000)
    store.fill(prepared, [same], 1000)
    assert (store.rows_computed, store.rows_reused) == (1, 2)
    assert content_key(same) == content_key(TREE)


def test_each_reference_model_has_its_own_values() -> None:
    """A store belongs to one model; two models give two sets of values for one tree."""
    stores = []
    for seed in (0, 1):
        model = tiny_model(seed=seed).double()
        stores.append(ReferenceStore())
        stores[-1].fill(engine.prepare(model), [TREE], 1000)
        found = stores[-1].logps([TREE], torch.device("cpu")).values_T
        torch.testing.assert_close(found, expected(model, TREE))
    one, two = (store.logps([TREE], torch.device("cpu")).values_T for store in stores)
    assert (one - two).abs().max() > 1e-3


def test_values_are_without_dropout_and_leave_the_mode_as_it_was() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).double().train()
    store = ReferenceStore()
    store.fill(engine.prepare(model), [TREE], 1000)
    assert model.training
    torch.testing.assert_close(
        store.logps([TREE], torch.device("cpu")).values_T, expected(model.eval(), TREE)
    )


@pytest.mark.parametrize("is_modified", [False, True])
def test_the_starting_model_is_the_reference_modified_or_not(is_modified: bool) -> None:
    """Trap 17: a policy that was changed in memory starts at log 2, not at what lies on disk."""
    model = tiny_model()
    if is_modified:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    trees = random_trees(6)
    prepared, store = engine.prepare(model), ReferenceStore()
    store.fill(prepared, trees, 1000)
    step = Step(prepared, objectives.load("dpo", beta=0.5), store, 1000)
    assert step.evaluate(trees).means()["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_the_reference_stays_while_the_policy_moves() -> None:
    model = tiny_model()
    trees = random_trees(6)
    prepared, store = engine.prepare(model), ReferenceStore()
    store.fill(prepared, trees, 1000)
    before = store.logps(trees, torch.device("cpu")).values_T.clone()
    step = Step(prepared, objectives.load("dpo", beta=0.5), store, 1000)
    step.train(trees)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.05 * (parameter.grad if parameter.grad is not None else 0))
    store.fill(prepared, trees, 1000)
    assert torch.equal(store.logps(trees, torch.device("cpu")).values_T, before)
    assert store.rows_computed == 6
    moved = pair_logps(trees, prepared.logps(trees)).margin_P
    assert (moved - pair_logps(trees, store.logps(trees, torch.device("cpu"))).margin_P).sum() > 0
