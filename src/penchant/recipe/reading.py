"""Recipes of the commands that look and train nothing: `data`, `explain` and `evaluate`.

The first two take the recipe of a training as it is; sections that they do not need are allowed
and unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from penchant.data.config import DataConfig
from penchant.evaluate.config import PreferenceData
from penchant.models.config import ModelConfig, ModelSource
from penchant.recipe.kinds import Recipe, check_finite, named_mapping, resolved_sections
from penchant.train.config import SftConfig, TaskWeightsConfig, TrainingConfig


def _named(given: Any) -> Any:
    check_finite("objective", given)
    return named_mapping(given, default={"name": "dpo"}, nested="token_weights")


class DataRecipe(Recipe):
    """The data report: `penchant data FILE` or `penchant data RECIPE.yaml`."""

    positional = "data"

    data: DataConfig
    """What is read; `data=FILE` means data.train."""
    tokenizer: str | None = Field(None, min_length=1)
    """Folder or hub id of a tokenizer; default: the model's, and without one no tokens."""
    model: ModelConfig | None = None
    """Its tokenizer is used; the weights are not read."""
    use: Literal["auto", "pairs", "chosen"] = "auto"
    """pairs (train), chosen (sft: one response a row); auto: pairs where the data has some."""
    objective: dict[str, Any] | None = None
    """Says whether scores are needed and, with bt_beta, which soft labels they become."""
    report: str | None = Field(None, min_length=1)
    """Also write it: a folder (data_report.json, data_report.html), or a file of one of both."""
    output: str | None = Field(None, min_length=1)
    """Also convert the rows to this file (.jsonl, .json, .parquet, .csv; text files also .gz)."""
    format: str | None = Field(None, min_length=1)
    """Layout of that file; default: as the rows are best kept."""
    sft: SftConfig | None = None
    """Of an sft recipe; its presence means use=chosen."""
    task_weights: TaskWeightsConfig | None = None
    """Of a reward recipe; its presence means the defaults of its pairs: all, without ties."""
    batches: str | None = None
    """Of a reward recipe; not used."""
    resample: str | int | None = None
    """Of a reward recipe; not used."""
    pooling: str | None = None
    """Of a reward recipe; not used."""
    training: TrainingConfig = TrainingConfig()
    """Of a training recipe; only the seed is used."""
    reference: ModelSource | None = None
    """Of a training recipe; not used."""
    output_dir: str = ""
    """Of a training recipe; not used."""

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return _named(given) if given is not None else None

    @field_validator("task_weights", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def resolved(self) -> Self:
        if self.task_weights is None:
            return self
        of_rewards = {"pairing": self.data.pairing or "all", "ties": self.data.ties or "drop"}
        return self.model_copy(update={"data": self.data.model_copy(update=of_rewards)})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.format is not None and self.output is None:
            raise ValueError(f"format is {self.format!r}, but there is no output to write; give "
                             "output=FILE (data.format names the format that is read)")  # fmt: skip
        if self.tokenizer is None and self.model is None:
            self._check_untokenised()
        return self

    def _check_untokenised(self) -> None:
        """A limit on tokens that nothing counts would pass every file."""
        counts = {
            "max_cut_fraction": self.data.max_cut_fraction is not None,
            "overlong": self.data.overlong != "cut",
            "chat_template": self.data.chat_template is not None,
        }
        for name, is_given in counts.items():
            if is_given:
                raise ValueError(f"data.{name} does nothing without tokens; "
                                 "give tokenizer=PATH or model=DIR")  # fmt: skip


_OF_REWARDS = ("task_weights", "batches", "resample", "pooling")
"""Keys that only reward recipes have."""


class ExplainRecipe(Recipe):
    """One comparison as the model sees it: `penchant explain RECIPE.yaml row=17`."""

    row: int | str
    """Number of the row in its file (line, from 1), or its id `<source>:<number>`."""
    model: ModelConfig
    """The policy, or the reward model; of a finished run, its folder."""
    reference: ModelSource | None = None
    """The frozen model to measure against; default: the policy as it starts."""
    data: DataConfig
    """Where the row is; `data=FILE` means data.train."""
    objective: dict[str, Any] = Field({"name": "dpo"}, validate_default=True)
    """Name, or {name: ..., its fields, sft_weight, token_weights}."""
    tokens_only: bool = False
    """Show tokens and cuts, and load no weights."""
    output: str | None = Field(None, min_length=1)
    """Also write an HTML page to this file."""
    sft: SftConfig | None = None
    """Of an sft recipe; its presence means objective=sft."""
    task_weights: TaskWeightsConfig | None = None
    """Of a reward recipe; a row is explained by itself, as a task of its own."""
    batches: str | None = None
    """Of a reward recipe; not used."""
    resample: str | int | None = None
    """Of a reward recipe; not used."""
    pooling: Literal["last", "average", "max"] | None = None
    """Of a reward recipe: what the head scores; default: last, or the starting reward model's."""
    training: TrainingConfig = TrainingConfig()
    """Of a training recipe; seed and device are used."""
    output_dir: str = ""
    """Of a training recipe; not used."""

    @model_validator(mode="before")
    @classmethod
    def _of_rewards(cls, given: Any) -> Any:
        """The objective's default is that of the recipe's command."""
        if not isinstance(given, Mapping) or not any(key in given for key in _OF_REWARDS):
            return given
        objective = given.get("objective", {})
        if not isinstance(objective, Mapping):
            return given
        return {**given, "objective": {"name": "bradley-terry", **objective}}

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return _named(given)

    @field_validator("task_weights", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def resolved(self) -> Self:
        update: dict[str, Any] = resolved_sections(
            self.model, self.data, self.training, (5e-7, 2e-5)
        )
        # How rows become pairs by default is the objective's to say.
        own = {"pairing": self.data.pairing, "ties": self.data.ties}
        return self.model_copy(update=update | {"data": update["data"].model_copy(update=own)})


class EvaluateRecipe(Recipe):
    """How good a model is: `penchant evaluate model=DIR data=FILE output_dir=DIR`."""

    model: ModelSource
    """A reward model or a policy; which of both its config says."""
    reference: ModelSource | None = None
    """Of a policy: what its implicit reward is measured against; default: what its run names."""
    tasks: tuple[Literal["preferences"], ...] = Field((), strict=False)
    """What is measured; default: what the other keys ask for, preferences by data."""
    data: PreferenceData | None = None
    """The preference sets; `data=FILE` means data.train."""
    subset_by: str | None = Field(None, min_length=1)
    """Column whose values get a row each; default: subset, of files laid out as RewardBench."""
    beta: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of a policy's implicit reward, for its calibration; default: its run's, if any."""
    token_budget: int | None = Field(None, ge=1)
    """Tokens that run together; default: 8192 on a CPU, 32768 on an accelerator."""
    device: Literal["auto", "cpu", "cuda", "hpu"] = "auto"
    """Where to compute; auto: the accelerator that is there."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the rows that a fraction draws, and of the intervals' bootstrap."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data is None:
            named = "preferences" if self.tasks else "nothing"
            raise ValueError(f"data is missing: {named} is to be evaluated; give data=FILE")
        return self

    def resolved(self) -> Self:
        return self.model_copy(update={"tasks": self.tasks or ("preferences",)})
