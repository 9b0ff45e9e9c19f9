"""Rows into comparisons: `load`, and what can be done with them before there is a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from penchant.data.fields import plain_text
from penchant.data.reading import read_comparisons
from penchant.data.rows import SetAside
from penchant.errors import DataError
from penchant.types import Comparison, Text


@dataclass(frozen=True)
class Comparisons(Sequence[Comparison]):
    """The usable rows of one or more data sets, and what became of the others."""

    rows: tuple[Comparison, ...]
    set_aside: tuple[SetAside, ...] = ()
    """Rows that could not be read as comparisons."""
    left_out: int = 0
    """Rows that `fraction` or `rows` did not draw; they count nowhere else."""
    formats: dict[str, str] = field(default_factory=dict)
    """Name of the format that each data set was read as."""
    unread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns of each data set that its format does not look at."""

    @property
    def rows_in(self) -> int:
        """Rows read: the usable ones and those set aside."""
        return len(self.rows) + len(self.set_aside)

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Comparison: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Comparison]: ...
    def __getitem__(self, index: int | slice) -> Comparison | Sequence[Comparison]:
        return self.rows[index]


def load(
    path: Any,
    *,
    format: str = "auto",
    seed: int = 42,
    decontaminate: Sequence[Any] = (),
    default_split: str = "train",
) -> Comparisons:
    """Reads comparisons.

    Args:
        path: file, folder, hub id (`id:config:split`), a mapping with `path` and optional
            `name`, `fraction`, `rows`, `config`, `split`; or a list of those.
        format: a format's name, or "auto": by columns, data set by data set.
        seed: decides which rows a fraction draws.
        decontaminate: files of evaluation prompts; rows that contain one are set aside.
        default_split: of data sets with several splits, where the source names none.
    Raises:
        MissingFileError: a source is not there.
        DataError: a source is empty, has nothing but broken lines, or no known format.
    """
    stream = read_comparisons(
        path, format=format, seed=seed, decontaminate=decontaminate, default_split=default_split
    )
    rows: list[Comparison] = []
    set_aside: list[SetAside] = []
    for row in stream:
        if isinstance(row, Comparison):
            rows.append(row)
        else:
            set_aside.append(row)
    return Comparisons(
        tuple(rows), tuple(set_aside), stream.left_out, stream.formats, stream.unread
    )


def content_key(text: Text) -> Any:
    """Hashable, and equal for texts that say the same."""
    if isinstance(text, str):
        return text
    return tuple((turn["role"], turn["content"]) for turn in text)


def prompt_key(comparison: Comparison) -> Any:
    """Equal for comparisons that share a prompt: by `prompt_id`, else by what it says."""
    if comparison.prompt_id is not None:
        return comparison.prompt_id
    return content_key(comparison.prompt)


def same_rows(train: Comparisons, evaluation: Comparisons) -> int:
    """How many rows of `evaluation` are also in `train`: same prompt and same responses."""
    seen = {_row_key(row) for row in train}
    return sum(_row_key(row) in seen for row in evaluation)


def _row_key(row: Comparison) -> Any:
    # plain_text first: two spellings of one conversation (a prompt column, or none) are one row.
    return plain_text(row.prompt), tuple(map(plain_text, row.responses)), row.pairs


def split(comparisons: Comparisons, fraction: float, seed: int) -> tuple[Comparisons, Comparisons]:
    """(train, evaluation): that fraction of the prompts is held out; a prompt is on one side only.

    Rows set aside while reading stay with train. Raises DataError where a side would be empty.
    """
    keys = list(dict.fromkeys(prompt_key(row) for row in comparisons))
    wanted = max(1, round(fraction * len(keys)))
    if wanted >= len(keys):
        raise DataError(f"eval_fraction {fraction} of {len(keys)} prompts leaves none to train on")
    held = set(random.Random(f"{seed}:eval").sample(range(len(keys)), wanted))
    held_keys = {keys[index] for index in held}
    train = tuple(row for row in comparisons if prompt_key(row) not in held_keys)
    evaluation = tuple(row for row in comparisons if prompt_key(row) in held_keys)
    return replace(comparisons, rows=train), Comparisons(evaluation, formats=comparisons.formats)
