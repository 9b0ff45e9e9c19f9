"""The micro-batches of a step: shared out to processes, halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from penchant.engine import Engine
from penchant.engine.memory import halving
from penchant.engine.processes import Processes, Share
from penchant.types import TokenTree

T = TypeVar("T")


class Splits(Protocol):
    """A step: an engine, the processes that share its trees, and the room of a micro-batch."""

    engine: Engine
    processes: Processes
    token_budget: int


def gradient_scale(step: Splits) -> int:
    """What a loss is multiplied by: FSDP averages gradients over its processes; ours are sums."""
    return step.processes.size if step.processes.sharded else 1


def shared(step: Splits, trees: Sequence[TokenTree], budget: int) -> list[Share]:
    """The micro-batches of this process under a token budget."""
    return step.processes.share(trees, range(len(trees)), budget, step.engine.padded)


def halved(step: Splits, work: Callable[[int], T], trees: Sequence[TokenTree]) -> T:
    """What `work` returns under the step's budget; lowers that where memory runs out."""
    result, step.token_budget = halving(
        work,
        step.token_budget,
        step.processes,
        smallest=min(tree.num_tokens for tree in trees),
        undo=lambda: step.engine.model.zero_grad(set_to_none=True),
    )
    return result
