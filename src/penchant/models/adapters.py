"""LoRA adapters through PEFT: add one, and merge one into its base model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penchant.errors import ModelError
from penchant.models.load import is_adapter, load_causal_lm


def add_lora(
    model: nn.Module,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: str | list[str] = "all-linear",
) -> Any:
    """Freezes the model and adds a LoRA adapter whose weights are float32.

    Args:
        r, alpha: rank, and numerator of the scale alpha / r.
        dropout: on the adapter's input while training.
        targets: "all-linear" (every linear layer but the output head), or module names.
    Raises:
        ModelError: no module has one of the names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _is_linear(m)})
        raise ModelError(
            f"no module of the model is named as in model.adapter.targets={targets!r}; "
            f"its linear layers: {', '.join(names)}"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def merge(adapter: str, *, base: str | None = None, trust_remote_code: bool = False) -> nn.Module:
    """The base model with the adapter's weights added in; the sum is taken in float32.

    Args:
        adapter: a PEFT adapter folder.
        base: folder or hub id of the base model; default the one the adapter names.
    Raises:
        ModelError: not an adapter folder, or its base cannot be loaded.
    """
    from peft import PeftConfig, PeftModel

    if not is_adapter(adapter):
        raise ModelError(f"{adapter!r} holds no adapter_config.json; penchant merge needs a folder")
    path = base or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not path:
        raise ModelError(f"the adapter in {adapter!r} does not name its base model; give base=")
    model = load_causal_lm(path, dtype=torch.float32, trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.silenced_dropout = model.silenced_dropout
    return merged


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
