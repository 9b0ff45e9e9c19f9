"""Selects from scored candidates: the best of n for fine-tuning, or pairs for preference training.

Also measures what best-of-n is worth: the expected score for every n, its interval, the KL bound.
An output that is there already is kept: of this recipe it is what is asked for, else it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import DataError, RecipeError
from penchant.recipe.selection import SelectRecipe
from penchant.train.output_dir import check_possible

if TYPE_CHECKING:
    from penchant.data.carried import RowsDigest
    from penchant.data.pairing import PairSettings
    from penchant.generate.scored_rows import Scored
    from penchant.types import Comparison

_DECIDES = ("how", "by", "gold", "n", "pairing", "min_score_gap", "ties", "format", "seed")
_PLANNED = (
    "rows", "rows_left_out", "rows_used", "set_aside", "empty_responses_left_out", "candidates",
    "candidates_left_out", "candidates_without_score", "written",
)  # fmt: skip


def run(recipe: SelectRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the selection; returns what its summary holds.

    Raises RecipeError for a layout that cannot hold it, DataError where nothing can be selected.
    """
    from penchant.commands._select_curve import curve
    from penchant.commands._select_screen import tell
    from penchant.data.carried import CarriedRows, RowsDigest
    from penchant.generate.journal import finished
    from penchant.generate.row_file import check

    output = Path(recipe.output)
    check(output)
    module = _format(recipe)
    for path in (output, *([Path(recipe.page)] if recipe.page else [])):
        check_possible(path.parent)
    sources = [source.model_dump() for source in recipe.data.train]
    rows = CarriedRows.of(sources, format=recipe.data.format, seed=recipe.seed)
    chosen = _Chosen(recipe, module, RowsDigest())
    usable = list(chosen.read(rows))
    identity = _identity(recipe, chosen.digest.hexdigest())
    summary = None if dry_run else finished(output, identity)
    if summary is not None:
        print(f"{output} is complete already; nothing was done")
    elif not usable:
        raise DataError(chosen.nothing())
    else:
        made = list(chosen.rows(usable))
        summary = chosen.summary(len(made)) | {"curve": curve(usable, recipe.seed)}
        if dry_run:
            return {name: summary[name] for name in _PLANNED} | {"would_write": _files(recipe)}
        if not made:
            raise DataError(chosen.nothing())
        summary = _publish(output, identity, made, summary)
        tell(recipe, summary)
    if recipe.page is not None:
        _write_page(Path(recipe.page), summary)
    return summary


def _publish(
    output: Path, identity: dict[str, Any], made: list[dict[str, Any]], summary: dict[str, Any]
) -> dict[str, Any]:
    """Writes rows and summary, whole or not at all; returns the summary with the identity."""
    from penchant.generate.journal import Journal

    with Journal.open(output, identity) as journal:
        return journal.publish(0, summary, made)


def _write_page(page: Path, summary: dict[str, Any]) -> None:
    from penchant.pages.select import select_page
    from penchant.train.durable import write_text

    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, select_page(summary))
    print(f"wrote {page}")


def _identity(recipe: SelectRecipe, digest: str) -> dict[str, Any]:
    """What the selection and its curve depend on."""
    found = recipe.resolved().model_dump(include=set(_DECIDES))
    return {"command": "select", "data": digest, **found}


