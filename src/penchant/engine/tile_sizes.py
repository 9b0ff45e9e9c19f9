"""How many rows of logits run at a time, and how much memory those that are kept may take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_ROWS = 1024
"""Of a tile: more gain nothing in speed."""
FULL_GROUP = 512
"""Scored tokens that are enough for one group of a loss: more gain nothing in speed."""
_CUDA_ROWS, _CUDA_GROUP = 8192, 4096
"""There each tile costs a pass over the gradient of the head's weight."""
_TILE_BYTES = 512 * 2**20


def tile_bytes(device: torch.device) -> int:
    """Memory that the kept logits of a group may take.

    A part of a device's whole memory, not of what is free: a batch is cut the same way every time.
    """
    if device.type != "cuda":
        return _TILE_BYTES
    whole = torch.cuda.get_device_properties(device).total_memory
    return max(_TILE_BYTES, min(4 * _TILE_BYTES, whole // 64))


def full_group(device: torch.device) -> int:
    """Scored tokens that are enough for one group of a loss."""
    return _CUDA_GROUP if device.type == "cuda" else FULL_GROUP


def rows_per_tile(num_tokens: int, most: int | None = None) -> int:
    """Rows of a tile: at most half of the tokens, so that no tile holds them all."""
    return min(MOST_ROWS if most is None else most, max(1, math.ceil(num_tokens / 2)))


def most_rows(weight_VH: Tensor) -> int:
    """Rows of a tile in half or full precision; fewer where they take too much of a device."""
    if weight_VH.device.type != "cuda":
        return MOST_ROWS
    row = len(weight_VH) * weight_VH.element_size()
    return max(1, min(_CUDA_ROWS, tile_bytes(weight_VH.device) // row))
