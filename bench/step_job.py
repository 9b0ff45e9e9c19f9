"""What one process of the benchmark is asked for, and what its sides have in common.

A step is everything from the batch in memory to updated weights: forward, loss, backward,
clipping, AdamW, gradients gone. Penchant's also plans its micro-batches and makes the tensors;
TRL's collation lies before the step that its trainer announces, and is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from step_cases import TRL_DEFAULT, Case
from step_workload import make_model

from penchant.types import TokenTree

BETA = 0.1
LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0
LORA_ALPHA_PER_RANK = 2


class LeftOutError(Exception):
    """This contestant cannot run here; says why."""


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    name: str
    """The contestant."""
    case: Case
    trees: Sequence[TokenTree]
    device: str
    token_budget: int | None = None
    """Of Penchant's micro-batches; None: what a run of Penchant takes by itself."""
    trl_micro_batch: int = 1
    """Pairs per micro-batch of TRL's best settings."""
    compiles: bool | Literal["auto"] = "auto"
    """Whether Penchant's layers are compiled; auto: where a long run would compile them."""


def models_of(job: Job) -> tuple[Any, Any]:
    """The policy as it starts, and a frozen copy; a frozen base under an adapter is bfloat16.

    TRL's defaults load it as float32.
    """
    policy = make_model(job.case, job.device)
    if job.case.lora and job.name != TRL_DEFAULT:
        policy = policy.to(torch.bfloat16)
    reference = copy.deepcopy(policy) if not job.case.lora else policy
    return policy, reference.requires_grad_(bool(job.case.lora)).eval()


def finish(policy: Any, optimizer: torch.optim.Optimizer) -> float:
    """Clipping and AdamW; the norm of the gradient."""
    trained: list[torch.Tensor] = [p for p in policy.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)