@dataclass
class _Chosen:
    """Rows that are read, selected, written in the layout asked for; all of them counted."""

    recipe: SelectRecipe
    module: Any
    digest: RowsDigest
    """Of all rows read."""
    num_rows: int = 0
    rows_left_out: int = 0
    num_empty: int = 0
    num_used: int = 0
    num_candidates: int = 0
    left_out: int = 0
    without_score: int = 0
    tied_best: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    first: str = ""
    """Of the rows set aside, with what is wrong there."""
    pairs_dropped: Counter[str] = field(default_factory=Counter)

    def read(self, rows: Any) -> Iterator[Scored]:
        """The rows whose candidates have scores."""
        from penchant.data.rows import RowError
        from penchant.generate.scored_rows import has_tied_best, read_scored

        recipe = self.recipe
        for row in rows:
            self.num_rows += 1
            self.digest.add(row)
            try:
                scored = read_scored(row, recipe.by, recipe.gold, recipe.n)
            except RowError as error:
                self._lose(row.row_id, error)
                continue
            self.num_candidates += len(scored.comparison.responses)
            self.left_out += scored.num_left_out
            self.without_score += scored.num_without_score
            self.tied_best += has_tied_best(scored.comparison.scores or ())
            yield scored
        self.rows_left_out, self.num_empty = rows.left_out, rows.num_empty

    def rows(self, usable: list[Scored]) -> Iterator[dict[str, Any]]:
        """What is written, row by row."""
        from penchant.data.rows import RowError

        for scored in usable:
            try:
                made = self._best(scored) if self.recipe.how == "best-of-n" else self._pairs(scored)
            except RowError as error:
                self._lose(scored.row_id, error)
                continue
            self.num_used += 1
            yield from made

    def _best(self, scored: Scored) -> list[dict[str, Any]]:
        from penchant.generate.scored_rows import best_of

        best, comparison = best_of(scored), scored.comparison
        assert comparison.scores is not None, "candidates have scores"
        only = replace(
            comparison,
            responses=(comparison.responses[best],),
            scores=(comparison.scores[best],),
        )
        extra = {
            "row_id": scored.row_id,
            "score": comparison.scores[best],
            "num_candidates": len(comparison.responses),
        }
        if scored.gold is not None:
            extra["gold_score"] = scored.gold[best]
        if scored.domains is not None:
            extra["domain"] = scored.domains[best]
        return self._layout(only, extra)

    def _pairs(self, scored: Scored) -> list[dict[str, Any]]:
        from penchant.generate.scored_rows import draw

        comparison, dropped = draw(scored, self._settings())
        self.pairs_dropped.update(dropped)
        made = self._layout(comparison, {"row_id": scored.row_id})
        if scored.domains is not None and self._adds:
            for row, (better, worse) in zip(made, comparison.pairs or (), strict=True):
                row["domain_chosen"] = scored.domains[better]
                row["domain_rejected"] = scored.domains[worse]
        return made

    @property
    def _adds(self) -> bool:
        """Whether rows of the layout may have more columns: it is made to be read further."""
        return self.module.NAME in ("messages", "preference")

    def _layout(self, comparison: Comparison, extra: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of the format, with more columns where it may have them."""
        from penchant.data.rows import RowError

        rows = self.module.to_rows(comparison)
        if not rows:
            raise RowError("no_layout", f"{self.module.NAME} cannot say what this row says")
        return [row | extra if self._adds else row for row in rows]

    def _settings(self) -> PairSettings:
        from penchant.data.pairing import PairSettings

        recipe = self.recipe
        return PairSettings(
            pairing=recipe.pairing or "best-vs-worst",
            min_score_gap=recipe.min_score_gap,
            ties=recipe.ties or "drop",
            needs_scores=True,
        )

    def _lose(self, row_id: str, error: Any) -> None:
        self.set_aside[error.reason] += 1
        self.first = self.first or f"{row_id}: {error.reason}: {error.detail}"

    def nothing(self) -> str:
        """Why nothing is selected."""
        reasons = ", ".join(f"{name} {count}" for name, count in self.set_aside.most_common())
        return (
            f"none of {self.num_rows} rows can be selected from ({reasons}); the first: "
            f"{self.first}"
        )

    def summary(self, num_written: int) -> dict[str, Any]:
        """Counts; rows in = rows used + rows set aside."""
        recipe = self.recipe
        return {
            "output": recipe.output,
            "how": recipe.how,
            "by": recipe.by,
            "gold": recipe.gold,
            "format": recipe.format,
            "rows": self.num_rows,
            "rows_left_out": self.rows_left_out,
            "rows_used": self.num_used,
            "set_aside": dict(self.set_aside.most_common()),
            "written": num_written,
            "candidates": self.num_candidates,
            "empty_responses_left_out": self.num_empty,
            "candidates_left_out": self.left_out,
            "candidates_without_score": self.without_score,
            "tied_best": self.tied_best,
            "pairs_dropped": dict(self.pairs_dropped.most_common()),
        }


def _format(recipe: SelectRecipe) -> Any:
    """The module that lays rows out. Raises RecipeError where none can hold what is selected."""
    from penchant.data import formats
    from penchant.data.conversion import writable

    holds = {
        "best-of-n": {"messages", "sharegpt", "scored", "text-score", "candidates", "samples"},
        "pairs": {"preference", "hh", "sharegpt", "dsp"},
    }[recipe.how]
    name = recipe.resolved().format
    if name not in holds:
        allowed = ", ".join(one for one in writable() if one in holds)
        raise RecipeError(f"format: given {name}, allowed for how={recipe.how}: {allowed}")
    return formats.known()[name]


def _files(recipe: SelectRecipe) -> list[str]:
    from penchant.generate.row_file import summary_of

    files = [recipe.output, str(summary_of(Path(recipe.output)))]
    return [*files, recipe.page] if recipe.page else files
