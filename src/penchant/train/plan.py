"""What a run will take, before it starts: steps, tokens, memory, time. Shown by `--dry-run`.

Steps and tokens are exact. Memory and time are estimates from the model's sizes and a short
matrix product on this device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from penchant.data.pack import plan_micro_batches
from penchant.types import TokenTree

ACTIVATION_FLOATS = 34
"""Values kept per token, layer and hidden unit for the backward pass (Korthikanti et al. 2022,
arXiv 2205.05198, Section 4.1, without the quadratic attention term that flash kernels avoid)."""
EFFICIENCY = 0.5
"""Part of the matrix-product rate that a whole step of the plain layout reaches."""


@dataclass(frozen=True)
class ModelSize:
    """What the estimates need to know of a model."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> ModelSize:
        """Counted on a model without storage."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        return cls(
            sum(p.numel() for p in model.parameters()),
            text.num_hidden_layers,
            text.hidden_size,
            text.vocab_size,
        )


def padded_tokens(trees: Sequence[TokenTree], token_budget: int) -> tuple[int, int]:
    """Tokens that the plain layout computes for these trees: in all, and in its largest batch."""
    batches = plan_micro_batches(trees, range(len(trees)), token_budget)
    sizes = [_padded([trees[i] for i in batch]) for batch in batches]
    return sum(sizes), max(sizes, default=0)


def estimate_memory(size: ModelSize, largest_batch: int, *, trainable: int) -> int:
    """Peak bytes: weights, gradients and two moments of what trains, activations, logits."""
    weights = 4 * size.parameters + 12 * trainable
    activations = 4 * ACTIVATION_FLOATS * size.layers * size.hidden * largest_batch
    logits = 3 * 4 * size.vocabulary * largest_batch
    return weights + activations + logits


def estimate_seconds(
    size: ModelSize, *, trained: int, forward_only: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds for so many padded tokens with and without a backward pass."""
    flops = size.parameters * (6 * trained + 2 * forward_only)
    return flops / (EFFICIENCY * matmul_rate(device, dtype))


def matmul_rate(device: torch.device, dtype: torch.dtype, edge: int = 1024) -> float:
    """Floating-point operations per second of a matrix product of that edge."""
    a = torch.ones(edge, edge, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * edge**3 / best


def _padded(trees: Sequence[TokenTree]) -> int:
    rows = [len(tree.prompt_ids) + len(ids) for tree in trees for ids in tree.response_ids]
    return len(rows) * max(rows)
