"""The planner: which trees make a step, and which of them run together.

Both plans are pure functions of their arguments, so that a resumed run meets the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penchant.types import TokenTree

_LOOK_AHEAD = 64
"""Trees a step may look past for one that fills it exactly."""


def plan_steps(
    num_pairs_per_tree: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The steps of one epoch: indices of trees, each tree once.

    A step holds `batch_size` pairs where whole trees can make that up, fewer where not; a tree
    with more pairs than that is a step of its own. The last step is short and is kept.

    Args:
        num_pairs_per_tree: pairs of each tree; a tree without pairs counts as one (SFT).
        batch_size: pairs per step, at least 1.
        seed, epoch: decide the order, and nothing else does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
    sizes = [max(1, size) for size in num_pairs_per_tree]
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(sizes)).tolist()
    waiting: list[int] = []
    steps: list[list[int]] = []
    position = 0
    while waiting or position < len(order):
        # What an earlier step passed over comes first, so that nothing waits for ever.
        lacking = _LOOK_AHEAD + batch_size - len(waiting)
        waiting += order[position : position + lacking]
        position += lacking
        step = _fill(waiting, sizes, batch_size)
        taken = set(step)
        waiting = [index for index in waiting if index not in taken]
        steps.append(step)
    return steps


def _fill(waiting: Sequence[int], sizes: Sequence[int], batch_size: int) -> list[int]:
    """The first waiting tree, and those after it that still fit."""
    step, room = [waiting[0]], batch_size - sizes[waiting[0]]
    for index in waiting[1:]:
        if room <= 0:
            break
        if sizes[index] <= room:
            step.append(index)
            room -= sizes[index]
    return step


def plan_micro_batches(
    trees: Sequence[TokenTree], indices: Sequence[int], token_budget: int, padded: bool = True
) -> list[list[int]]:
    """Splits the trees of a step into groups that run together, longest first.

    Args:
        trees: all trees.
        indices: those to split; each is in exactly one group.
        token_budget: tokens that a group may cost; a tree that costs more runs alone.
        padded: True counts the plain layout, rows x longest row, where each response is a row of
            prompt + response; False counts the packed layout, every token once.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; at least 1 is needed")
    longest = {index: _longest_row(trees[index]) for index in indices}
    groups: list[list[int]] = []
    rows = width = tokens = 0
    for index in sorted(indices, key=lambda index: (-longest[index], index)):
        tree = trees[index]
        rows += max(1, len(tree.response_ids))
        width = max(width, longest[index])
        tokens += tree.num_tokens
        if not groups or (rows * width if padded else tokens) > token_budget:
            groups.append([])
            rows, width = max(1, len(tree.response_ids)), longest[index]
            tokens = tree.num_tokens
        groups[-1].append(index)
    return groups


def _longest_row(tree: TokenTree) -> int:
    return len(tree.prompt_ids) + max(map(len, tree.response_ids), default=0)
