"""The recipes of `penchant score` and `penchant select`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.config import DatasetConfig, by_path, check_lengths
from penchant.models.config import ModelSource
from penchant.recipe.kinds import Recipe

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
_OWN = ("row_id", "prompt", "responses", "set_aside", "given_scores")
"""Columns of a scored row that are not scores."""


class ScoringModel(BaseModel):
    """A model that scores, and how much it counts: an entry of `models`."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    """Folder or hub id."""
    name: str | None = Field(None, min_length=1)
    """What its scores are called in the output; default: the last part of its path."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Its scores times this are what it adds to the sum."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format to compute in; auto: as the checkpoint was saved (float16 as bfloat16)."""
    trust_remote_code: bool = False
    """Whether code that the checkpoint brings along may run."""


class RowsConfig(BaseModel):
    """Which rows are read: `data`."""

    model_config = _STRICT

    train: tuple[DatasetConfig, ...] = Field(strict=False, min_length=1)
    """File, folder, hub id, or a list of them; `data=FILE` means this key."""
    format: str = Field("auto", min_length=1)
    """Name of the source format, `name:choice` where it has choices; auto: by its columns."""

    _sources = field_validator("train", mode="before")(by_path)


class ScoreData(BaseModel):
    """Which rows are scored, and how their texts are read: `data`."""

    model_config = _STRICT

    train: tuple[DatasetConfig, ...] = Field(strict=False, min_length=1)
    """File, folder, hub id, or a list of them; `data=FILE` means this key."""
    format: str = Field("auto", min_length=1)
    """Name of the source format, `name:choice` where it has choices; auto: by its columns."""
    chat_template: str | None = None
    """A shipped template (chatml, alpaca, ...) or a Jinja file; default: the model's own."""
    max_length: int | None = Field(None, ge=2)
    """Tokens of prompt and response; default: as trained, else what the model reads."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Used only when the whole is too long; default: as trained, or half of max_length."""
    truncate_prompt: Literal["keep_end", "keep_start"] | None = None
    """Which end of a prompt that is too long is kept; default: as trained, or keep_end."""
    strict: bool = False
    """Whether any row that cannot be scored stops the command."""

    _sources = field_validator("train", mode="before")(by_path)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_lengths(self.max_length, self.max_prompt_length)
        return self


class ScoreRecipe(Recipe):
    """A score for every response: `penchant score model=RM data=FILE output=FILE`."""

    model: ScoringModel | None = None
    """The model that scores; `model=RM` means model.path. Or several, in `models`."""
    models: tuple[ScoringModel, ...] = Field((), strict=False)
    """Several, run one after another: [{path, weight, name}, ...]; their weighted sum counts."""
    by: Literal["reward", "implicit_reward", "logprob", "logprob_per_token"] = "reward"
    """A reward model's score; or a policy's beta * log(policy / reference), or its log-probability
    of the response, summed or per token."""
    reference: ModelSource | None = None
    """implicit_reward: the frozen model to measure against; default: the one of the model's run."""
    beta: float | None = Field(None, gt=0, allow_inf_nan=False)
    """implicit_reward: its scale; default: the one of the model's run."""
    standardise: Literal["none", "zscore"] = "none"
    """zscore: each model's scores less their mean over all responses, by their deviation."""
    data: ScoreData
    """What is scored; `data=FILE` means data.train."""
    output: str = Field(min_length=1)
    """File to write: .jsonl or .json, also with .gz; a row for each row of the input."""
    column: str = Field("scores", min_length=1)
    """Column of the scores; another name keeps `scores` as the input has them."""
    token_budget: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens that run together; changes memory and speed, not the scores."""
    device: Literal["auto", "cpu", "cuda", "hpu"] = "auto"
    """Where to compute; auto takes the accelerator that is there."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Decides which rows a fraction of the data draws."""
    output_dir: str = ""
    """Not used: `output` says where."""

    _paths = field_validator("models", mode="before")(by_path)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.model is None) == (not self.models):
            given = "neither" if self.model is None else "both"
            raise ValueError(f"model, models: {given} given; give model=RM, or models=[RM, ...]")
        if self.by != "implicit_reward":
            for name in ("reference", "beta"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} plays no part in by={self.by}; leave it out")
        if self.standardise != "none" and not self.models:
            raise ValueError(
                f"standardise={self.standardise} is for several models; give models=[RM, ...]"
            )
        if self.column in _OWN or self.column.endswith("_by_model"):
            raise ValueError(f"column: given {self.column}, which has another meaning; "
                             "give another name")  # fmt: skip
        check_apart(self.data.train, self.output)
        return self

    @property
    def scorers(self) -> tuple[ScoringModel, ...]:
        """All models, with names that are unique."""
        given = self.models or (() if self.model is None else (self.model,))
        names = [one.name or os.path.basename(os.path.normpath(one.path)) for one in given]
        counts: Counter[str] = Counter()
        named = []
        for one, name in zip(given, names, strict=True):
            counts[name] += 1
            unique = name if counts[name] == 1 else f"{name}#{counts[name]}"
            named.append(one.model_copy(update={"name": unique}))
        return tuple(named)


