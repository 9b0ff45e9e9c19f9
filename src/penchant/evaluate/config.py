"""What a recipe says of the preference sets that a model is evaluated on: `data.*`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.config import DatasetConfig, by_path, check_lengths

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class PreferenceData(BaseModel):
    """Which sets are evaluated, how they become pairs and tokens: `data`."""

    model_config = _STRICT

    train: tuple[DatasetConfig, ...] = Field(strict=False, min_length=1)
    """The preference sets; `data=FILE` or `data=[A, {path: B, name: ...}]` means this key."""
    format: str = Field("auto", min_length=1)
    """Name of the source format, `name:choice` where it has choices; auto: by its columns."""
    pairing: Literal["all", "best-vs-rest", "best-vs-worst"] = "all"
    """How N scored responses become pairs."""
    min_score_gap: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Leave out pairs whose scores differ by less."""
    ties: Literal["drop", "keep"] = "drop"
    """What happens to pairs with equal scores: which side is chosen there says nothing."""
    negative_gap: Literal["keep", "swap", "drop"] = "keep"
    """What happens to pairs whose chosen has the lower score."""
    max_pairs_per_prompt: int | None = Field(None, ge=1)
    """At most so many pairs of one prompt; default: no limit, but 5 for SHP."""
    max_length: int | None = Field(None, ge=2)
    """Tokens of prompt and response together; default: as the model was trained, or 1024."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Used only when the whole is too long; default: as it was trained, or half of max_length."""
    truncate_prompt: Literal["keep_end", "keep_start"] | None = None
    """Which end of a prompt that is too long is kept; default: as it was trained, or keep_end."""
    overlong: Literal["cut", "drop", "stop"] = "cut"
    """What happens to a row longer than max_length."""
    strict: bool = False
    """Whether any row set aside stops the evaluation."""
    max_cut_fraction: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Stop where more than this fraction of a set's responses is cut."""
    chat_template: str | None = None
    """A shipped template (chatml, alpaca, ...) or a Jinja file; default: the model's own."""
    num_proc: int | None = Field(None, ge=1)
    """Processes that tokenise, with equal results; default: one, a core each for large data."""
    cache: bool = True
    """Keep tokens on disk, found again by content: up to 20 GB in PENCHANT_CACHE."""

    _sources = field_validator("train", mode="before")(by_path)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_lengths(self.max_length, self.max_prompt_length)
        return self
