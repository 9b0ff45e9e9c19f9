"""Adds an adapter's weights into its base model and saves the sum as an ordinary model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.errors import RecipeError
from penchant.recipe import MergeRecipe


def run(recipe: MergeRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the merged model and the adapter's tokenizer to `output_dir`."""
    folder = Path(recipe.output_dir)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise RecipeError(f"output_dir={recipe.output_dir!r} is not empty; name a new folder")

    from penchant.models.adapters import base_of, merge
    from penchant.models.load import load_tokenizer
    from penchant.models.save import save_model

    base = recipe.base or base_of(recipe.adapter)
    found = {"adapter": recipe.adapter, "base": base, "output_dir": recipe.output_dir}
    if dry_run:
        return found
    model = merge(recipe.adapter, base=base, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(recipe.adapter, trust_remote_code=recipe.trust_remote_code)
    save_model(model, tokenizer, folder)
    return found | {"parameters": sum(p.numel() for p in model.parameters())}
