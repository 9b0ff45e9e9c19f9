"""Shows one comparison as the model sees it: tokens, cuts, log-probabilities, loss, rewards.

The recipe may be that of a policy or of a reward model; the objective says which.

Without loadable weights, or with tokens_only=true, it shows the tokens alone and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import DataError, ModelError, RecipeError
from penchant.recipe.reading import ExplainRecipe
from penchant.train.output_dir import check_possible

if TYPE_CHECKING:
    from penchant.commands._explain_measure import Measured
    from penchant.data import Comparisons
    from penchant.data.config import DataConfig
    from penchant.data.single import SingleRow


def run(recipe: ExplainRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Prints the row, writes the page where one was asked for, and returns its numbers.

    Raises DataError where there is no such row or it is set aside; says why.
    """
    if recipe.output is not None:
        if not recipe.output.endswith(".html"):
            raise RecipeError(f"output={recipe.output!r}: the page is HTML; give FILE.html")
        check_possible(Path(recipe.output).parent)

    from penchant import objectives
    from penchant.models.load import load_tokenizer

    is_sft = recipe.sft is not None or recipe.objective["name"] == "sft"
    objective = objectives.load("sft") if is_sft else objectives.load(**recipe.objective)
    recipe = recipe.model_copy(update={"data": _with_pairs(recipe.data, objective)})
    tokenizer = load_tokenizer(
        recipe.model.path,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    single = find_row(recipe, objective, tokenizer)
    if dry_run:
        return {"row_id": single.row.row_id, "num_tokens": single.tree.num_tokens}
    measured, why_not = _measured(recipe, objective, tokenizer, single)

    from penchant.commands._explain_screen import print_explanation
    from penchant.commands._explain_view import explanation

    shown = explanation(recipe, objective, single, measured, why_not)
    print_explanation(shown)
    if recipe.output is not None:
        from penchant.pages.explain import explain_page

        path = Path(recipe.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(explain_page(shown), encoding="utf-8")
        print(f"wrote {path}")
    return _numbers(single, measured)


def _with_pairs(config: DataConfig, objective: Any) -> DataConfig:
    """How rows become pairs where the recipe does not say: as `train` or `reward` do it."""
    pairing, ties = ("all", "drop") if objective.input == "ranking" else ("best-vs-worst", "keep")
    update = {"pairing": config.pairing or pairing, "ties": config.ties or ties}
    return config.model_copy(update=update)


def find_row(recipe: ExplainRecipe, objective: Any, tokenizer: Any) -> SingleRow:
    """The row of training or evaluation data that the recipe names, as training gets it."""
    from penchant.commands._prepare import data_settings, marker, pair_settings, read_comparisons
    from penchant.data.single import single_row

    train, evaluation = read_comparisons(recipe.data, recipe.training.seed)
    settings = data_settings(recipe.data, recipe.training.seed)
    if objective.name == "sft":
        train_on = recipe.sft.train_on if recipe.sft else "last"
        settings |= {"use": "chosen", "train_on": train_on}
    else:
        settings |= pair_settings(recipe.data, objective)
    if objective.token_weights is not None:
        settings["mark"] = marker(objective.token_weights, tokenizer)
    sides = [train] if evaluation is None else [train, evaluation]
    found: list[tuple[Comparisons, str]] = []
    for side in sides:
        # A bare number means the training data; evaluation data where training has no such row.
        found = found or [(side, one) for one in _ids(side) if _is(recipe.row, one)]
    if not found:
        ids = _ids(train)
        raise DataError(f"no row {recipe.row}; there are {len(ids):,}, {ids[0]} to {ids[-1]}")
    if len(found) > 1:
        named = ", ".join(row_id for _, row_id in found[:3])
        raise DataError(f"row {recipe.row} is in several data sets; name one: row={named}")
    side, row_id = found[0]
    return single_row(side, row_id, tokenizer, **settings)


def _ids(rows: Comparisons) -> list[str]:
    return [*(row.row_id for row in rows), *(lost.row_id for lost in rows.set_aside)]


def _is(wanted: int | str, row_id: str) -> bool:
    return wanted == row_id or str(wanted) == row_id.rpartition(":")[2]


def _measured(
    recipe: ExplainRecipe, objective: Any, tokenizer: Any, single: SingleRow
) -> tuple[Measured | None, str]:
    """What the models say; or None, and why."""
    if recipe.tokens_only:
        return None, "tokens_only: no weights were loaded"
    from penchant.commands._explain_measure import measure
    from penchant.commands._explain_rewards import measure_rewards

    work = measure_rewards if objective.input == "ranking" else measure
    try:
        return work(recipe, objective, tokenizer, single.tree), ""
    except ModelError as error:
        return None, f"tokens only: {error}"


def _numbers(single: SingleRow, measured: Measured | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "row_id": single.row.row_id,
        "prompt_tokens": len(single.tree.prompt_ids),
        "response_tokens": [len(ids) for ids in single.tree.response_ids],
        "prompt_cut": sum(token.is_cut for token in single.prompt),
        "responses_cut": [sum(t.is_cut for t in one) for one in single.responses],
        "pairs": list(map(list, single.tree.pairs_P2)),
    }
    return found if measured is None else found | measured.to_dict()
