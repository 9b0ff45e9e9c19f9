"""The policy and its reference as models: loaded as they are trained, adapted, placed, split."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from penchant import engine as engines
from penchant.engine import compiled, sharding
from penchant.engine.processes import Processes
from penchant.errors import ModelError, RecipeError
from penchant.models import load
from penchant.models.adapters import add_lora
from penchant.models.config import ModelConfig, ModelSource

COMPILED_FROM = 200
"""Updates from which compiling is worth its time: twenty seconds to a minute on an H200."""


@dataclass(frozen=True)
class Placement:
    """Where and in which numbers models compute, and whether they are split."""

    device: torch.device
    dtype: torch.dtype
    processes: Processes

    def prepare(self, model: Any, dtype: torch.dtype | None = None) -> engines.Engine:
        """A model on its device, split where the run splits them, behind an engine."""
        dtype = dtype or self.dtype
        if not getattr(model, "is_quantized", False):
            model.to(self.device)
        if not self.processes.sharded:
            return engines.prepare(model, dtype=dtype)
        return engines.prepare(sharding.shard(model, self.device, dtype))


def build_model(config: ModelConfig, dtype: torch.dtype, *, base_dropout: bool) -> Any:
    """The policy as it is trained: float32 masters, or a frozen base in `dtype` with an adapter.

    Raises RecipeError for combinations that cannot be trained.
    """
    model = load.load_causal_lm(
        config.path,
        dtype=storage_dtype(config, dtype),
        quantization=config.quantization,
        dropout=base_dropout,
        **hub_keywords(config),
    )
    return adapt(model, config)


def storage_dtype(config: ModelConfig, dtype: torch.dtype) -> torch.dtype:
    """Of the weights in memory: float32 masters, or a frozen base as it computes.

    Raises RecipeError for combinations that cannot be trained.
    """
    continues = load.is_adapter(config.path)
    if config.adapter is not None and continues:
        raise RecipeError(
            f"model.path={config.path!r} is an adapter, which goes on training; "
            "leave model.adapter out, or merge it first (penchant merge)"
        )
    frozen_base = continues or config.adapter is not None
    if config.quantization is not None and not frozen_base:
        raise RecipeError("model.quantization needs model.adapter: quantised weights do not train")
    return dtype if frozen_base or dtype == torch.float64 else torch.float32


def random_policy(
    shape: Any,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    base_dropout: bool = False,
    scores: bool = False,
) -> Any:
    """What `build_model` gives, but of this shape and with random weights; on the current device.

    Args:
        shape: a model's config, with fewer layers perhaps.
        scores: a reward model instead.
    """
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    if scores:
        shape = copy.deepcopy(shape)
        shape.num_labels = 1
    model = kind.from_config(
        shape, dtype=storage_dtype(config, dtype), trust_remote_code=config.trust_remote_code
    )
    if not base_dropout:
        load.silence_dropout(model)
    if load.is_adapter(config.path):
        from peft import PeftConfig, get_peft_model

        adapter = PeftConfig.from_pretrained(config.path)
        adapter.inference_mode = False
        model = get_peft_model(model, adapter)
    return adapt(model, config)


def adapt(model: Any, config: ModelConfig) -> Any:
    """The recipe's adapter and gradient checkpointing."""
    if config.adapter is not None:
        adapter = config.adapter
        targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
        model = add_lora(
            model, r=adapter.r, alpha=adapter.alpha, dropout=adapter.dropout, targets=targets
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def compile_layers(engine: engines.Engine, asked: bool | Literal["auto"], num_updates: int) -> None:
    """Compiles decoder layers as `training.compile` says; where auto fails it says so and goes on.

    Raises ModelError where they are asked for and cannot be compiled.
    """
    if asked == "auto":
        device = next(engine.model.parameters()).device
        if device.type != "cuda" or num_updates < COMPILED_FROM or compiled.why_not(engine):
            return
        try:
            compiled.compile_layers(engine)
        except ModelError as error:
            print(f"note: {error}; they run as they are")
    elif asked:
        compiled.compile_layers(engine)


def about(engine: engines.Engine) -> dict[str, Any]:
    """What a run's summary says of its engine."""
    return {
        "layout": engine.layout,
        "reason": engine.reason,
        "compiled": compiled.is_compiled(engine.model),
    }


def named_reference(source: ModelSource | None, place: Placement) -> engines.Engine | None:
    """The model that the recipe names as its reference; None where the starting model is it."""
    if source is None:
        return None
    dtype = load.compute_dtype(source.path, source.dtype, **hub_keywords(source))
    model = load.load_causal_lm(
        source.path,
        dtype=dtype,
        quantization=source.quantization,
        trainable=False,
        **hub_keywords(source),
    )
    return place.prepare(model, dtype)


def hub_keywords(config: ModelConfig | ModelSource) -> dict[str, Any]:
    """What the hub calls take besides a path."""
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
