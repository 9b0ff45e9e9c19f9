"""Running out of memory: half the token budget, and the same work again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from penchant.engine.processes import Processes
from penchant.errors import OutOfMemoryError

T = TypeVar("T")


def halving(
    work: Callable[[int], T],
    token_budget: int,
    processes: Processes,
    *,
    smallest: int,
    undo: Callable[[], None] = lambda: None,
) -> tuple[T, int]:
    """What `work(token_budget)` gives, with half the budget as often as memory runs out.

    Args:
        work: communicates with no other process, so that all can repeat it together.
        smallest: a budget below this cannot lower memory any more: every tree runs alone.
        undo: called before `work` is repeated.
    Returns:
        The result, and the budget that sufficed.
    Raises:
        OutOfMemoryError: it ran out with every tree alone, or the model is sharded.
    """
    while True:
        result, failed = None, False
        try:
            result = work(token_budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
            if processes.sharded:
                # The others wait inside a collective call; only ending the run frees them.
                raise OutOfMemoryError(_advice(token_budget)) from error
        if not processes.any(failed):
            return result, token_budget  # type: ignore[return-value]
        undo()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if token_budget <= smallest:
            raise OutOfMemoryError(
                "out of memory with one row at a time; lower data.max_length, "
                "set model.gradient_checkpointing=true, or train an adapter (model.adapter)"
            )
        token_budget = max(smallest, token_budget // 2)
        if processes.is_main:
            print(
                f"out of memory: going on with training.token_budget={token_budget}, same update",
                file=sys.stderr,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def _advice(token_budget: int) -> str:
    return (
        f"out of memory at training.token_budget={token_budget}; with sharded weights it cannot be "
        f"lowered while running: resume with training.token_budget={token_budget // 2}"
    )
