"""The processes of a run: who does which micro-batch, and how their sums come together.

Every process plans the whole step from the same trees, so nothing has to be agreed on before it.
Replicated models sum their gradients once per step; sharded ones (FSDP2) do so in every backward
pass, which is why they must all run equally many micro-batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from penchant.data.pack import TreeSizes, group_costs, plan_micro_batches
from penchant.errors import PenchantError, WorkerError
from penchant.types import TokenTree

_JOINING = timedelta(minutes=10)
"""How long processes look for each other; those of a launcher that was killed never meet."""
WAITING = timedelta(days=365)
"""How long they then wait for each other: the slowest share decides."""
_Result = TypeVar("_Result")
_BUCKET = 2**24
"""Gradient values summed in one call."""


class Share(NamedTuple):
    """A micro-batch of this process."""

    batch: list[int]
    """Indices of trees."""
    place: int
    """Its place among all micro-batches of the step."""
    counts: bool = True
    """False for one that only keeps a sharded model's processes in step."""


@final
@dataclass(frozen=True)
class Processes:
    """One process among `size`; build it with `current`, or without arguments for a lone one."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Whether the model's weights are split over the processes (FSDP2)."""

    @classmethod
    def current(cls, *, sharded: bool = False) -> Processes:
        """As torch.distributed says; a lone process where it was not started."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), sharded)

    @property
    def is_main(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of one shape."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agreed(self, work: Callable[[], _Result]) -> _Result:
        """This process's result of some work; an error of ours that one has is raised by all."""
        found: _Result | None = None
        error: PenchantError | None = None
        try:
            found = work()
        except PenchantError as raised:
            error = raised
        first = next((one for one in self.gather(error) if one is not None), None)
        if first is not None:
            raise first
        return found  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it is true of one of them."""
        return flag if self.size == 1 else any(self.gather(flag))

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients of a replicated model; a sharded one has done so itself."""
        if self.size == 1 or self.sharded:
            return
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # no micro-batch of the step came to this process
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat)
            for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def share(
        self,
        trees: Sequence[TokenTree] | TreeSizes,
        indices: Sequence[int],
        token_budget: int,
        padded: bool = True,
        *,
        fixed: bool = False,
    ) -> list[Share]:
        """This process's micro-batches of a step; the same plan everywhere.

        All get equally many where there are trees enough, and of about equal cost; the arguments
        are those of `plan_micro_batches`.
        """
        sizes = trees if isinstance(trees, TreeSizes) else TreeSizes.of(trees)
        batches = plan_micro_batches(
            sizes, indices, token_budget, padded, multiple=self.size, fixed=fixed
        )
        costs = group_costs(sizes, batches, padded, fixed)
        # Processes of a sharded model must run equally many; a repeated one is lost time.
        most = -(-len(batches) // self.size) if self.sharded else None
        shares = balance(costs, self.size, most)
        own = [Share(batches[i], i) for i in shares[self.rank]]
        if self.sharded:
            cheapest = min(range(len(batches)), key=costs.__getitem__)
            lacking = max(map(len, shares)) - len(own)
            own += [Share(batches[cheapest], cheapest, counts=False)] * lacking
        return own


ALONE = Processes()


def join(joining: timedelta = _JOINING) -> Processes:
    """The processes of a launch (torchrun, accelerate), for CPU tensors; a lone one without.

    Raises WorkerError where they do not find each other in that time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if not dist.is_initialized():
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=joining))
            store.set(f"penchant/{rank}", "here")
            store.wait([f"penchant/{other}" for other in range(size)], joining)
        except (RuntimeError, ValueError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise WorkerError(
                f"WORLD_SIZE={size}, but the {size} processes did not find each other within "
                f"{joining.total_seconds():.0f} s ({said[:200]}); start them all with torchrun, or "
                "unset WORLD_SIZE"
            ) from None
        # Only those that have just met wait without an end.
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=WAITING)
    return Processes.current()


def balance(costs: Sequence[int], size: int, most: int | None = None) -> list[list[int]]:
    """Indices of `costs` for each of `size` processes: the dearest first, to who has least.

    Args:
        most: indices that one process may get at most; size * most must hold them all.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        open_to = (rank for rank in range(size) if most is None or len(shares[rank]) < most)
        least = min(open_to, key=lambda rank: (loads[rank], rank))
        shares[least].append(index)
        loads[least] += costs[index]
    return shares


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of one dtype each, and of about the bucket's size."""
    buckets: list[list[Tensor]] = []
    filled = _BUCKET
    for gradient in sorted(gradients, key=lambda grad: str(grad.dtype)):
        if filled >= _BUCKET or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(gradient)
        filled += gradient.numel()
    return buckets
