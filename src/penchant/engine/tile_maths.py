"""Arithmetic on a tile of logits, in place and by chunks that stay in a processor's cache.

C  rows of a tile;  V  vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.engine import tile_kernels

_CHUNK = 2**20
"""Logits that are normalised at a time."""


@dataclass(frozen=True)
class Shape:
    """What a model does to the product of hidden states and head weight."""

    scale: float = 1.0
    softcap: float | None = None


def shape_(logits: Tensor, shape: Shape) -> Tensor | None:
    """Scales and caps in place; the derivative of the cap, where there is one."""
    if shape.scale != 1.0:
        logits.mul_(shape.scale)
    if shape.softcap is None:
        return None
    logits.div_(shape.softcap).tanh_()
    slope = 1 - logits * logits
    logits.mul_(shape.softcap)
    return slope


def softmax_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the targets and log-sum-exp; the logits become probabilities."""
    if tile_kernels.is_available(logits):
        values, lse = tile_kernels.log_sum_exp(logits, targets)
        tile_kernels.exponentiate_(logits, lse)
        return values, lse
    wide = torch.promote_types(logits.dtype, torch.float32)
    chosen = logits.gather(1, targets[:, None])[:, 0].to(wide)
    lse = chosen.new_empty(len(targets))
    for chunk in chunks(logits):
        rows = logits[chunk].to(wide)
        highest = rows.amax(1)
        torch.softmax(rows, 1, out=rows)
        # The largest probability is exp(highest - lse) and never underflows.
        lse[chunk] = highest - rows.amax(1).log_()
        if rows.dtype != logits.dtype:
            logits[chunk] = rows
    return chosen - lse, lse


def log_sum_exp(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same without probabilities: the logits stay."""
    if tile_kernels.is_available(logits):
        return tile_kernels.log_sum_exp(logits, targets)
    wide = torch.promote_types(logits.dtype, torch.float32)
    chosen = logits.gather(1, targets[:, None])[:, 0].to(wide)
    lse = torch.cat([torch.logsumexp(logits[chunk].to(wide), 1) for chunk in chunks(logits)])
    return chosen - lse, lse


def exponentiate_(logits: Tensor, lse: Tensor) -> None:
    """Logits become probabilities, in place, by the log-sum-exps of their rows."""
    if tile_kernels.is_available(logits):
        tile_kernels.exponentiate_(logits, lse)
        return
    for chunk in chunks(logits):
        wide = logits[chunk].to(lse.dtype)
        logits[chunk] = wide.sub_(lse[chunk, None]).exp_()


def to_slope_(probabilities: Tensor, targets: Tensor, slope: Tensor | None) -> None:
    """Probabilities become -d value / d logit before the cap, in place."""
    probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1
    if slope is not None:
        probabilities.mul_(slope)


def chunks(logits: Tensor) -> Iterator[slice]:
    """Rows that stay in a processor's cache; all of them on an accelerator."""
    rows = max(1, _CHUNK // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)
