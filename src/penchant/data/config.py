"""What a recipe says of data: `data.*`."""

from __future__ import annotations

import os
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def by_path(given: Any) -> Any:
    """One or several things that may be written short as their paths, as mappings; none for None.

    A validator (before) of data sets in every recipe, and of lists of models.
    """
    if given is None:
        return ()
    listed = given if isinstance(given, (list, tuple)) else [given]
    return tuple({"path": one} if isinstance(one, str) else one for one in listed)


def check_lengths(max_length: int | None, max_prompt_length: int | None) -> None:
    """Raises ValueError where a prompt may be longer than the whole."""
    if max_length is None or max_prompt_length is None or max_prompt_length <= max_length:
        return
    raise ValueError(
        f"data.max_prompt_length {max_prompt_length} is above data.max_length {max_length}; "
        "lower it or leave it out"
    )


class DatasetConfig(BaseModel):
    """One source of rows; written short as its path."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    """File, folder or hub id (`id:config:split`)."""
    name: str | None = None
    """What the data set is called in reports; default: from its path."""
    fraction: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Take this part of its rows, drawn by the seed."""
    rows: int | None = Field(None, ge=1)
    """Take so many of its rows, drawn by the seed."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set or of a saved folder; default: train, or the only one."""
    format: str | None = Field(None, min_length=1)
    """Format of this data set; default: data.format."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.fraction is not None and self.rows is not None:
            raise ValueError(f"fraction {self.fraction} and rows {self.rows} given; give one")
        return self

    @property
    def place(self) -> tuple[str, str | None, str | None]:
        """Equal for two sources that hold the same rows."""
        path = os.path.realpath(self.path) if os.path.exists(self.path) else self.path
        # A single file is read whole, whatever split is asked of it.
        named = (None, None) if os.path.isfile(path) else (self.config, self.split)
        return path, *named


class SoftLabelConfig(BaseModel):
    """A table of soft labels by prompt id; written short as its path."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    """JSON or JSONL with `prompt_id` and `p_chosen`."""
    below_half: Literal["keep", "swap", "rescale"] = "keep"
    """What becomes of p < 0.5: kept, pair swapped with 1 - p, or p rescaled to [0.5, 1]."""


class DataConfig(BaseModel):
    """What is read, how it becomes pairs, and how pairs become tokens: `data`."""

    model_config = _STRICT

    train: tuple[DatasetConfig, ...] = Field(strict=False, min_length=1)
    """File, folder, hub id (`id:config:split`), or a list; each may be {path, fraction, ...}."""
    eval: tuple[DatasetConfig, ...] = Field((), strict=False)
    """The same, for evaluation."""
    eval_fraction: float | None = Field(None, gt=0, lt=1, allow_inf_nan=False)
    """Instead of data.eval: hold out this part of the training prompts."""
    format: str = Field("auto", min_length=1)
    """Name of the source format, `name:choice` where it has choices; auto: by its columns."""
    pairing: Literal["best-vs-worst", "best-vs-rest", "all"] | None = None
    """How N scored responses become pairs; default: best-vs-worst, for reward all."""
    min_score_gap: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Leave out pairs whose scores differ by less."""
    ties: Literal["keep", "drop"] | None = None
    """What happens to pairs with equal scores; default: keep, for reward drop."""
    negative_gap: Literal["keep", "swap", "drop"] = "keep"
    """What happens to pairs whose chosen has the lower score."""
    max_pairs_per_prompt: int | None = Field(None, ge=1)
    """At most so many pairs of one prompt; default: no limit, but 5 for SHP."""
    gap_bins: int | None = Field(None, ge=2)
    """Draw pairs evenly over so many equal ranges of the score gap (after score_transform)."""
    score_transform: Literal["raw", "clip", "log", "rank", "zscore"] = "raw"
    """Applied to the scores of each data set before the objective sees them."""
    soft_labels: SoftLabelConfig | None = None
    """A file with the probability that chosen is better, by prompt id."""
    max_length: int = Field(1024, ge=2)
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Used only when the whole is too long; default: half of max_length."""
    truncate_prompt: Literal["keep_end", "keep_start"] = "keep_end"
    """Which end of a prompt that is too long is kept."""
    overlong: Literal["cut", "drop", "stop"] = "cut"
    """What happens to a row longer than max_length."""
    strict: bool = False
    """Whether any row set aside stops the run."""
    max_cut_fraction: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Stop the run where more than this fraction of the responses is cut."""
    chat_template: str | None = None
    """A shipped template (chatml, alpaca, ...) or a Jinja file; default: the tokenizer's."""
    decontaminate: tuple[str, ...] = Field((), strict=False)
    """Files of evaluation prompts; training rows that contain one are left out."""
    num_proc: int | None = Field(None, ge=1)
    """Processes that tokenise, with equal results; default: one, a core each for large data."""
    cache: bool = True
    """Keep tokens on disk, found again by content: up to 20 GB in PENCHANT_CACHE."""

    _sources = field_validator("train", "eval", mode="before")(by_path)

    @field_validator("soft_labels", mode="before")
    @classmethod
    def _soft_label_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("decontaminate", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, given: Any) -> Any:
        if given is None:
            return ()
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_lengths(self.max_length, self.max_prompt_length)
        if self.eval and self.eval_fraction is not None:
            raise ValueError("data.eval and data.eval_fraction are both given; give one")
        same = {one.place for one in self.train} & {one.place for one in self.eval}
        if same:
            path = min(place[0] for place in same)
            raise ValueError(f"data.eval is also in data.train ({path}); give other rows")
        return self
