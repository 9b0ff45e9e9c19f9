"""Writes the miniature: a small synthetic world with model, tokenizer and data sets.

Everything that the other commands read, in their ordinary formats and without a download.
"""

from __future__ import annotations

from typing import Any

from penchant.recipe import MiniatureRecipe
from penchant.train.output_dir import check_new


def run(recipe: MiniatureRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the world to `output_dir`; returns rows per file and the model's sizes.

    Raises RecipeError where the folder holds anything already.
    """
    folder = check_new(recipe.output_dir)

    from penchant.miniature.folder import Sizes, write

    sizes = Sizes(
        num_sft=recipe.num_sft,
        num_pairs=recipe.num_pairs,
        num_scored=recipe.num_scored,
        num_held_out=recipe.num_held_out,
    )
    if dry_run:
        return {"output_dir": recipe.output_dir, "seed": recipe.seed, **vars(sizes)}
    return {"output_dir": recipe.output_dir, **write(folder, recipe.seed, sizes)}
