"""Decoder layers compiled by torch.compile: what lies between matrix products runs in fewer passes.

Attention over trees stays as it is and parts each layer in two. Lengths are dynamic, so that
batches of all sizes share one compilation, and so do layers of one kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penchant.engine import interface, self_check
from penchant.engine.heads import causal_of, is_reward_model
from penchant.engine.memory import is_out_of_memory
from penchant.errors import ModelError

if TYPE_CHECKING:
    from penchant.engine import Engine

_APART = {torch.bfloat16: 0.25, torch.float16: 0.1, torch.float32: 1e-3, torch.float64: 1e-9}
"""Most that values may change, relative to how they vary: rounding, and no more."""


def decoder_layers(model: nn.Module, number: int) -> list[nn.Module]:
    """The list of so many layers in a model; empty where there is none."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((list(found) for found in lists if len(found) == number), [])


def is_compiled(model: Any) -> bool:
    """Whether its layers are."""
    return any(layer._compiled_call_impl is not None for layer in _layers(model))


def why_not(engine: Engine) -> str | None:
    """Why an engine's layers cannot be compiled; None where they can be tried."""
    if engine.padded:
        return f"its layout is plain ({engine.reason})"
    if isinstance(engine.model, FSDPModule):
        return "its weights are split over processes"
    if getattr(engine.model, "is_quantized", False):
        return "its weights are quantised"
    return None if _layers(engine.model) else "it has no list of decoder layers"


def compile_layers(engine: Engine) -> None:
    """Compiles the decoder layers and compares what they give on two small trees; takes a while.

    Raises:
        ModelError: they cannot be compiled, or give other values; they are then as before.
    """
    reason = why_not(engine)
    if reason is not None:
        raise ModelError(f"the model's layers cannot be compiled: {reason}")
    layers = _layers(engine.model)
    before = _values(engine)
    # Its work depends on the trees: traced, every batch would be compiled anew.
    ALL_ATTENTION_FUNCTIONS.register(interface.NAME, torch.compiler.disable(interface.attention))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        apart = _apart(_values(engine), before)
    except Exception as error:  # whatever a compiler raises there
        _undo(layers)
        if is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the model's layers cannot be compiled: {lines[0]}") from error
    dtype = engine.autocast_dtype or next(engine.model.parameters()).dtype
    if not apart <= _APART[dtype]:
        _undo(layers)
        raise ModelError(f"the model's layers, compiled, give values that are {apart:.1e} apart")


def _layers(model: Any) -> list[nn.Module]:
    inner = causal_of(model)
    number = getattr(inner.config.get_text_config(), "num_hidden_layers", None) or 0
    return decoder_layers(inner, number) if number else []


def _undo(layers: list[nn.Module]) -> None:
    for layer in layers:
        layer._compiled_call_impl = None


@torch.no_grad()
def _values(engine: Engine) -> Tensor:
    """Pooled states of a reward model, or log-probabilities; without dropout."""
    modes = [(module, module.training) for module in engine.model.modules()]
    engine.model.eval()
    try:
        trees = self_check.small_trees(engine.model)
        if is_reward_model(engine.model):
            return engine.rewards(trees).pooled_RH.flatten()
        return engine.logps(trees).values_T
    finally:
        for module, was_training in modes:
            module.training = was_training


def _apart(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / (expected - expected.mean()).norm())
