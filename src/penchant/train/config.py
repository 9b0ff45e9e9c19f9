"""What a recipe says of the training loop: `training.*`, `sft.*` and `task_weights.*`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class SftConfig(BaseModel):
    """What supervised fine-tuning learns from: `sft`."""

    model_config = _STRICT

    train_on: Literal["last", "all"] = "last"
    """Which assistant turns are scored: the last one, or all of them."""


class TaskWeightsConfig(BaseModel):
    """How much each task of a reward model counts in an update: `task_weights`."""

    model_config = _STRICT

    name: Literal["uniform", "fixed", "more"] = "uniform"
    """uniform: every pair counts the same; fixed: as `weights` say; more: min-norm combination."""
    weights: dict[str, float] | None = None
    """fixed: a weight per task, {name: weight}; they are divided by their sum."""
    alpha: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    """more: part of the new gradient in each task's running mean; 1 is no memory."""
    normalise: Literal["none", "l2", "loss", "loss+"] = "none"
    """more: what gradients are divided by before the solve; two tasks weigh alike with l2."""
    solver: Literal["exact", "frank-wolfe"] = "exact"
    """more: the minimum itself, or the iterates of the original code."""
    gradients: Literal["head", "last_layer"] = "head"
    """more: of the score head in closed form, or also of the last decoder layer."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        own = {"fixed": {"weights"}, "more": {"alpha", "normalise", "solver", "gradients"}}
        for field in self.model_fields_set - {"name"} - own.get(self.name, set()):
            default = type(self).model_fields[field].default
            if getattr(self, field) != default:
                raise ValueError(f"task_weights.{field} plays no part in {self.name}; leave it out")
        if self.name == "fixed":
            given = self.weights or {}
            bad = [key for key, one in given.items() if not (0 <= one < math.inf)]
            if bad or not sum(given.values()) > 0:
                shown = f"{bad[0]}: {given[bad[0]]}" if bad else self.weights
                raise ValueError(
                    f"task_weights.weights: given {shown}, allowed: {{task: weight >= 0}}, one of "
                    "them above 0"
                )
        return self


class HealthConfig(BaseModel):
    """What a run is watched for, row by row of its metrics: `training.health`."""

    model_config = _STRICT

    action: Literal["warn", "stop", "off"] = "warn"
    """warn: a line and an entry in summary.json; stop: save a checkpoint and exit with 1."""
    window: int = Field(20, ge=1)
    """Rows that a figure is averaged over; no rule on averages fires before so many."""
    max_chosen_drop: float | None = Field(2.0, gt=0, allow_inf_nan=False)
    """Most that chosen responses may lose since the start [nats per token]."""
    max_length_correlation: float | None = Field(0.7, gt=0, lt=1)
    """Highest correlation of margin and length difference; 0.7: length explains half of it."""
    kl_budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Highest mean of reference minus policy log-probability [nats per response]."""
    max_grad_ratio: float | None = Field(10.0, gt=1, allow_inf_nan=False)
    """Highest gradient norm, as a multiple of the median of the 50 rows before."""
    min_accuracy: float | None = Field(0.55, ge=0.5, lt=1)
    """Training accuracy that must be possible after warm-up; none: no rule on accuracy."""
    accuracy_pairs: int = Field(2048, ge=1)
    """Pairs that the training accuracy is taken over."""


class TrainingConfig(BaseModel):
    """How the weights are updated: `training`."""

    model_config = _STRICT

    learning_rate: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Peak learning rate; default: 5e-7 (adapter 2e-5), sft 2e-5 (2e-4), reward 1e-5 (1e-4)."""
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
    compile: bool | Literal["auto"] = "auto"
    """Whether decoder layers are compiled (torch.compile), for which the first step takes up to a
    minute longer; auto: on CUDA, in runs of 200 updates and more."""
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
    extra_metrics: tuple[Literal["entropy", "token_kl"], ...] = Field((), strict=False)
    """Logged as means per scored token, at a cost: entropy, and KL(policy || reference)."""
    report_to: tuple[str, ...] = Field((), strict=False)
    """Trackers, by Accelerate's names (tensorboard, trackio, wandb, ...)."""
    device: Literal["auto", "cpu", "cuda", "hpu"] = "auto"
    """Where to compute; auto takes the accelerator that is there."""
    num_processes: int | None = Field(None, ge=1)
    """How many processes the run must have; started in another number it stops. none: any."""
    distribution: Literal["auto", "replicate", "shard"] = "auto"
    """All weights in every process, or split over them (FSDP2); auto: as the launcher says."""
    resume: str = Field("auto", min_length=1)
    """auto: from the newest whole checkpoint in output_dir; never; or a checkpoint's folder."""
    health: HealthConfig = HealthConfig()
    """What the run is watched for; `training.health=stop` means its action."""
    base_dropout: bool = False
    """Whether the model's own dropout is active; an adapter's always is."""

    @field_validator("health", mode="before")
    @classmethod
    def _an_action(cls, given: Any) -> Any:
        return {"action": given} if isinstance(given, str) else given

    @field_validator("report_to", "extra_metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        if given is None or given == "none":
            return ()
        return (given,) if isinstance(given, str) else given
