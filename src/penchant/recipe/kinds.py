"""The recipes: which sections and keys each command has."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.config import DataConfig
from penchant.models.config import ModelConfig, ModelSource
from penchant.train.config import SftConfig, TrainingConfig

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Recipe(BaseModel):
    """Abstract: everything that one run of a command depends on."""

    model_config = _STRICT

    positional: ClassVar[str | None] = None
    """Key that a bare argument of the command line sets; none: it names a recipe file."""

    output_dir: str = Field(min_length=1)
    """Run folder; one that holds another recipe's run is refused."""

    def resolved(self) -> Self:
        """With every default that depends on other keys filled in."""
        return self


class TrainRecipe(Recipe):
    """Preference training: `penchant train`."""

    model: ModelConfig
    """The model that is trained; `model=DIR` means model.path."""
    reference: ModelSource | None = None
    """The frozen model to measure against; default: the starting model."""
    data: DataConfig
    """What is read; `data=FILE` means data.train."""
    objective: dict[str, Any] = Field({"name": "dpo"}, validate_default=True)
    """Name, or {name: ..., its fields, sft_weight, token_weights}."""
    training: TrainingConfig = TrainingConfig()
    """How the weights are updated."""

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        check_finite("objective", given)
        return named_mapping(given, default={"name": "dpo"}, nested="token_weights")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_evaluation(self.training, self.data)
        return self

    def resolved(self) -> Self:
        update = resolved_sections(self.model, self.data, self.training, (5e-7, 2e-5))
        return self.model_copy(update=update)


class SftRecipe(Recipe):
    """Supervised fine-tuning: `penchant sft`."""

    model: ModelConfig
    """The model that is trained; `model=DIR` means model.path."""
    data: DataConfig
    """What is read; `data=FILE` means data.train."""
    sft: SftConfig = SftConfig()
    """What is learned of a conversation."""
    training: TrainingConfig = TrainingConfig()
    """How the weights are updated."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_evaluation(self.training, self.data)
        return self

    def resolved(self) -> Self:
        update = resolved_sections(self.model, self.data, self.training, (2e-5, 2e-4))
        return self.model_copy(update=update)


class MergeRecipe(Recipe):
    """An adapter added into its base: `penchant merge ADAPTER output_dir=DIR`."""

    positional = "adapter"

    adapter: str = Field(min_length=1)
    """Adapter folder (a run folder is one) or hub id."""
    base: str | None = None
    """Folder or hub id of the base; default: the one that the adapter names."""
    trust_remote_code: bool = False
    """Whether code that the checkpoint brings along may run."""


class VerifyRecipe(Recipe):
    """A finished run held against its own files: `penchant verify RUN`."""

    positional = "run"

    run: str = Field(min_length=1)
    """Run folder of `penchant train`, `sft` or `reward`."""
    num_pairs: int = Field(10, ge=1)
    """Pairs that are computed again, of the at most 64 that the run logged."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides which."""
    output_dir: str = ""
    """Not used: nothing is written."""


class ReferenceRecipe(Recipe):
    """The stored reference log-probabilities: `penchant reference list | verify | prune`."""

    positional = "action"

    action: Literal["list", "verify", "prune"]
    """list: what is there; verify: read and check it; prune: remove what is unused for longest."""
    entry: str | None = Field(None, min_length=1)
    """Only the entry whose name begins so; default: all."""
    max_size: str | None = Field(None, min_length=1)
    """prune: what may stay, as 5GB; of runs PENCHANT_REFERENCE_CACHE_SIZE; default: as for runs."""
    unused_days: float | None = Field(None, ge=0, allow_inf_nan=False)
    """prune: also remove what was not used for so many days."""
    damaged: bool = False
    """prune: also remove shards that do not hold what was written."""
    output_dir: str = ""
    """Not used: nothing else is written."""

    @field_validator("max_size", mode="before")
    @classmethod
    def _bytes(cls, given: Any) -> Any:
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _of_its_action(self) -> Self:
        for name in ("max_size", "unused_days", "damaged"):
            if getattr(self, name) not in (None, False) and self.action != "prune":
                raise ValueError(f"{name}: only for prune, not for {self.action}")
        return self


