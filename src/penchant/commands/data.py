"""Reports what is in preference data and what is wrong with it, before any training.

Works on a file, a list of them, or the recipe of a training; converts between formats too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import RecipeError
from penchant.recipe.reading import DataRecipe
from penchant.train.output_dir import check_possible

if TYPE_CHECKING:
    from penchant.data import Comparisons, DataReport

_BOTH = ("data_report.json", "data_report.html")


def run(recipe: DataRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Prints the report, writes what was asked for, and returns the report as plain values.

    Raises DataError, after all is shown and written, where no row is usable or a threshold
    (data.strict, data.max_cut_fraction) is passed.
    """
    files = [] if recipe.report is None else report_files(recipe.report)
    for path in [*files, *([Path(recipe.output)] if recipe.output else [])]:
        check_possible(path.parent)

    from penchant.commands._data_screen import print_report
    from penchant.commands._prepare import read_comparisons

    train, evaluation = read_comparisons(recipe.data, recipe.training.seed)
    reports = make_reports(recipe, train, evaluation)
    found = reports[0].to_dict() | {"eval": reports[1].to_dict() if len(reports) > 1 else None}
    if dry_run:
        kept = ("rows_in", "rows_used", "pairs", "unit")
        return {name: found[name] for name in kept} | {"would_write": list(map(str, files))}
    names = (["training data", "evaluation data"] if len(reports) > 1 else [""])[: len(reports)]
    for name, report in zip(names, reports, strict=True):
        print_report(report, name)
    for path in files:
        _write(path, found)
        print(f"wrote {path}")
    if recipe.output is not None:
        _convert(train, recipe.output, recipe.format)
    for report in reports:
        report.check(recipe.data.strict, recipe.data.max_cut_fraction)
    return found


def report_files(given: str) -> list[Path]:
    """Where the report goes: a file by its suffix, else both files in a folder.

    Raises RecipeError for a file of another kind.
    """
    path = Path(given)
    if path.suffix in (".json", ".html"):
        return [path]
    if path.suffix and not path.is_dir():
        raise RecipeError(f"report={given!r}: allowed are a folder, FILE.html or FILE.json")
    return [path / name for name in _BOTH]


def make_reports(
    recipe: DataRecipe, train: Comparisons, evaluation: Comparisons | None
) -> list[DataReport]:
    """The report of the training data and, where there are any, of the evaluation data."""
    from penchant import data

    tokenizer = _tokenizer(recipe)
    settings = _settings(recipe, train)

    def report(rows: Comparisons) -> DataReport:
        if tokenizer is None:
            return data.text_report(rows, **settings)
        return data.report(rows, tokenizer, **settings)

    reports = [report(train)]
    if evaluation is not None:
        reports.append(report(evaluation))
        reports[1].overlap = data.overlap(train, evaluation)
        reports[1].find_problems()
    return reports


def _tokenizer(recipe: DataRecipe) -> Any:
    if recipe.tokenizer is None and recipe.model is None:
        return None
    from penchant.models.load import load_tokenizer

    if recipe.tokenizer is not None:
        return load_tokenizer(recipe.tokenizer)
    assert recipe.model is not None, "one of the two is given"
    return load_tokenizer(
        recipe.model.path,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _settings(recipe: DataRecipe, train: Comparisons) -> dict[str, Any]:
    from penchant import objectives
    from penchant.commands._prepare import data_settings, pair_settings

    settings = data_settings(recipe.data, recipe.training.seed)
    use = _use(recipe, train)
    if use == "chosen":
        train_on = recipe.sft.train_on if recipe.sft else "last"
        return settings | {"use": "chosen", "train_on": train_on}
    if recipe.objective is not None:
        settings |= pair_settings(recipe.data, objectives.load(**recipe.objective))
    else:
        settings["use"] = "pairs"
    return settings


def _use(recipe: DataRecipe, train: Comparisons) -> str:
    if recipe.use != "auto":
        return recipe.use
    if recipe.sft is not None or (recipe.objective or {}).get("name") == "sft":
        return "chosen"
    if recipe.objective is not None:
        return "pairs"
    can_pair = any(row.pairs or (row.scores and len(row.responses) > 1) for row in train)
    return "pairs" if can_pair or not len(train) else "chosen"


def _write(path: Path, found: dict[str, Any]) -> None:
    import json

    from penchant.pages.data_report import data_page

    path.parent.mkdir(parents=True, exist_ok=True)
    text = data_page(found) if path.suffix == ".html" else json.dumps(
        found, indent=2, ensure_ascii=False
    ) + "\n"  # fmt: skip
    path.write_text(text, encoding="utf-8")


def _convert(rows: Comparisons, output: str, format: str | None) -> None:
    from penchant import data

    written = data.write(rows, output, format=format or data.best_format(rows))
    for line in written.lines():
        print(line)