class SelectRecipe(Recipe):
    """The best of scored candidates: `penchant select data=SCORED output=FILE how=best-of-n`."""

    data: RowsConfig
    """Scored rows, as `penchant score` writes them; `data=FILE` means data.train."""
    output: str = Field(min_length=1)
    """File to write: .jsonl or .json, also with .gz."""
    how: Literal["best-of-n", "pairs"] = "best-of-n"
    """best-of-n: SFT rows of the best response; pairs: chosen and rejected by score."""
    by: str = Field("scores", min_length=1)
    """Column of the scores that choose."""
    gold: str | None = Field(None, min_length=1)
    """Column of a second score: what the chosen response is worth by it."""
    n: int | None = Field(None, ge=1)
    """Only the first so many candidates of each prompt; default: all."""
    pairing: Literal["best-vs-worst", "best-vs-rest", "all"] | None = None
    """pairs: which of the candidates are put together; default: best-vs-worst."""
    min_score_gap: float | None = Field(None, ge=0, allow_inf_nan=False)
    """pairs: leave out those whose scores differ by less."""
    ties: Literal["keep", "drop"] | None = None
    """pairs: what happens to those with equal scores; default: drop."""
    format: str | None = Field(None, min_length=1)
    """Layout of the output; default: messages for best-of-n, preference for pairs."""
    page: str | None = Field(None, min_length=1)
    """Also write the best-of-n curve as an HTML page to this file."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the intervals' resampling, and of a fraction of the data."""
    output_dir: str = ""
    """Not used: `output` says where."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.how == "best-of-n":
            for name in ("pairing", "min_score_gap", "ties"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for how=pairs, not for best-of-n; leave it out")
        elif self.n == 1:
            raise ValueError("n=1 leaves nothing to compare a response with; give 2 or more")
        if self.gold is not None and self.gold == self.by:
            raise ValueError(f"gold={self.gold} is the column that chooses; name another one")
        if self.page is not None and not self.page.endswith(".html"):
            raise ValueError(f"page: given {self.page}, allowed: FILE.html")
        check_apart(self.data.train, self.output)
        return self

    def resolved(self) -> Self:
        if self.how == "best-of-n":
            return self.model_copy(update={"format": self.format or "messages"})
        update = {
            "format": self.format or "preference",
            "pairing": self.pairing or "best-vs-worst",
            "ties": self.ties or "drop",
        }
        return self.model_copy(update=update)


def check_apart(sources: Sequence[DatasetConfig], output: str) -> None:
    """Raises ValueError where the output would take an input's place."""
    place = os.path.realpath(output)
    for source in sources:
        read = os.path.realpath(os.path.expanduser(source.path))
        if read == place:
            raise ValueError(f"output={output} is also what is read; give another file")
        if os.path.isdir(read) and place.startswith(os.path.join(read, "")):
            raise ValueError(f"output={output} is in the folder that is read, {source.path}; give "
                             "a file elsewhere")  # fmt: skip
