"""The planner: steps and micro-batches lose nothing, split no tree and keep to their sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.data import plan_micro_batches, plan_steps
from penchant.types import TokenTree

SIZES = st.lists(st.integers(0, 7), max_size=60)


def tree(prompt: int, *responses: int) -> TokenTree:
    return TokenTree(
        row_id="t:1",
        prompt_ids=(1,) * prompt,
        response_ids=tuple((2,) * n for n in responses),
        response_masks=tuple((True,) * n for n in responses),
    )


@given(SIZES, st.integers(1, 12), st.integers(0, 9), st.integers(0, 3))
def test_steps_hold_every_tree_once_and_never_too_many_pairs(sizes, batch_size, seed, epoch):
    steps = plan_steps(sizes, batch_size, seed, epoch)
    assert sorted(index for step in steps for index in step) == list(range(len(sizes)))
    assert steps == plan_steps(sizes, batch_size, seed, epoch)
    for step in steps:
        assert step
        assert len(step) == 1 or sum(max(1, sizes[index]) for index in step) <= batch_size


@given(st.integers(1, 80), st.integers(1, 12))
def test_with_a_pair_per_tree_every_step_but_the_last_is_full(num_trees, batch_size):
    steps = plan_steps([1] * num_trees, batch_size, 0, 0)
    assert [len(step) for step in steps[:-1]] == [batch_size] * (len(steps) - 1)
    assert len(steps) == -(-num_trees // batch_size)


def test_a_tree_that_does_not_fit_waits_for_the_next_step():
    for seed in range(9):
        steps = plan_steps([3, 3, 1, 1], 4, seed, 0)
        sizes = [sorted([3, 3, 1, 1][index] for index in step) for step in steps]
        assert sizes == [[1, 3], [1, 3]] or [1, 1] in sizes


def test_the_order_follows_seed_and_epoch_and_nothing_else():
    orders = {str(plan_steps([1] * 20, 4, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match="batch_size is 0"):
        plan_steps([1], 0, 0, 0)
    with pytest.raises(ValueError, match="token_budget is 0"):
        plan_micro_batches([tree(1, 1)], [0], 0)


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=1, max_size=4)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 400),
    st.booleans(),
    st.data(),
)
def test_micro_batches_keep_to_the_budget(shapes, budget, padded, drawn):
    trees = [tree(prompt, *responses) for prompt, responses in shapes]
    indices = drawn.draw(st.lists(st.integers(0, len(trees) - 1), unique=True))
    groups = plan_micro_batches(trees, indices, budget, padded)
    assert sorted(index for group in groups for index in group) == sorted(indices)
    assert groups == plan_micro_batches(trees, list(reversed(indices)), budget, padded)
    for group in groups:
        longest = [len(trees[i].prompt_ids) + max(map(len, trees[i].response_ids)) for i in group]
        rows = sum(len(trees[i].response_ids) for i in group)
        cost = rows * max(longest) if padded else sum(trees[i].num_tokens for i in group)
        assert group and (cost <= budget or len(group) == 1)


def test_similar_lengths_run_together():
    trees = [tree(5, 5), tree(50, 50), tree(5, 6), tree(49, 50)]
    assert plan_micro_batches(trees, range(4), 200) == [[1, 3], [2, 0]]
    assert plan_micro_batches(trees, range(4), 10_000) == [[1, 3, 2, 0]]
