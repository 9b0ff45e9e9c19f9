"""Memory that is kept between micro-batches, and gradients added where they belong.

On a CPU, fresh pages of a large tensor cost about as much as the arithmetic on it: logits of a
tile, a half-precision copy of the head, the gradient of a vocabulary are therefore held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

_CHUNK = 2**19


@final
class Workspace:
    """Buffers by name; the contents are whoever's asked last."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._cast_of: tuple[int, int] | None = None
        self._depth = 0
        self._is_lent = False

    @contextmanager
    def borrowed(self) -> Iterator[Workspace]:
        """This one, or another one where somebody up the stack still reads from it."""
        if self._is_lent:
            yield Workspace()
            return
        self._is_lent = True
        try:
            yield self
        finally:
            self._is_lent = False

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within it a weight is cast once, unless it changes in a way that torch counts."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._cast_of = None

    def matrix(self, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """An uninitialised [rows, columns]; the one asked for before under this name is lost."""
        if like.device.type != "cpu":  # an accelerator's allocator keeps its own
            return like.new_empty(rows, columns)
        size, key = rows * columns, (name, like.dtype)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers.pop(key, None)
            with torch.inference_mode(False):
                self._buffers[key] = torch.empty(size, dtype=like.dtype)
        return self._buffers[key][:size].view(rows, columns)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight in another dtype, [V, H]."""
        if weight.dtype == dtype:
            return weight.detach()
        if weight.device.type != "cpu":
            return weight.detach().to(dtype)
        like = torch.empty(0, dtype=dtype)
        copy = self.matrix("cast", weight.shape[0], weight.shape[1], like)
        state = (weight.data_ptr(), weight._version)
        if self._cast_of != state:
            copy.copy_(weight.detach())
            self._cast_of = state
        return copy

    def clear(self) -> None:
        """Gives the memory back; the next use takes it anew."""
        self._buffers.clear()
        self._cast_of = None

    def __deepcopy__(self, memo: Any) -> Workspace:
        return Workspace()


def add_to(total: Tensor, part: Tensor) -> None:
    """Adds a matrix of another dtype; by rows that stay in the cache, ten times faster on a CPU."""
    rows = max(1, _CHUNK // total.shape[1]) if total.device.type == "cpu" else len(total)
    for start in range(0, len(total), rows):
        total[start : start + rows].add_(part[start : start + rows].to(total.dtype))


def may_add(weight: Tensor) -> bool:
    """Whether a gradient may be added to `.grad` without autograd: nobody else waits for it."""
    return (
        weight.requires_grad
        and weight.is_leaf
        and type(weight) in (nn.Parameter, Tensor)
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
    )
