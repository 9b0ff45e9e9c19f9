"""Gradients of each task's loss with respect to the last decoder layer and the score head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penchant.engine.compiled import decoder_layers
from penchant.engine.heads import causal_of
from penchant.errors import ModelError

_HEAD = re.compile(r"(^|\.)score\.")


def parameters(model: Any) -> list[nn.Parameter]:
    """Those that train: of the last layer (of an adapter its own), then of the head.

    Raises ModelError where no such layer is found, or nothing of it trains.
    """
    number = causal_of(model).config.get_text_config().num_hidden_layers
    layers = decoder_layers(model, number)
    last = [one for one in layers[-1].parameters() if one.requires_grad] if layers else []
    if not last:
        why = (
            "nothing of it trains (see model.adapter.targets)"
            if layers
            else f"{type(causal_of(model)).__name__} has no list of its {number} layers"
        )
        raise ModelError(
            f"task_weights.gradients=last_layer has no last layer to go by: {why}; take "
            "gradients=head"
        )
    heads = [one for name, one in model.named_parameters() if _HEAD.search(name)]
    return [*last, *(one for one in heads if one.requires_grad)]


def gradients(model: Any, losses: Sequence[Tensor]) -> Tensor:
    """[losses, parameters], float64; the graph stays for a backward pass."""
    wanted = parameters(model)
    rows = []
    for loss in losses:
        if not loss.requires_grad:  # no pair of this task
            rows.append(torch.zeros(sum(p.numel() for p in wanted), device=loss.device).double())
            continue
        found = torch.autograd.grad(
            loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([one.flatten().double() for one in found]))
    return torch.stack(rows)