class InitRecipe(Recipe):
    """A small new model around a tokenizer: `penchant init DIR tokenizer=PATH`."""

    positional = "output_dir"

    tokenizer: str = Field(min_length=1)
    """Folder, tokenizer.json or hub id."""
    architecture: str = Field("llama", min_length=1)
    """Model type by transformers' name: llama, mistral, qwen2, gpt_neox, ..."""
    hidden_size: int = Field(256, ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(4, ge=1)
    """Decoder layers."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    num_key_value_heads: int | None = Field(None, ge=1)
    """Heads of keys and values; default: num_heads."""
    intermediate_size: int | None = Field(None, ge=1)
    """Width of the feed-forward layers; default: the architecture's ratio, about 8/3."""
    max_position_embeddings: int = Field(2048, ge=1)
    """Longest sequence [tokens]."""
    tie_word_embeddings: bool = True
    """Whether input and output embeddings are one matrix."""
    chat_template: str | None = "chatml"
    """A shipped template, a Jinja file, or none: the tokenizer's own."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Decides the weights."""
    config: dict[str, Any] = {}
    """Further keys of the architecture's configuration."""

    @field_validator("config", mode="before")
    @classmethod
    def _finite(cls, given: Any) -> Any:
        check_finite("config", given)
        return given

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.num_key_value_heads and self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


def named_mapping(given: Any, *, default: Mapping[str, Any], nested: str) -> Any:
    """A name as {name: ...}, for the mapping and for the one at key `nested`."""
    if isinstance(given, str):
        return {"name": given}
    if not isinstance(given, Mapping):
        return given
    named = {**default, **given}
    if isinstance(named.get(nested), str):
        named[nested] = {"name": named[nested]}
    if not isinstance(named["name"], str) or not named["name"]:
        raise ValueError(f"objective.name: given {named['name']!r}, allowed: text")
    return named


def check_finite(path: str, value: Any) -> None:
    """Raises ValueError for infinite numbers and NaN in what the recipe does not check itself."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: given {value}, allowed: a finite number")
    if isinstance(value, Mapping):
        for key, one in value.items():
            check_finite(f"{path}.{key}", one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            check_finite(path, one)


def check_evaluation(training: TrainingConfig, data: DataConfig) -> None:
    """Raises ValueError where a key asks for evaluations and there is nothing to evaluate."""
    if data.eval or data.eval_fraction is not None:
        return
    if training.keep_best:
        raise ValueError("training.keep_best needs data.eval or data.eval_fraction")
    if training.eval_steps is not None:
        raise ValueError("training.eval_steps needs data.eval or data.eval_fraction")


def resolved_sections(
    model: ModelConfig, data: DataConfig, training: TrainingConfig, rates: tuple[float, float]
) -> dict[str, BaseModel]:
    """Sections with their dependent defaults; `rates`: learning rates without and with adapter."""
    filled = {"pairing": data.pairing or "best-vs-worst", "ties": data.ties or "keep"}
    length = data.max_prompt_length or data.max_length // 2
    data = data.model_copy(update=filled | {"max_prompt_length": length})
    if training.learning_rate is None:
        rate = rates[model.adapter is not None]
        training = training.model_copy(update={"learning_rate": rate})
    return {"data": data, "training": training}


_MORE = ("demo", "reading", "reward", "generate", "selection")
"""Files with recipes of further commands."""


def recipe_class(command: str) -> type[Recipe] | None:
    """TrainRecipe for `train`, and so on; None where the command has no recipe."""
    name = f"{command.title()}Recipe"
    for file in ("kinds", *_MORE):  # late: those build on this file
        found = getattr(importlib.import_module(f"penchant.recipe.{file}"), name, None)
        if isinstance(found, type) and issubclass(found, Recipe):
            return found
    return None
