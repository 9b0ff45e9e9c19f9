"""Where to compute, and how much of it at a time."""

from __future__ import annotations

import torch

from penchant.errors import RecipeError

CPU_LOGIT_BYTES = 2 * 2**30
"""On a CPU a micro-batch's logits and their gradients may take about so much."""
MOST_TOKENS = 16_384


def pick_device(asked: str) -> str:
    """ "cpu", "cuda" or "hpu"; "auto" takes the accelerator that is there.

    Raises RecipeError where the one asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "hpu": _has_hpu()}
    if asked == "auto":
        return next((name for name in ("hpu", "cuda") if there[name]), "cpu")
    if not there[asked]:
        found = ", ".join(name for name, here in there.items() if here)
        raise RecipeError(f"training.device={asked}: no such device here; there is {found}")
    return asked


def auto_token_budget(vocab_size: int, device: torch.device) -> int:
    """Tokens of a micro-batch whose logits (float32, their softmax and gradient) fit.

    On an accelerator a quarter of the free memory may go to them.
    """
    free = CPU_LOGIT_BYTES
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] // 4
    return max(256, min(MOST_TOKENS, free // (3 * 4 * vocab_size)))


def _has_hpu() -> bool:
    from accelerate.utils import is_hpu_available

    return bool(is_hpu_available())
