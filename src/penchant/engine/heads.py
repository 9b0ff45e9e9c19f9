"""The parts of a Hugging Face model that the packed layout talks to: backbone, head, routers."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from penchant.engine.logprob_head import Head
from penchant.engine.tile_maths import Shape
from penchant.engine.tile_sizes import rows_per_tile
from penchant.engine.workspace import Workspace, may_add
from penchant.errors import ModelError
from penchant.types import TokenLogps, TokenTree

_INSIDE = "penchant_inside"
_BALANCING = ("gate_logits", "num_experts", "top_k", "attention_mask")
"""What transformers' load-balancing functions take; another one means something else."""
_STATISTICS_ROWS = 256
"""Most rows of a tile of which statistics are computed."""


def causal_of(model: Any) -> Any:
    """The Hugging Face model inside an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: Any) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def reward_head_of(model: Any) -> nn.Module:
    """The scalar head of a reward model. Raises ModelError where there is none."""
    inner = causal_of(model)
    head = getattr(inner, "score", None)
    if head is None:
        raise ModelError(
            f"{type(inner).__name__} has no head named `score`; load a reward model with "
            "AutoModelForSequenceClassification(num_labels=1)"
        )
    return head


def inside(model: Any, work: Callable[..., Any], *arguments: Any) -> Any:
    """`work`, as a forward pass of the whole model, for which sharded weights are gathered."""
    if not isinstance(model, FSDPModule):
        return work(*arguments)
    if not hasattr(model, _INSIDE):
        setattr(model, _INSIDE, types.MethodType(lambda self, work, *rest: work(*rest), model))
        register_fsdp_forward_method(model, _INSIDE)  # type: ignore[arg-type]
    return getattr(model, _INSIDE)(work, *arguments)


def is_reward_model(model: Any) -> bool:
    """Whether it has a head for scores; a language-model head may come along."""
    inner = causal_of(model)
    return getattr(inner, "score", None) is not None or inner.get_output_embeddings() is None


def language_head_of(model: Any) -> nn.Module:
    """The head of a language model. Raises ModelError where there is none."""
    inner = causal_of(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(inner).__name__} has no language-model head, so no log-probabilities; load it "
            "with AutoModelForCausalLM, or ask for scores"
        )
    return head


def vocabulary_of(model: Any) -> int:
    """How many tokens a language model tells apart, some of which may be padding of its matrix."""
    return int(causal_of(model).config.get_text_config().vocab_size)


def has_ordinary_head(model: Any) -> bool:
    """Whether the head is a weight and nothing else.

    Heads with a bias, quantised ones and those with an adapter of their own are run as they are.
    """
    head = language_head_of(model)
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    return not any((head._forward_hooks, head._forward_pre_hooks, head._backward_hooks))


def ordinary_head(model: Any, workspace: Workspace) -> Head:
    """The head of a model that `has_ordinary_head`; sharded weights must be gathered."""
    weight: Any = language_head_of(model).weight
    return Head(
        weight, shape_of(model), workspace, not isinstance(model, FSDPModule) and may_add(weight)
    )


def shape_of(model: Any) -> Shape:
    """Scales and cap of the logits, from the config keys that transformers' decoders use."""
    config = causal_of(model).config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale *= _number(config, name, 1.0)
    return Shape(
        scale=scale / _number(config, "logits_scaling", 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


@dataclass(frozen=True)
class Statistics:
    """What is computed of each scored token besides its log-probability."""

    entropy: bool = False
    kl_to: Any = None
    """A model whose distribution the token KL is measured against."""
    kl_dtype: torch.dtype | None = None
    """What that model computes in by autocast; None: as its weights are."""
    differentiable: bool = True
    """Whether a loss may depend on them; else they are constants, at less cost."""

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self.entropy or self.kl_to is not None

    def named(self, found: Sequence[Tensor]) -> dict[str, Tensor]:
        """The fields of TokenLogps that they fill."""
        names = ["entropy_T"] * self.entropy + ["token_kl_T"] * (self.kl_to is not None)
        return dict(zip(names, found, strict=True))

    @contextmanager
    def of_reference(self) -> Iterator[None]:
        """Around whatever the reference computes: no gradients, and its own precision."""
        device = device_of(self.kl_to).type
        asked = self.kl_dtype is not None
        with torch.no_grad(), torch.autocast(device, dtype=self.kl_dtype, enabled=asked):
            yield


@dataclass(frozen=True)
class BackwardPass:
    """What is propagated back, and what the loss gets to see."""

    loss: Callable[[Sequence[TokenTree], TokenLogps], Tensor]
    """Of some trees and their log-probabilities."""
    by_tree: bool = False
    """It is a sum over trees, so that it may be asked for part by part."""
    auxiliary_weight: float = 0.0
    """Of a mixture of experts' load-balancing loss."""
    statistics: Statistics = Statistics()


def of_logps(logps_TV: Tensor, statistics: Statistics, reference_TV: Tensor | None) -> list[Tensor]:
    """The statistics of normalised logits; those of the reference where the token KL is asked."""
    if not statistics.differentiable:
        logps_TV = logps_TV.detach()
    found = []
    if statistics.entropy:
        found.append(-(logps_TV.exp() * logps_TV).sum(1))
    if reference_TV is not None:
        found.append((logps_TV.exp() * (logps_TV - reference_TV)).sum(1))
    return found


def tiled(
    model: Any,
    hidden_TH: Tensor,
    targets_T: Tensor,
    statistics: Statistics,
    reference_TH: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Log-probabilities, then what else is asked for, by the model's own head, tile by tile.

    Differentiable; a tile's logits are computed again in the backward pass.
    """
    rows = rows_per_tile(len(targets_T))
    if statistics.asked:  # several times as much is held of each row
        rows = min(rows, _STATISTICS_ROWS)
    found = []
    for start in range(0, max(1, len(targets_T)), rows):
        tile = slice(start, start + rows)
        reference = None if reference_TH is None else reference_TH[tile]
        work = partial(_tile, model, statistics)
        found.append(
            checkpoint(work, hidden_TH[tile], targets_T[tile], reference, use_reentrant=False)
        )
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _tile(
    model: Any,
    statistics: Statistics,
    hidden_CH: Tensor,
    targets_C: Tensor,
    reference_CH: Tensor | None,
) -> tuple[Tensor, ...]:
    logps_CV = _log_softmax(model, hidden_CH)
    reference_CV = None
    if reference_CH is not None:
        with statistics.of_reference():
            reference_CV = _log_softmax(statistics.kl_to, reference_CH)
    found = of_logps(logps_CV, statistics, reference_CV)
    return (logps_CV.gather(1, targets_C[:, None])[:, 0], *found)


def _log_softmax(model: Any, hidden_CH: Tensor) -> Tensor:
    head, shape = language_head_of(model), shape_of(model)
    logits = head(hidden_CH)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    return logits.log_softmax(1)


def auxiliary_loss(model: Any, router_logits: Any) -> Tensor:
    """Load-balancing loss of a mixture of experts times the config's coefficient."""
    return load_balancing_of(model)(router_logits)


def load_balancing_of(model: Any) -> Callable[..., Tensor]:
    """(router logits, attention mask or nothing) -> that loss, a scalar.

    By the function of the model's own file (Switch Transformer, arXiv 2101.03961, Eq. 4 to 6).
    Raises ModelError for a model whose file has none.
    """
    causal = causal_of(model)
    function = of_own_file(causal, "load_balancing_loss_func")
    if function is not None and tuple(inspect.signature(function).parameters) != _BALANCING:
        function = None
    # Language models keep the three numbers themselves; reward models have only their config.
    owner = causal if hasattr(causal, "router_aux_loss_coef") else causal.config.get_text_config()
    number = getattr(owner, "num_experts", None) or getattr(owner, "num_local_experts", None)
    weight = getattr(owner, "router_aux_loss_coef", None)
    if function is None or number is None or weight is None:
        raise ModelError(
            f"{type(causal).__name__}: its config asks for router logits, but it has no "
            "load-balancing loss here; set output_router_logits to false in its config.json"
        )

    def balance(router_logits: Any, attention_RL: Tensor | None = None) -> Tensor:
        loss = function(router_logits, number, owner.num_experts_per_tok, attention_RL)
        return weight * loss

    return balance


def of_own_file(module: nn.Module, name: str) -> Any:
    """What the file that defines a module's class, or a class above it, calls by a name."""
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), name, None)
        if found is not None:
            return found
    return None
