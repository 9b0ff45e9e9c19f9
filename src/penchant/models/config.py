"""What a recipe says of models: where the weights lie and how they are loaded and adapted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

_Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class AdapterConfig(BaseModel):
    """A LoRA adapter: `model.adapter`."""

    model_config = _STRICT

    r: int = Field(16, ge=1)
    """Rank of the adapter's matrices."""
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    """Scale: the adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1, allow_inf_nan=False)
    """Dropout on the adapter's input; active in training."""
    targets: Literal["all-linear"] | _Names = "all-linear"
    """Layers that get an adapter: all-linear (all but the head) or a list of their names."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) and given != "all-linear" else given


class _Weights(BaseModel):
    """Abstract: where weights lie and how they are read."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    """Folder or hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format to compute in; auto: as the checkpoint was saved (float16 as bfloat16)."""
    trust_remote_code: bool = False
    """Whether code that the checkpoint brings along may run."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Frozen weights in 4bit or 8bit (CUDA, with an adapter)."""


class ModelSource(_Weights):
    """A model that is only read: `reference`."""


class ModelConfig(_Weights):
    """The model that is trained: `model`."""

    adapter: AdapterConfig | None = None
    """Train a LoRA adapter instead of all weights: {r, alpha, dropout, targets}."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
