"""The engine: log-probabilities and scores of token trees, however a batch is laid out.

Past this room nobody knows about rows, padding or packing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from penchant.engine import plain
from penchant.errors import ModelError
from penchant.types import TokenLogps, TokenTree

Layout = Literal["auto", "packed", "plain"]


@dataclass(frozen=True)
class Engine:
    """A model made ready; build it with `prepare`."""

    model: Any
    layout: Literal["packed", "plain"]
    reason: str
    """Why this layout."""
    autocast_dtype: torch.dtype | None = None

    def logps(self, trees: Sequence[TokenTree]) -> TokenLogps:
        """Log-probability of each scored response token of the trees; differentiable."""
        with self._precision():
            return plain.token_logps(self.model, trees)

    def scores(self, trees: Sequence[TokenTree]) -> Tensor:
        """A reward model's score of each response, [responses]; differentiable."""
        with self._precision():
            return plain.response_scores(self.model, trees)

    def backward(self, trees: Sequence[TokenTree], loss: Callable[[TokenLogps], Tensor]) -> Tensor:
        """Forward, a scalar loss from the log-probabilities, backward; returns it detached.

        Gradients add to the parameters' `.grad`, the same as `loss(logps(trees)).backward()`.
        """
        value = loss(self.logps(trees))
        value.backward()
        return value.detach()

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=self.autocast_dtype)


def prepare(model: Any, layout: Layout = "auto", *, dtype: torch.dtype | None = None) -> Engine:
    """An engine for a causal language model or a reward model; may be called again on the same.

    Args:
        layout: "plain" pads every response into a row of its own; "auto" is the fastest exact one.
        dtype: compute in this dtype by autocast (float32 weights stay the masters); default as
            the weights are.
    Raises:
        ModelError: the model cannot be laid out as asked.
    """
    if layout not in ("auto", "plain"):
        raise ModelError(
            f"layout={layout!r} is not available for {type(model).__name__}; use 'auto' or 'plain'"
        )
    asked = "asked for" if layout == "plain" else "the only layout of this version"
    autocast = dtype if dtype in (torch.bfloat16, torch.float16) else None
    return Engine(model=model, layout="plain", reason=asked, autocast_dtype=autocast)


__all__ = ["Engine", "Layout", "prepare"]
