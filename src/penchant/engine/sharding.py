"""Weights split over processes (FSDP2): splitting them, and whole copies in and out.

`fully_shard` of torch itself, on any device. Accelerate's own preparation works on accelerators
only (see docs/decisions/0007-several-processes.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

_OUT = StateDictOptions(full_state_dict=True, cpu_offload=True)
_IN = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def shard(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Splits a model's weights over all processes, layer by layer, in place.

    Args:
        dtype: to gather and compute in; the split weights and the gradients' sums keep theirs.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    half = dtype in (torch.bfloat16, torch.float16)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if half else None, reduce_dtype=torch.float32 if half else None
    )
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # The root would stay gathered after a forward pass without a backward one, and whoever asks
    # for its parameters then (an optimiser, a checkpoint) would get the gathered copies.
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(model, FSDPModule)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the main process; the others get an empty mapping.

    All processes must call it. Raises nothing of its own.
    """
    return dict(get_model_state_dict(model, options=_OUT))


def put_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """The reverse: the main process's weights, split over all."""
    set_model_state_dict(model, weights, options=_IN)


def whole_optimizer(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimiser's whole state on the main process; all must call it."""
    return dict(get_optimizer_state_dict(model, optimizer, options=_OUT))


def put_optimizer(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """The reverse: the main process's state, split over all."""
    set_optimizer_state_dict(model, optimizer, state, options=_IN)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the longest list of modules in the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
