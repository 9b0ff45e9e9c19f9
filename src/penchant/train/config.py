"""What a recipe says of the training loop: `training.*` and `sft.*`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class SftConfig(BaseModel):
    """What supervised fine-tuning learns from: `sft`."""

    model_config = _STRICT

    train_on: Literal["last", "all"] = "last"
    """Which assistant turns are scored: the last one, or all of them."""


class TrainingConfig(BaseModel):
    """How the weights are updated: `training`."""

    model_config = _STRICT

    learning_rate: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Peak learning rate; default: train 5e-7 (adapter 2e-5), sft 2e-5 (adapter 2e-4)."""
    num_train_epochs: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Passes over the training data; may be a fraction."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many updates, whatever num_train_epochs says."""
    batch_size: int = Field(64, ge=1)
    """Pairs (sft: responses) per update, over all micro-batches and processes together."""
    token_budget: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens per micro-batch; changes memory and speed, never the update."""
    lr_scheduler_type: Literal[
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
    ] = "cosine"
    """Course of the learning rate after warm-up; the names are those of transformers."""
    warmup_ratio: float = Field(0.1, ge=0, le=1, allow_inf_nan=False)
    """Fraction of all updates over which the learning rate rises from 0."""
    warmup_steps: int | None = Field(None, ge=0)
    """The same as a number of updates; given, it replaces warmup_ratio."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Decoupled weight decay; biases and norms are left out."""
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    optimizer: Literal["adamw", "rmsprop", "adafactor", "adamw_8bit"] = "adamw"
    """The optimiser that runs; adamw_8bit needs bitsandbytes."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Decides the order of the data, dropout and new weights."""
    eval_steps: int | None = Field(None, ge=1)
    """Evaluate every so many updates; default: after each epoch."""
    save_steps: int | None = Field(None, ge=1)
    """Checkpoint every so many updates; default: after each epoch."""
    save_total_limit: int | None = Field(2, ge=1)
    """Checkpoints kept, the newest ones; none keeps all."""
    keep_best: bool = False
    """Also keep the checkpoint with the lowest eval_loss, and end with its weights."""
    logging_steps: int = Field(1, ge=1)
    """A row of metrics.jsonl every so many updates."""
    report_to: tuple[str, ...] = Field((), strict=False)
    """Trackers, by Accelerate's names (tensorboard, trackio, wandb, ...)."""
    device: Literal["auto", "cpu", "cuda", "hpu"] = "auto"
    """Where to compute; auto takes the accelerator that is there."""
    resume: str = Field("auto", min_length=1)
    """auto: from the newest whole checkpoint in output_dir; never; or a checkpoint's folder."""
    base_dropout: bool = False
    """Whether the model's own dropout is active; an adapter's always is."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker_is_a_list(cls, given: Any) -> Any:
        if given is None or given == "none":
            return ()
        return (given,) if isinstance(given, str) else given
