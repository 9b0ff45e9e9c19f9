"""Arithmetic on a tile of logits on a CUDA device, in Triton: each logit is read once or twice.

Written out in torch, a tile in half precision is copied to float32 and passed over several times,
which takes about as long as the product that made it. See engine/tile_maths.py for the formulas.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

_BLOCK = 4096
"""Logits of a row that a program takes at a time."""
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def is_available(logits: Tensor) -> bool:
    """Whether the kernels take such logits and can be built here."""
    return logits.device.type == "cuda" and logits.dtype in _DTYPES and _can_build(logits.device)


def log_sum_exp(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the targets and log-sum-exp, float32; the logits stay."""
    values = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    lse = torch.empty_like(values)
    if len(targets):
        _written().sum_rows[(len(targets),)](
            logits, targets, values, lse, logits.shape[1], logits.stride(0), BLOCK=_BLOCK
        )
    return values, lse


def exponentiate_(logits: Tensor, lse: Tensor) -> None:
    """Logits become probabilities, in place."""
    if len(lse):
        _written().to_probabilities[(len(lse),)](
            logits, lse, logits.shape[1], logits.stride(0), BLOCK=_BLOCK
        )


def _written() -> Any:
    """The kernels' file; Triton is there on CUDA machines only."""
    return importlib.import_module("penchant.engine.tile_triton")


@functools.cache
def _can_build(device: torch.device) -> bool:
    """Tries the kernels once: a compiler may be missing."""
    if importlib.util.find_spec("triton") is None:
        return False
    logits = torch.tensor([[0.0, 1.0, 2.0]], device=device)
    try:
        found = log_sum_exp(logits, torch.tensor([1], device=device))[1]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"Triton builds no kernels here, torch's own are used: {reason}", stacklevel=2
        )
        return False
    return bool(torch.isclose(found, logits.logsumexp(1)).all())
